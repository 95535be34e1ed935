"""One request of a client from its body to a paid answer: picks a node, quotes, asks; before a token, asks another.

Every attempt is a new signed request to another node; the one before was cancelled and accounted for first. After the
first token there is no second attempt: the stream ends with what happened.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from ..journal import EscrowSnapshot
from ..network.routing import MAX_ATTEMPTS, Ask
from ..openai import Body
from ..protocol.errors import ErrorCode, OpenLoraError, PeerError, ProtocolError
from ..protocol.pricing import ComputeRates, max_fee
from .answer import Answer
from .attempt import Attempt, Finished, Order, is_failed
from .bodies import DEFAULT_CHAT_TOKENS, node_body
from .escrow import Escrows
from .lanes import Lanes
from .names import Names
from .offers import Offer
from .ports import Chain, Inference, Nodes
from .preparing import Prepared, Preparer
from .purse import Purse
from .quotes import Quotes
from .tokenizers import Tokenizers

KEPT_OUT_S = 3_600.0
"""How long a node that lied is not asked."""
MAX_KEPT_OUT = 1_000
PATIENCE_S = 120.0
"""Longest wait for a place that another request of ours holds."""
ROOM_WAIT_S = 1.0

_ANEW = frozenset({ErrorCode.QUOTE_EXPIRED, ErrorCode.QUOTE_UNKNOWN, ErrorCode.MAX_FEE_TOO_LOW})
_BOOKS = frozenset({ErrorCode.DEBT_OUTSTANDING, ErrorCode.VOUCHER_TOO_LOW, ErrorCode.VOUCHER_CONFLICT})
_FULL = frozenset({ErrorCode.BUSY, ErrorCode.ESCROW_TOO_LOW})
_OURS = frozenset(
    {ErrorCode.SPEND_CAP, ErrorCode.STORAGE_FULL, ErrorCode.STORAGE_READ_ONLY, ErrorCode.STORAGE_FAILED}
    | {ErrorCode.JOURNAL_CORRUPT, ErrorCode.TOO_MANY_NONCES}
)
"""What no other node mends, unless a node only says so."""

logger = logging.getLogger(__name__)


@dataclass
class _Run:
    """One client request while it runs."""

    prepared: Prepared
    answer: Answer
    attempt: Attempt | None = None
    gone: bool = False
    tried: set[bytes] = field(default_factory=set)
    full: set[bytes] = field(default_factory=set)
    """Nodes where requests of ours hold the places."""
    vanished: set[bytes] = field(default_factory=set)
    """Nodes that were lost before the first token."""
    revisited: bool = False
    last: OpenLoraError | None = None
    """How the newest attempt failed."""
    lost: int = 0

    def left(self) -> bool:
        return self.gone

    def hang_up(self) -> None:
        self.gone = True
        if self.attempt is not None:
            self.attempt.hang_up()


Recover = Callable[[bytes], Coroutine[Any, Any, None]]
"""Brings the books with a node in line."""
Spawn = Callable[[Coroutine[Any, Any, None], str], object]
"""Runs a named task that the gateway owns."""


class Payer:
    """Turns bodies into answers. One for the whole gateway."""

    def __init__(
        self,
        *,
        purse: Purse,
        chain: Chain,
        nodes: Nodes,
        inference: Inference,
        escrows: Escrows,
        tokenizers: Tokenizers,
        names: Names,
        held: Quotes,
        recover: Recover,
        spawn: Spawn,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.purse = purse
        self.chain = chain
        self.nodes = nodes
        self.escrows = escrows
        self._inference = inference
        self._preparer = Preparer(purse.payer, chain, nodes, tokenizers, names)
        self._recover = recover
        self._spawn = spawn
        self._monotonic = monotonic
        self.held = held
        self._kept_out: OrderedDict[bytes, float] = OrderedDict()
        self._lanes = Lanes()

    @property
    def names(self) -> Names:
        """The names that bodies may use."""
        return self._preparer.names

    async def prepare(self, body: Body) -> Prepared:
        """Understand a body. Raises BodyError, MODEL_NOT_FOUND, ACCESS_DENIED, CHAIN_FAILED."""
        return await self._preparer.prepare(body)

    def start(self, prepared: Prepared) -> Answer:
        """Begin to earn the answer. The task outlives a client that leaves: what came is checked and paid."""
        answer = Answer()
        run = _Run(prepared, answer)
        answer.on_hang_up = run.hang_up
        self._spawn(self._run(run), f"request for {prepared.label}"[:80])
        return answer

    async def quotes(self, prepared: Prepared, at_most: int = 3) -> list[tuple[Offer, int, int]]:
        """(offer, max tokens a choice, most it costs in wei) of some nodes. Raises NO_NODE and what nodes say."""
        found: list[tuple[Offer, int, int]] = []
        tried = set(self._liars())
        last: OpenLoraError | None = None
        while len(found) < at_most:
            node = await self.nodes.pick(prepared.pipeline.base, self._ask(prepared), tried)
            if node is None:
                break
            tried.add(node)
            self._tell(prepared, node, OpenLoraError(ErrorCode.CANCELLED))
            try:
                exchange = await self._inference.open(node)
                try:
                    offer = await self.held.offer(exchange, node, prepared.pipeline)
                finally:
                    await exchange.aclose()
                tokens = self._max_tokens(prepared, offer, self.purse.caps.per_request)
                found.append((offer, tokens, offer.most(prepared.prompt_tokens, tokens * prepared.body.choices)))
            except OpenLoraError as error:
                last = error
        if not found:
            raise last or self._nobody(prepared)
        return found

    # one run

    async def _run(self, run: _Run) -> None:
        try:
            await self._attempts(run)
        except OpenLoraError as error:
            run.answer.fail(error)
        except asyncio.CancelledError:
            run.answer.fail(OpenLoraError(ErrorCode.CANCELLED, "the gateway is stopping"))
            raise
        except Exception:
            logger.exception("a request failed by a fault of ours")
            run.answer.fail(OpenLoraError(ErrorCode.INTERNAL))

    async def _attempts(self, run: _Run) -> None:
        again: bytes | None = None
        attempts, deadline = 0, self._monotonic() + PATIENCE_S
        run.tried |= self._liars()
        while attempts < MAX_ATTEMPTS:
            if run.left():
                raise OpenLoraError(ErrorCode.CANCELLED)
            node = await self._choose(run) if again is None else again
            if node is None:
                await self._another_round(run, deadline)
                continue
            run.tried.add(node)
            if again is None and self._lanes.is_full(node):
                run.full.add(node)
                self._tell(run.prepared, node, OpenLoraError(ErrorCode.CANCELLED))
                continue
            retried, again = again is not None, None
            try:
                await self._visit(run, node)
            except OpenLoraError as error:
                attempts += await self._after(run, node, error)
                if not retried and error.code in _ANEW | _BOOKS:
                    self.held.forget(node, run.prepared.pipeline.id)
                    again = node
            else:
                return
        assert run.last is not None
        raise run.last

    async def _another_round(self, run: _Run, deadline: float) -> None:
        """Nobody is left to ask: wait for a place, or go back once to where only the way broke. Raises otherwise."""
        if self._monotonic() < deadline and any(map(self._lanes.holds, run.full)):
            # Requests of ours hold every place there is: one of them will end.
            await self._lanes.room(ROOM_WAIT_S)
            run.tried -= run.full
            run.full.clear()
        elif run.vanished:
            run.tried -= run.vanished
            run.vanished.clear()
            run.revisited = True
        else:
            raise self._nobody(run.prepared) if run.last is None else run.last

    async def _after(self, run: _Run, node: bytes, error: OpenLoraError) -> int:
        """An attempt failed: raises what ends the request, else says how many attempts it counts as."""
        started = run.attempt is not None and run.attempt.started
        run.lost += run.attempt.lost if run.attempt else 0
        run.attempt = None
        self._report(run.prepared, node, error)
        final = error.code in _OURS and not isinstance(error, TooDear | PeerError)
        if started or run.left() or final or _is_the_requests(error, run.last):
            raise error
        run.last = error
        if error.code is ErrorCode.NODE_LOST and not run.revisited:
            run.vanished.add(node)
        if error.code in _BOOKS:
            await self._recover(node)
        if error.code in _FULL and self._lanes.holds(node):
            run.full.add(node)
            return 0
        return 1

    async def _visit(self, run: _Run, node: bytes) -> None:
        """One attempt, counted among those under way at the node."""
        self._lanes.enter(node, id(run))
        completed = False
        try:
            await self._try(run, node)
            completed = True
        except OpenLoraError as error:
            if error.code is ErrorCode.BUSY:
                self._lanes.refused(node)
            raise
        finally:
            self._lanes.leave(node, id(run), completed=completed)

    async def _choose(self, run: _Run) -> bytes | None:
        """A node whose escrow pays for the request, else one that may be funded: then it is, and waited for."""
        ask = self._ask(run.prepared)
        skipped = set(run.tried)
        unfunded: list[bytes] = []
        while (node := await self.nodes.pick(run.prepared.pipeline.base, ask, skipped)) is not None:
            skipped.add(node)
            # Its fee is not quoted yet: what is free must cover the dearest request that is allowed, or it is funded.
            if await self.escrows.is_ready(node, 1):
                if unfunded:
                    self._spawn(self._top_up(unfunded[0]), "funding an escrow")
                return node
            if self.escrows.may_fund(node):
                unfunded.append(node)
            self._tell(run.prepared, node, OpenLoraError(ErrorCode.ESCROW_TOO_LOW))
        return unfunded[0] if unfunded else None

    async def _try(self, run: _Run, node: bytes) -> None:
        prepared = run.prepared
        exchange = await self._inference.open(node)
        try:
            offer = await self.held.offer(exchange, node, prepared.pipeline)
            cap = self.purse.caps.per_request - run.lost
            tokens = self._max_tokens(prepared, offer, cap)
            fee = offer.most(prepared.prompt_tokens, tokens * prepared.body.choices)
            if fee > cap:
                raise _too_dear(f"this may cost {fee} wei", cap)
            escrow = await self._funded(node, fee)
            if not offer.is_fresh(self.purse.clock()):
                raise OpenLoraError(ErrorCode.QUOTE_EXPIRED, "the quote expired while the deposit was waited for")
            order = Order(
                body=node_body(prepared.body, prepared.pipeline.base, tokens),
                pipeline=prepared.pipeline,
                model=prepared.label,
                prompt_tokens=prepared.prompt_tokens,
                max_tokens=tokens * prepared.body.choices,
                choices=prepared.body.choices,
                decode=prepared.decode,
                longest_token=prepared.longest_token,
                logprobs=prepared.body.logprobs_a_token,
            )
            run.answer.node = node
            run.attempt = Attempt(
                exchange, self.purse, self.chain, order, offer, lambda: self._lanes.accepted(node, id(run))
            )
            if run.left():
                raise OpenLoraError(ErrorCode.CANCELLED)
            finished, closing = await run.attempt.run(run.answer.put, escrow, fee)
            self._finish(run, node, finished)
            await run.attempt.close(closing)
        finally:
            await exchange.aclose()
        self._spawn(self._top_up(node), "topping up an escrow")
        if is_failed(finished):
            raise OpenLoraError(ErrorCode.ENGINE_FAILED, "the node says that the run failed; it costs nothing")

    def _finish(self, run: _Run, node: bytes, finished: Finished) -> None:
        if not is_failed(finished):
            self._tell(run.prepared, node, None)
            if finished.receipt.compute:
                self.held.paid(node, run.prepared.pipeline.id)
            run.answer.finish(finished)

    async def _funded(self, node: bytes, fee: int) -> EscrowSnapshot:
        if not await self.escrows.is_ready(node, fee):
            await self.escrows.fund(node, fee)
        return await self.escrows.snapshot(node)

    async def _top_up(self, node: bytes) -> None:
        try:
            if self.escrows.may_fund(node):
                await self.escrows.top_up(node)
        except OpenLoraError as error:
            logger.warning("the escrow with node %s is not topped up: %s", node.hex()[:8], error)

    def _max_tokens(self, prepared: Prepared, offer: Offer, cap: int) -> int:
        """The bound on each choice. Where the client sets none: what the cap pays for, up to a common length."""
        if prepared.body.max_tokens is not None:
            return prepared.body.max_tokens
        choices = prepared.body.choices
        affordable = offer.affordable_tokens(prepared.prompt_tokens, cap, DEFAULT_CHAT_TOKENS * choices)
        if affordable < choices:
            raise _too_dear(f"the prompt alone may cost {offer.most(prepared.prompt_tokens, choices)} wei", cap)
        return affordable // choices

    def _ask(self, prepared: Prepared) -> Ask:
        least = prepared.body.max_tokens if prepared.body.max_tokens is not None else 1
        tokens = least * prepared.body.choices
        royalties = max_fee(prepared.schedule, ComputeRates(0, 0), prepared.prompt_tokens, tokens)
        return Ask(
            adapters=prepared.adapters,
            prompt_tokens=prepared.prompt_tokens,
            max_tokens=tokens,
            max_fee=self.purse.caps.per_request,
            royalties=royalties,
            pipeline=prepared.pipeline.id,
        )

    # nodes

    def _tell(self, prepared: Prepared, node: bytes, error: OpenLoraError | None) -> None:
        self.nodes.report(node, error, prepared.pipeline.base, self._ask(prepared))

    def _report(self, prepared: Prepared, node: bytes, error: OpenLoraError) -> None:
        self._tell(prepared, node, error)
        if isinstance(error, ProtocolError) or error.code is ErrorCode.RECEIPT_INVALID:
            logger.warning("node %s lied and is not asked for an hour: %s", node.hex()[:8], error.message)
            self._kept_out[node] = self._monotonic() + KEPT_OUT_S
            while len(self._kept_out) > MAX_KEPT_OUT:
                self._kept_out.popitem(last=False)

    def _liars(self) -> set[bytes]:
        now = self._monotonic()
        return {node for node, until in self._kept_out.items() if until > now}

    def _nobody(self, prepared: Prepared) -> OpenLoraError:
        return OpenLoraError(
            ErrorCode.NO_NODE,
            f"no reachable node serves {prepared.label} for at most gateway.spend_per_request"
            f" ({self.purse.caps.per_request} wei): wait, raise it, or lower max_tokens",
            retry_after_ms=5_000,
        )


class TooDear(OpenLoraError):
    """One node's price is beyond the cap; another's may not be."""


def _too_dear(what: str, cap: int) -> TooDear:
    return TooDear(
        ErrorCode.SPEND_CAP, f"{what}, gateway.spend_per_request leaves {cap} wei: lower max_tokens, or raise it"
    )


def _is_the_requests(error: OpenLoraError, last: OpenLoraError | None) -> bool:
    """Whether two nodes say the same of what no node can mend: then it is the request."""
    return not error.code.retryable and last is not None and error.code is last.code and error.code not in _BOOKS
