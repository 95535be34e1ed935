"""The engine's kernels: one op a file, each beside its plain-torch reference. Imports no other package of ours."""
