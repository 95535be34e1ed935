"""What the doors need to know of the chain: nodes, terms, access, escrow, signers; cached and event-driven."""

from .opening import ChainParts, open_chain, read_deployment, rpc_urls
from .registry import Registry
from .values import (
    FOREVER,
    AccessChanged,
    ChainEvent,
    EscrowState,
    Kind,
    NodeEntry,
    NodeKeyChanged,
    Scope,
    Terms,
    TermsChanged,
    ThawStarted,
)
from .view import ChainView

__all__ = [
    "FOREVER",
    "AccessChanged",
    "ChainEvent",
    "ChainParts",
    "ChainView",
    "EscrowState",
    "Kind",
    "NodeEntry",
    "NodeKeyChanged",
    "Registry",
    "Scope",
    "Terms",
    "TermsChanged",
    "ThawStarted",
    "open_chain",
    "read_deployment",
    "rpc_urls",
]
