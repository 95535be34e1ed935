"""Everything that talks to the EVM chain. Imports no other package of ours: it takes tuples, digests and a store."""

from . import recursion as recursion
