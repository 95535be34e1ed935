"""The named accounts of a development chain. Their keys derive from their public names and guard nothing, anywhere."""

from __future__ import annotations

from eth_utils.crypto import keccak

from ..wallet import Wallet

DEVNET_CHAIN_ID = 313_370
FUNDS = 1_000_000 * 10**18
NAMES = (
    "deployer",
    "treasury",
    "owner",
    "operator",
    "operator-2",
    "payer",
    "payer-2",
    "base-owner",
    "adapter-owner",
    "adapter-owner-2",
    "dataset-owner",
    "contributor-1",
    "contributor-2",
    "contributor-3",
)


def dev_wallet(name: str) -> Wallet:
    """DEVNET ONLY: the wallet of this name; anybody can compute its key."""
    return Wallet(bytes(keccak(text=f"openlora devnet only, not a secret: {name}")))


def dev_accounts() -> dict[str, bytes]:
    """Name → address of every account that a new devnet funds."""
    return {name: dev_wallet(name).address for name in NAMES}
