"""The protocol, pure: no I/O, no clock, no chain. What two machines must agree on to the byte, and nothing else."""
