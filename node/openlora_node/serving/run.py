"""The life of one request, from a right signature to its closing voucher. Order: reserve, run, receipt, voucher.

Whatever happens on the way, it ends in one of two books: a receipt, or an interruption that frees the reservation and
costs nothing. `run` is one task, owned by serving and not by the stream that asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

from ..admission import Admitted, OpenRun, Purse, Refusal, Visitor, can_pay, may_use
from ..attribution import Outcome, Part, Sampling
from ..engineclient.values import Chunk, EngineInfo, Mix
from ..journal import AlreadyDone, AlreadyRunning, EscrowSnapshot, KnownPipeline
from ..openai import Body, parse_body
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.pipeline import MixMethod, Pipeline
from ..protocol.pricing import max_fee
from ..protocol.structs import ReceiptStatus
from .desk import Desk, new_salt
from .ledgers import Ledgers, LiveLedger
from .ports import EngineLike
from .recent import Recent
from .response import Finished, Response, Stop, stopped_error
from .sampler import sampler_hash, seed_of

RETRY_MS = 500

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """An admitted request, ready to run."""

    visitor: Visitor
    body: Body
    mix: Mix
    engine: EngineLike
    info: EngineInfo
    parts: tuple[Part, ...]
    admitted: Admitted
    ledger: LiveLedger
    started_at: int


async def run(desk: Desk, response: Response, visitor: Visitor, recent: Recent) -> None:
    """Take a request from the door to the end of its response. Never raises but for its own cancellation."""
    try:
        await _live(desk, response, visitor, recent)
    except OpenLoraError as error:
        if not await _was_served(desk, response):
            desk.refused += 1
            response.fail(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, the payer hears of it and nobody reads its text
        _log.error("request %s failed: %s", response.digest.hex()[:12], _where(error))
        desk.refused += 1
        response.fail(OpenLoraError(ErrorCode.INTERNAL))
    finally:
        if response.finished is None and response.stored is None:
            response.fail(OpenLoraError(ErrorCode.DRAINING))
        response.forget_timer()


async def _live(desk: Desk, response: Response, visitor: Visitor, recent: Recent) -> None:
    standing = await desk.facts.standing(visitor)
    response.rightful = standing.may_sign
    if refusal := may_use(visitor, standing, desk.house, desk.clock()):
        raise refusal.error()
    body = parse_body(visitor.body, desk.options.max_body_bytes)
    choice = desk.engines.get(visitor.pipeline.base)
    if choice is None:
        raise OpenLoraError(ErrorCode.MODEL_NOT_FOUND)
    desk.facts.check_base(visitor.pipeline)
    desk.capacity.enter(visitor.payer, visitor.pipeline.base)
    job: _Job | None = None
    begun = desk.instant()
    closes = False
    try:
        job = await _admit(desk, response, visitor, body, choice(visitor.pipeline))
        if job is not None:
            await _serve(desk, response, job, begun)
            recent.add(response, desk.clock())
            closes = True
    finally:
        desk.capacity.ended(visitor.pipeline.base, response.generated > 0, closes)
        try:
            if closes and job is not None:
                await _close(desk, response, job.ledger)
        finally:
            desk.capacity.leave(visitor.payer, closes)


async def _was_served(desk: Desk, response: Response) -> bool:
    """Whether a request that was refused has its receipt: whatever it would cost now, it is never charged again."""
    if not response.rightful or response.prompt_tokens is not None:
        return False
    try:
        stored = await desk.journal.receipt(response.digest)
    except OpenLoraError:
        return False
    if stored is not None:
        response.gone(stored)
    return stored is not None


async def _admit(desk: Desk, response: Response, visitor: Visitor, body: Body, engine: EngineLike) -> _Job | None:
    """Judge what it costs and take nonce, voucher and reservation; None if it has its receipt already."""
    mix = mix_of(visitor.pipeline)
    info = await engine.info()
    prompt_tokens = await engine.count(body, mix)
    parts = await desk.facts.parts(visitor.pipeline, [royalty.owner for royalty in visitor.quote.quote.royalties])
    escrow = await desk.chain.escrow(visitor.payer, desk.house.node)
    await desk.release_late()
    ledger = await desk.ledgers.get(response.key, visitor.quote.schedule)
    async with ledger.lock:
        if response.stop_reason is not None:
            raise stopped_error(response.stop_reason)
        purse = Purse(
            prompt_tokens=prompt_tokens,
            choices=body.choices,
            max_tokens_per_choice=body.max_tokens,
            max_context=info.max_model_len if body.prompts == 1 else None,
            ledger=ledger.state(),
            grace=ledger.grace,
        )
        verdict = can_pay(visitor, purse)
        if isinstance(verdict, Refusal):
            raise verdict.error()
        outcome = await desk.journal.admit(
            visitor.request,
            visitor.signer,
            EscrowSnapshot(escrow.balance, escrow.thawing),
            opening=Ledgers.entry(ledger, visitor.opening) if visitor.opening else None,
            debt_allowed=desk.ledgers.grace_of(visitor.payer),
            pipeline=KnownPipeline(visitor.pipeline, tuple(royalty.rate for royalty in visitor.quote.quote.royalties)),
        )
        if isinstance(outcome, AlreadyDone):
            response.gone(outcome.stored)
            return None
        if isinstance(outcome, AlreadyRunning):
            raise OpenLoraError(ErrorCode.BUSY, "this request is under way", retry_after_ms=RETRY_MS)
        if visitor.opening is not None:
            ledger.offer(visitor.opening)
        ledger.begin(response.digest, _open_run(visitor, verdict))
    return _Job(visitor, body, mix, engine, info, parts, verdict, ledger, desk.clock())


async def _serve(desk: Desk, response: Response, job: _Job, begun: float) -> None:
    """Generate, then commit the receipt. Raises after the reservation was given back."""
    response.admit(job.admitted.prompt_tokens)
    work = asyncio.create_task(_work(desk, response, job, begun), name=f"generating {response!r}")
    response.on_stop(work.cancel)
    if response.stop_reason is not None:
        work.cancel()
    try:
        await _ended(work, response)
        status = ReceiptStatus.COMPLETE if response.stop_reason is None else ReceiptStatus.CANCELLED
        response.finish(await _receipt(desk, response, job, status))
    except BaseException:
        job.ledger.end(response.digest)
        job.ledger.stop_allowing(response.digest)
        if not _being_cancelled():
            await desk.release(response.digest)
        raise
    finally:
        response.on_stop(None)


async def _ended(work: asyncio.Task[None], response: Response) -> None:
    """Wait for the generation. Raises unless it ended in a way that a receipt can be written of."""
    try:
        await work
    except asyncio.CancelledError:
        if response.stop_reason is None or _being_cancelled():
            work.cancel()
            raise
    reason = response.stop_reason
    if reason is Stop.DRAINING or (reason is not None and not response.in_engine):
        raise stopped_error(reason)


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _work(desk: Desk, response: Response, job: _Job, begun: float) -> None:
    for adapter in job.visitor.pipeline.adapters:
        folder = await desk.artifacts.ensure(adapter.id)
        desk.facts.check_base(job.visitor.pipeline)
        await job.engine.ensure(adapter.id, folder)
    async with job.engine.generate(
        job.body,
        job.mix,
        max_tokens=job.admitted.tokens_per_choice,
        tenant=job.visitor.payer.hex(),
        request_id=response.digest.hex(),
    ) as chunks:
        response.in_engine = True
        await _pass_on(desk, response, job, chunks, begun)


async def _pass_on(desk: Desk, response: Response, job: _Job, chunks: AsyncIterator[Chunk], begun: float) -> None:
    most = job.visitor.request.value.max_tokens
    async for chunk in chunks:
        count = len(chunk.token_ids)
        if response.generated + count > most or chunk.choice >= job.body.choices:
            raise OpenLoraError(ErrorCode.ENGINE_FAILED, "the engine generated more than it was asked for")
        await _hold(desk, response, job.ledger, count)
        if response.stop_reason is not None:
            return
        if count and not response.generated:
            desk.capacity.started(job.visitor.pipeline.base, desk.instant() - begun)
        job.ledger.use(response.digest, count)
        desk.tokens.add(desk.instant(), count)
        response.add(chunk)


async def _hold(desk: Desk, response: Response, ledger: LiveLedger, count: int) -> None:
    """Wait while `count` tokens more would run too far past the newest voucher, or past who reads."""
    limit = desk.options.unpaid_tokens
    if (unpaid := ledger.unpaid_tokens()) > 0 and unpaid + count > limit:
        try:
            async with asyncio.timeout(desk.options.pay_s):
                while (unpaid := ledger.unpaid_tokens()) > 0 and unpaid + count > limit:
                    bell = ledger.changed.next
                    if not response.held:
                        response.held = max(1, count)
                        response.pause(ledger.due())
                    await bell.wait()
        except TimeoutError:
            response.mark_stopped(Stop.UNPAID)
            return
        finally:
            response.held = 0
            response.pause(None)
    if response.lead > desk.options.lead_tokens:
        try:
            async with asyncio.timeout(desk.options.stall_s):
                while response.lead > desk.options.lead_tokens:
                    await response.changed.next.wait()
        except TimeoutError:
            response.mark_stopped(Stop.LOST)


async def _receipt(desk: Desk, response: Response, job: _Job, status: ReceiptStatus) -> Finished:
    quote, admitted = job.visitor.quote, job.admitted
    most = max_fee(
        quote.schedule, quote.rates, admitted.prompt_tokens, response.generated, quote.quote.settlement_charge
    )
    job.ledger.allow(response.digest, most, desk.options.closing_s)
    reason = response.finish_reason(job.body.choices)
    output = response.output(job.body.choices)
    outcome = Outcome(
        status=status,
        signer=job.visitor.signer,
        rates=quote.rates,
        schedule=quote.schedule,
        settlement_charge=quote.quote.settlement_charge,
        parts=await desk.trace(job.parts, job.body.raw, output),
        sampling=Sampling(sampler_hash(job.body), seed_of(job.body), job.mix.seed),
        output=output,
        prompt_tokens=admitted.prompt_tokens,
        engine_digest=job.info.digest,
        started_at=job.started_at,
        finished_at=job.started_at,
        salt=new_salt(),
    )
    stored, draft = await desk.commit(response.digest, outcome)
    job.ledger.allow(response.digest, stored.receipt.value.fee, desk.options.closing_s)
    job.ledger.end(response.digest, draft.after)
    return Finished(stored, reason, draft.after, stored.receipt.value.finished_at, draft.evidence)


async def _close(desk: Desk, response: Response, ledger: LiveLedger) -> None:
    """Await the closing voucher; what it leaves unpaid afterwards is debt, and the journal knows it as that.

    Until then the payer's place is taken. Requests side by side share one voucher: what was signed for another's prompt
    may reach this receipt, so the payer's answer to it is waited for unless everything is paid.
    """
    finished = response.finished
    assert finished is not None
    try:
        async with asyncio.timeout(desk.options.closing_s):
            while True:
                bell = ledger.changed.next
                if ledger.covers(ledger.used()) or (response.answered and ledger.covers(finished.after)):
                    break
                await bell.wait()
    except TimeoutError:
        _log.info("no closing voucher for receipt %d: its fee is owed", finished.stored.receipt.value.seq)
    finally:
        response.close(ledger.voucher.cumulative_tokens if ledger.voucher else 0)


def mix_of(pipeline: Pipeline) -> Mix:
    """What the engine is told of a pipeline."""
    method = MixMethod(pipeline.method)
    seed = Mix.seed_of(pipeline.id) if method in (MixMethod.DARE_LINEAR, MixMethod.DARE_TIES) else 0
    return Mix(tuple((adapter.id, adapter.weight) for adapter in pipeline.adapters), method.name.lower(), seed)


def _open_run(visitor: Visitor, admitted: Admitted) -> OpenRun:
    quote, request = visitor.quote, visitor.request.value
    return OpenRun(quote.rates, quote.quote.settlement_charge, admitted.prompt_tokens, request.max_tokens)


def _where(error: BaseException) -> str:
    """The kind of an error and the line that raised it, without its text: that may quote a prompt."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" at {trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}" if trace else ""
    return f"{type(error).__name__}{place}"
