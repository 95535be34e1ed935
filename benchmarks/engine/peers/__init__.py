"""The peers, each run in a process of its own virtual environment and fed the same workloads."""
