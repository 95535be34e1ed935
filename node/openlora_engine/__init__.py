"""The multi-adapter inference engine: its own process, no keys, no network beyond a Unix socket or a loopback port.

Imports only `openlora_kernels` of our packages; `openlora_node` starts it as a process and never imports it.
"""
