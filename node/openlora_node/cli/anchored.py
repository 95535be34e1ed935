"""What the chain says of a receipt: the root of its epoch, and whether the key that signed it was the node's then."""

from __future__ import annotations

from dataclasses import dataclass

from ..protocol.crypto import Address
from ..protocol.eip712 import Signed
from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.structs import CLOCK_SKEW_S, Receipt
from .chaindesk import ChainDesk


@dataclass(frozen=True)
class Anchored:
    """What a bundle is verified against."""

    epoch: int
    root: bytes
    key: Address
    """The receipt's signer, which the registry had for the node when the response finished."""


async def anchored(desk: ChainDesk, receipt: Signed[Receipt], epoch: int | None) -> Anchored:
    """By the chain's head, whose clock may differ from the node's by a minute.

    An epoch that is not given is reckoned by `settlement.epoch`, which may not be the node's.

    Raises BAD_SIGNATURE for a key that was not the node's, NOT_FOUND where no root is anchored, CHAIN_FAILED.
    """
    from openlora_chain.bindings import ReceiptAnchor

    value = receipt.value
    number = value.finished_at // int(desk.config.settlement.epoch.total_seconds()) if epoch is None else epoch
    key = receipt.signer(desk.domain)
    life = await desk.nodes.key_of(key)
    early = value.finished_at < life.valid_from - CLOCK_SKEW_S
    late = life.valid_until and value.finished_at > life.valid_until + CLOCK_SKEW_S
    if life.node != value.node or early or late:
        raise ProtocolError(
            ErrorCode.BAD_SIGNATURE,
            "the registry did not have the signer's key for the node when the response finished",
        )
    root = await ReceiptAnchor(desk.rpc, desk.deployment).root_of(value.node, number)
    if not any(root):
        raise OpenLoraError(
            ErrorCode.NOT_FOUND,
            f"the chain holds no root of the node's epoch {number}: wait until it is anchored, or name another by"
            " --epoch (`receipts export` says which)",
        )
    return Anchored(number, root, key)
