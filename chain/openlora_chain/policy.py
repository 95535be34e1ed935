"""What the outbox does next with one intent. Pure: no clock, no chain, no disk; callers pass what was seen.

Two rules carry the safety. A nonce is given up only when the account has spent it at depth and none of our attempts did
it, so no intent is ever signed under a second nonce while the first could still execute. And an intent ends in FAILED
only on a contract error that was decoded, never on the text or silence of a node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from .errors import ChainError, ChainErrorCode
from .store import HOLDS_NONCE, Inclusion, Intent, IntentState, Order

DEFAULT_FEE_CAP = 100 * 10**9


@dataclass(frozen=True, slots=True)
class Rules:
    """The outbox's parameters. Fees in wei per gas, times in seconds."""

    confirmations: int = 50
    """Depth at which an inclusion counts as final; the inclusion's own block is depth 1."""
    max_in_flight: int = 16
    replace_after_s: int = 60
    replace_after_blocks: int = 3
    max_replacements: int = 5
    raise_percent: int = 20
    fee_cap: int = DEFAULT_FEE_CAP
    gas_margin_percent: int = 20
    max_gas: int = 16_777_216
    """EIP-7825: no transaction above this enters a block."""
    retry_after_s: int = 15
    """First pause after a refusal that may pass; doubles up to `max_retry_after_s`."""
    max_retry_after_s: int = 3600

    def __post_init__(self) -> None:
        if min(self.confirmations, self.max_in_flight, self.fee_cap, self.max_gas) < 1:
            raise ValueError("confirmations, max_in_flight, fee_cap and max_gas are at least 1")

    def pause_s(self, refusals: int) -> int:
        """How long to wait after so many refusals in a row."""
        return min(self.retry_after_s << min(refusals, 16), self.max_retry_after_s)


@dataclass(frozen=True, slots=True)
class Sight:
    """One look at the chain. `account_nonce` counts at the head, `settled_nonce` at confirmation depth."""

    now: int
    head: int
    base_fee: int
    account_nonce: int
    settled_nonce: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do yet."""


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Hand the newest attempt to the node, byte for byte as stored."""


@dataclass(frozen=True, slots=True)
class Replace:
    """Sign the same nonce again with higher fees; `cancels` makes it an empty transfer to oneself."""

    cancels: bool


@dataclass(frozen=True, slots=True)
class Include:
    """Record the block in which an attempt stands."""

    inclusion: Inclusion


@dataclass(frozen=True, slots=True)
class Reorged:
    """The block is gone and the nonce is free again: back to SENT."""


@dataclass(frozen=True, slots=True)
class Settle:
    """The inclusion is deep enough: close the intent, or look into its revert."""

    inclusion: Inclusion


@dataclass(frozen=True, slots=True)
class Abandon:
    """The nonce is spent at depth, by none of our attempts: somebody else uses the key."""


Action: TypeAlias = Wait | Broadcast | Replace | Include | Reorged | Settle | Abandon


def decide(intent: Intent, inclusion: Inclusion | None, sight: Sight, rules: Rules) -> Action:
    """The next action for an intent that holds a nonce. `inclusion` is where an attempt of it stands now, if at all."""
    assert intent.state in HOLDS_NONCE
    assert intent.nonce is not None
    if inclusion is not None:
        return _decide_included(intent, inclusion, sight, rules)
    if sight.account_nonce > intent.nonce:
        return Abandon() if sight.settled_nonce > intent.nonce else Wait()
    if intent.state is IntentState.MINED:
        return Reorged()
    return _decide_pending(intent, sight, rules)


def _decide_included(intent: Intent, inclusion: Inclusion, sight: Sight, rules: Rules) -> Action:
    if intent.state is not IntentState.MINED or intent.inclusion != inclusion:
        return Include(inclusion)
    deep = sight.head - inclusion.block_number + 1 >= rules.confirmations
    return Settle(inclusion) if deep else Wait()


def _decide_pending(intent: Intent, sight: Sight, rules: Rules) -> Action:
    newest = intent.newest
    if intent.order is Order.CANCEL and not newest.cancels:
        return Replace(cancels=True)
    if intent.order is Order.BUMP:
        return Replace(cancels=newest.cancels)
    if not _is_overdue(intent, sight, rules):
        unsent = intent.state is IntentState.SIGNED or intent.order is Order.RESEND
        return Broadcast() if unsent else Wait()
    holds_up_the_rest = intent.nonce == sight.account_nonce or newest.max_fee < sight.base_fee
    if holds_up_the_rest and len(intent.live_attempts) <= rules.max_replacements:
        return Replace(cancels=newest.cancels)
    return Broadcast()


def next_nonce(account_nonce: int, intents: list[Intent]) -> int:
    """The smallest nonce that neither the chain nor an open intent has taken.

    Gaps left by abandoned intents are filled first, so that later nonces never wait for one that nobody sends.
    """
    taken = {intent.nonce for intent in intents if intent.state in HOLDS_NONCE}
    nonce = account_nonce
    while nonce in taken:
        nonce += 1
    return nonce


def room_for(account_nonce: int, holding: list[Intent], rules: Rules) -> int:
    """How many more intents may be sent now.

    Never none while a nonce below those in flight is free: they wait for whoever takes it.
    """
    in_flight = sum(intent.state in (IntentState.SIGNED, IntentState.SENT) for intent in holding)
    free = next_nonce(account_nonce, holding)
    waits = any((intent.nonce or 0) > free for intent in holding)
    return max(rules.max_in_flight - in_flight, 1 if waits else 0)


def has_gap(sight: Sight, holding: list[Intent], rules: Rules) -> bool:
    """Whether intents wait behind a nonce that nobody holds, for longer than they should.

    It takes a node that overstated the account's nonce, or a reorg below confirmation depth. Signing a held intent
    again under the free nonce could execute it twice, so the gap is filled with an empty transfer instead.
    """
    if not holding:
        return False
    lowest = min(holding, key=lambda intent: intent.newest.nonce)
    return lowest.newest.nonce > sight.account_nonce and _is_overdue(lowest, sight, rules)


def _is_overdue(intent: Intent, sight: Sight, rules: Rules) -> bool:
    newest = intent.newest
    return (
        sight.now - newest.signed_at >= rules.replace_after_s
        or sight.head - newest.signed_block >= rules.replace_after_blocks
    )


def check_order(intent: Intent, order: Order) -> None:
    """Refuse an order that makes no sense in the intent's state. Raises ChainError INTENT_STATE."""
    allowed = {
        Order.BUMP: {IntentState.SIGNED, IntentState.SENT},
        Order.CANCEL: {IntentState.QUEUED, IntentState.SIGNED, IntentState.SENT},
        Order.RESEND: {IntentState.SIGNED, IntentState.SENT, IntentState.FAILED, IntentState.CANCELLED},
    }[order]
    if intent.state not in allowed:
        names = " or ".join(sorted(state.value for state in allowed))
        raise ChainError(
            ChainErrorCode.INTENT_STATE,
            f"the transaction is {intent.state.value}; {order.value} needs one that is {names}",
        )
