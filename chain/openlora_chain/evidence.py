"""What the chain says of a transaction of ours: where it stands, who spent its nonce, why it reverted. Reads only."""

from __future__ import annotations

from .access import ChainAccess
from .errors import ChainErrorCode, Reverted, RpcError
from .rpc import Call
from .store import Inclusion, Intent


async def find_inclusion(chain: ChainAccess, intent: Intent) -> Inclusion | None:
    """Where an attempt stands in the canonical chain; a receipt of an orphaned block does not count."""
    for attempt in reversed(intent.live_attempts):
        receipt = await chain.receipt(attempt.hash)
        if receipt is None:
            continue
        block = await chain.block(receipt.block.number)
        if block is not None and block.hash == receipt.block.hash:
            return Inclusion(attempt.hash, block.number, block.hash, receipt.succeeded)
    return None


async def who_spent(chain: ChainAccess, account: bytes, nonce: int, low: int, high: int) -> bytes | None:
    """The hash of the account's transaction with this nonce up to block `high`, most likely after `low`.

    Found by bisection over the heights and proven by the block that holds it. None where the node cannot tell: it has
    forgotten the state, or contradicts itself.
    """
    try:
        if await chain.nonce(account, high) <= nonce:
            return None
        if await chain.nonce(account, low) > nonce:
            # Spent before anybody thought it could be: the node had understated the nonce when it was chosen.
            low, high = 0, low
        while high - low > 1:
            middle = (low + high) // 2
            if await chain.nonce(account, middle) > nonce:
                high = middle
            else:
                low = middle
        return (await chain.transactions_from(high, account)).get(nonce)
    except RpcError as error:
        if error.code is not ChainErrorCode.RPC_FAILED:
            raise
        return None


async def revert_data(chain: ChainAccess, call: Call, block_number: int) -> bytes | None:
    """Run a reverted transaction again on the state before its block, or on the newest where the node forgot that.

    None when it passes.
    """
    for at in (block_number - 1, None):
        try:
            await chain.call(call, at)
        except Reverted as error:
            return error.data
        except RpcError as error:
            if error.code is not ChainErrorCode.RPC_FAILED:
                raise
        else:
            return None
    return None
