"""Serving: takes what comes on inference streams to the door, runs what is admitted, answers what is asked again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from ..admission import Claim, House, Knock, Rates, Refusal, Visitor, examine, signer_of
from ..journal import Journal, LedgerKey, Reader
from ..protocol import messages
from ..protocol.crypto import Signer
from ..protocol.eip712 import Domain
from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.pipeline import Pipeline
from ..protocol.structs import Voucher
from .accounts import Accounts
from .capacity import Capacity
from .desk import Desk
from .facts import Facts
from .follow import follow
from .ledgers import Ledgers, is_old, read_voucher
from .ports import (
    Alternatives,
    ArtifactsLike,
    ChainLike,
    EngineChoice,
    InboundLike,
    Prices,
    ServingLoad,
    ServingOptions,
    Tracing,
    no_alternatives,
    only_declared,
)
from .quoting import Quoting
from .recent import Recent
from .response import Response, Stop
from .run import run

PRUNE_EVERY_S = 60.0
STOP_S = 5.0
"""How long the engine has to let go of what is stopped."""
_WITH_ALTERNATIVES = frozenset({ErrorCode.BUSY, ErrorCode.DRAINING, ErrorCode.ENGINE_UNAVAILABLE})

_log = logging.getLogger(__name__)


class Serving:
    """One node's serving. `handle` is what each inbound stream request is given to; `start` comes first.

    `engines` gives for each base's artifact id what chooses the engine of a request. `clock` gives unix seconds and is
    called from the journal's thread too, `instant` seconds that only grow.
    """

    def __init__(
        self,
        *,
        node: bytes,
        key: Signer,
        chain: ChainLike,
        journal: Journal,
        engines: Mapping[bytes, EngineChoice],
        artifacts: ArtifactsLike,
        prices: Callable[[], Prices],
        options: ServingOptions | None = None,
        clock: Callable[[], int] = lambda: int(time.time()),
        instant: Callable[[], float] = time.monotonic,
        alternatives: Alternatives = no_alternatives,
        trace: Tracing = only_declared,
    ) -> None:
        self._options = options = options or ServingOptions()
        domain = chain.domain
        others = (
            Domain(chain_id=chain_id, verifying_contract=domain.verifying_contract)
            for chain_id in options.other_chains
            if chain_id != domain.chain_id
        )
        self._desk = Desk(
            house=House(domain, node, options.max_body_bytes, tuple(others)),
            key=key,
            chain=chain,
            journal=journal,
            engines=dict(engines),
            artifacts=artifacts,
            options=options,
            clock=clock,
            instant=instant,
            facts=Facts(chain, artifacts),
            ledgers=Ledgers(journal, options.max_ledgers),
            capacity=Capacity(options.queue, options.in_flight_per_payer),
            trace=trace,
        )
        self._rates = Rates(peer=options.peer, ip=options.ip, signer=options.signer)
        self._quoting = Quoting(self._desk, prices)
        self._accounts = Accounts(self._desk, self._rates)
        self._recent = Recent(options.recent_count, options.recent_bytes, options.recent_s)
        self._alternatives = alternatives
        self._live: dict[bytes, Response] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting: asyncio.Task[None] | None = None
        self._draining = False
        self._pruned_at = instant()

    def __repr__(self) -> str:
        return f"Serving({len(self._live)} responses, {'draining' if self._draining else 'open'})"

    async def start(self) -> None:
        """Release what a lost process had reserved. Done once, before the first request; `handle` waits for it."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(), name="serving start")
        if not self._starting.done() or self._starting.exception():
            await asyncio.shield(self._starting)

    async def handle(self, inbound: InboundLike) -> None:
        """One request of `/openlora/infer/1` to its end. Raises the OpenLoraError that answers it."""
        await self.start()
        first = inbound.first
        try:
            if isinstance(first, messages.AskQuote):
                await self._quote(inbound, first)
            else:
                await self._infer(inbound, first)
        except OpenLoraError as error:
            raise self._with_alternatives(error, first.pipeline) from None

    async def account(self, message: messages.GetAccount) -> messages.Account:
        """Answer `account?`."""
        await self.start()
        return await self._accounts.account(message.query)

    async def voucher(self, message: messages.PutVoucher) -> messages.VoucherReply:
        """Answer `voucher`."""
        await self.start()
        return await self._accounts.voucher(message.voucher)

    async def proof(self, message: messages.GetProof) -> messages.Proof:
        """Answer `proof?`."""
        await self.start()
        return await self._accounts.proof(message.query, message.receipt)

    def load(self) -> ServingLoad:
        """How busy this node is: what its adverts say."""
        capacity = self._desk.capacity
        return ServingLoad(
            queue=capacity.waiting,
            running=capacity.running,
            closing=capacity.closing,
            tokens_per_second=self._desk.tokens.rate(self._desk.instant()),
            draining=self._draining,
            responses=self._desk.receipts,
            refused=self._desk.refused,
        )

    def pause(self) -> None:
        """Refuse new requests from now on; those under way go on."""
        self._draining = True

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests and wait for those under way; what runs after `timeout_s` ends without a receipt."""
        self.pause()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        for response in list(self._live.values()):
            response.stop(Stop.DRAINING)
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                while any(response.finished is None for response in self._live.values()):
                    await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in self._tasks:  # what is left waits for closing vouchers, or for an engine that does not answer
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _start(self) -> None:
        released = await self._desk.journal.interrupt_running()
        if released:
            _log.warning("%d requests were running when the last process ended: released, they cost nothing", released)
        await self._desk.journal.prune()
        newest = await asyncio.to_thread(self._newest_finish)
        self._desk.newest_finish = max(self._desk.newest_finish, newest)

    def _newest_finish(self) -> int:
        with Reader(self._desk.journal.path) as reader:
            newest = reader.newest_receipt(self._desk.house.node)
        return newest.receipt.value.finished_at if newest else 0

    async def _quote(self, inbound: InboundLike, ask: messages.AskQuote) -> None:
        self._check_open()
        if refusal := self._rates.peer(inbound.peer.id, inbound.remote_ip, self._desk.instant()):
            raise refusal.error()
        quote = await self._quoting.quote(ask.payer, ask.pipeline, inbound.peer.id)
        await inbound.send(messages.QuoteReply(id=ask.id, quote=quote.signed.pack()))

    async def _infer(self, inbound: InboundLike, message: messages.Infer) -> None:
        knock = Knock(
            message.request, message.pipeline, message.body, message.voucher, inbound.peer.id, inbound.remote_ip
        )
        verdict = examine(
            knock,
            self._desk.house,
            self._rates,
            self._quoting.find,
            now=self._desk.clock(),
            instant=self._desk.instant(),
        )
        if isinstance(verdict, Refusal):
            response = await self._recall(verdict)
        else:
            response = self._find(verdict.digest) or self._begin(verdict)
        del message, knock, verdict
        options = self._options
        await follow(inbound, response, self._take, orphan_s=options.orphan_s, answer_s=options.answer_s)

    def _find(self, digest: bytes) -> Response | None:
        return self._live.get(digest) or self._recent.find(digest, self._desk.clock())

    async def _recall(self, refusal: Refusal) -> Response:
        """A late request may be one that was served: its signer gets what is left of it. Raises the refusal."""
        claim = refusal.claim
        if claim is None or not (held := await self._remembered(claim)):
            self._desk.refused += 1
            raise refusal.error()
        response, key = held
        signer = signer_of(claim, self._desk.house)
        if isinstance(signer, Refusal) or signer != key:
            self._desk.refused += 1
            raise (signer if isinstance(signer, Refusal) else refusal).error()
        return response

    async def _remembered(self, claim: Claim) -> tuple[Response, bytes] | None:
        if (response := self._find(claim.digest)) is not None:
            return response, response.key.signer
        return await asyncio.to_thread(self._stored, claim)

    def _stored(self, claim: Claim) -> tuple[Response, bytes] | None:
        with Reader(self._desk.journal.path) as reader:
            stored, request = reader.receipt(claim.digest), reader.request(claim.digest)
        if stored is None or request is None:
            return None
        response = Response(claim.digest, LedgerKey.of(claim.request.value, request[1]))
        response.gone(stored)
        return response, request[1]

    def _begin(self, visitor: Visitor) -> Response:
        self._check_open()
        response = Response(visitor.digest, LedgerKey.of(visitor.request.value, visitor.signer))
        self._live[visitor.digest] = response
        task = asyncio.create_task(self._run(response, visitor), name=f"response {visitor.digest.hex()[:12]}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return response

    async def _run(self, response: Response, visitor: Visitor) -> None:
        try:
            await self._prune()
            await run(self._desk, response, visitor, self._recent)
        finally:
            self._live.pop(response.digest, None)

    async def _take(self, response: Response, packed: bytes) -> Voucher:
        """A voucher that came on a stream, for the ledger of the response that the stream follows."""
        signed = read_voucher(packed, response.key)
        ledger = await self._desk.ledgers.find(response.key)
        if ledger is None:
            raise OpenLoraError(ErrorCode.NOT_FOUND, "this request is not admitted yet")
        if response.finished is not None:
            response.answered = True
            ledger.changed.fire()
        # Many responses of one ledger ask at once, and the first answer may do for all.
        if is_old(ledger, signed.value):
            return signed.value
        if signed.signer(self._desk.house.domain) != response.key.signer:
            raise OpenLoraError(ErrorCode.BAD_SIGNATURE, "the request's signer signs its vouchers too")
        if await self._desk.ledgers.pay(ledger, signed) and response.held:
            unpaid = ledger.unpaid_tokens()
            if unpaid > 0 and unpaid + response.held > self._options.unpaid_tokens:
                response.pause(ledger.due())  # not enough: say again what is
        return signed.value

    async def _prune(self) -> None:
        """Now and then: forget interrupted requests that nobody can send again."""
        now = self._desk.instant()
        if now - self._pruned_at >= PRUNE_EVERY_S:
            self._pruned_at = now
            await self._desk.journal.prune()

    def _check_open(self) -> None:
        if self._draining:
            raise OpenLoraError(ErrorCode.DRAINING)

    def _with_alternatives(self, error: OpenLoraError, packed: bytes) -> OpenLoraError:
        if error.code not in _WITH_ALTERNATIVES or error.alternatives:
            return error
        try:
            others = self._alternatives(Pipeline.unpack(packed))
        except ProtocolError:
            return error
        return OpenLoraError(
            error.code, error.message, retry_after_ms=error.retry_after_ms, alternatives=tuple(others)[:8]
        )
