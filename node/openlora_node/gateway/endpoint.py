"""The OpenAI endpoint: completions, streamed or whole, models with their prices, quotes, what was spent, health."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from ..journal.database import Transaction
from ..openai import Kind, parse_body
from ..openai.responses import Envelope, ModelEntry, StreamedResponse, WholeResponse, model_list
from ..openai.sse import DONE, HEADERS, error_event
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.health import Level, ServiceHealth
from ..protocol.ids import format_address, format_artifact_id, format_bytes, parse_bytes32
from . import history
from .answer import Answer
from .attempt import Finished
from .door import doorman, read_body
from .guard import Guard
from .offers import Offer
from .payer import Payer
from .preparing import Prepared
from .progress import Piece
from .proofs import Proofs
from .texts import Texts

MAX_IN_FLIGHT = 256
STALL_S = 60.0
"""A client that reads nothing for so long is taken for gone."""
MAX_ROWS = 1_000

logger = logging.getLogger(__name__)

Health = Callable[[], Awaitable[list[ServiceHealth]]]


class Kept:
    """What came of each choice, for the texts that are kept; with no choices it keeps nothing."""

    def __init__(self, choices: int) -> None:
        self._texts: list[list[str]] = [[] for _ in range(choices)]
        self.tokens: list[list[int]] = [[] for _ in range(choices)]

    def add(self, piece: Piece) -> None:
        """One more piece."""
        if self._texts:
            self._texts[piece.choice].append(piece.text)
            self.tokens[piece.choice] += piece.token_ids

    def outputs(self) -> list[str]:
        """The text of each choice."""
        return ["".join(texts) for texts in self._texts]


class Endpoint:
    """The routes over one payer."""

    def __init__(
        self,
        payer: Payer,
        guard: Guard,
        health: Health,
        *,
        max_body: int,
        proofs: Proofs | None = None,
        texts: Texts | None = None,
    ) -> None:
        self._payer = payer
        self._guard = guard
        self.health = health
        self._max_body = max_body
        self._proofs = proofs
        self._texts = texts
        self._in_flight = 0

    def app(self) -> web.Application:
        """The application to serve."""
        routes = [
            web.post("/v1/chat/completions", self.chat),
            web.post("/v1/completions", self.completion),
            web.post("/v1/quote", self.quote),
            web.get("/v1/models", self.models),
            web.get("/healthz", self.healthz),
            web.get("/spend", self.spend),
            web.get("/receipts/{digest}/proof", self.proof),
        ]
        paths = frozenset(route.path for route in routes)
        app = web.Application(middlewares=[doorman(self._guard, paths)], client_max_size=self._max_body)
        app.add_routes(routes)
        return app

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        return await self._complete(request, "chat")

    async def completion(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/completions."""
        return await self._complete(request, "completion")

    async def _complete(self, request: web.Request, kind: Kind) -> web.StreamResponse:
        if self._in_flight >= MAX_IN_FLIGHT:
            raise OpenLoraError(ErrorCode.BUSY, "too many requests are in flight here", retry_after_ms=1_000)
        self._in_flight += 1
        try:
            body = parse_body(await read_body(request, self._max_body), self._max_body, kind)
            prepared = await self._payer.prepare(body)
            answer = self._payer.start(prepared)
            try:
                if body.stream:
                    return await self._stream(request, prepared, answer)
                return await self._whole(prepared, answer)
            finally:
                answer.hang_up()
        finally:
            self._in_flight -= 1

    async def _whole(self, prepared: Prepared, answer: Answer) -> web.Response:
        whole = WholeResponse(self._envelope(prepared))
        kept = Kept(prepared.body.choices if self._texts is not None else 0)
        async for piece in answer:
            whole.add(piece.choice, piece.text, piece.token_ids, piece.logprobs)
            kept.add(piece)
        finished = _finished(answer)
        for choice, reason in enumerate(finish_reasons(finished, prepared.body.choices)):
            whole.finish(choice, reason)
        await self._keep(prepared, finished, kept)
        facts = history.receipt_facts(finished.stored.digest, finished.receipt, finished.offer)
        return web.Response(body=whole.encode(facts), content_type="application/json", headers=fee_headers(facts))

    async def _stream(self, request: web.Request, prepared: Prepared, answer: Answer) -> web.StreamResponse:
        """Nothing is sent before the first token: a request that fails earlier is answered with its status."""
        first = await anext(answer, None)
        headers = {**HEADERS, "X-OpenLoRA-Node": format_bytes(answer.node)} if answer.node else dict(HEADERS)
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        streamed = StreamedResponse(self._envelope(prepared))
        kept = Kept(prepared.body.choices if self._texts is not None else 0)

        async def send(data: bytes) -> None:
            async with asyncio.timeout(STALL_S):
                await response.write(data)

        async def send_piece(piece: Piece) -> None:
            kept.add(piece)
            await send(streamed.chunk(piece.choice, piece.text, piece.token_ids, piece.logprobs))

        try:
            if first is not None:
                await send_piece(first)
            async for piece in answer:
                await send_piece(piece)
            finished = _finished(answer)
            await self._keep(prepared, finished, kept)
            facts = history.receipt_facts(finished.stored.digest, finished.receipt, finished.offer)
            reasons = finish_reasons(finished, prepared.body.choices)
            for choice, reason in enumerate(reasons):
                last = choice == len(reasons) - 1
                await send(streamed.chunk(choice, "", finish_reason=reason, extra=facts if last else None))
            if prepared.body.include_usage:
                await send(streamed.usage(facts))
            await send(DONE)
        except OpenLoraError as error:
            with contextlib.suppress(TimeoutError):
                await send(error_event(error))
        except TimeoutError:
            raise ConnectionResetError("the client reads nothing") from None
        return response

    async def quote(self, request: web.Request) -> web.Response:
        """POST /v1/quote: the body of a completion; what it would cost at most, at up to three nodes."""
        body = parse_body(await read_body(request, self._max_body), self._max_body)
        prepared = await self._payer.prepare(body)
        offers = await self._payer.quotes(prepared)
        return _json(quote_facts(prepared, offers))

    async def models(self, _: web.Request) -> web.Response:
        """GET /v1/models: the names with what they cost."""
        return web.Response(body=model_list(await self._models()), content_type="application/json")

    async def _models(self) -> list[ModelEntry]:
        names = self._payer.names
        entries = []
        prices: dict[bytes, dict[str, Any]] = {}
        context: dict[bytes, int] = {}
        for base in names.bases.values():
            offers = await self._payer.nodes.offers(base.id)
            context[base.id] = max((offer.max_context for offer in offers), default=0)
            prices[base.id] = {
                "nodes": len(offers),
                "inputRate": str(min((offer.input_rate for offer in offers), default=0)) if offers else None,
                "outputRate": str(min((offer.output_rate for offer in offers), default=0)) if offers else None,
            }
            royalty = (await self._payer.chain.terms(base.id)).rate
            entry = ModelEntry(
                id=base.name,
                root=format_artifact_id(base.id),
                openlora={**prices[base.id], "royaltyRate": str(royalty)},
            )
            if context[base.id]:
                entry.max_model_len = context[base.id]
            entries.append(entry)
        for adapter in names.adapters.values():
            royalty = (await self._payer.chain.terms(adapter.id)).rate
            parent = names.name_of(adapter.base)
            entry = ModelEntry(
                id=f"{parent}+{adapter.name}",
                root=format_artifact_id(adapter.id),
                parent=parent,
                openlora={**prices.get(adapter.base, {}), "royaltyRate": str(royalty)},
            )
            if context.get(adapter.base):
                entry.max_model_len = context[adapter.base]
            entries.append(entry)
        return entries

    async def healthz(self, _: web.Request) -> web.Response:
        """GET /healthz: 200 while requests can be taken, also with something amiss; 503 while they cannot."""
        services = await self.health()
        worst = max((_ORDER[service.level] for service in services), default=0)
        return _json(
            {
                "status": ("ok", "degraded", "unavailable")[worst],
                "services": [
                    {
                        "name": service.name,
                        "level": service.level.value,
                        "reason": service.reason,
                        "since": service.since,
                    }
                    for service in services
                ],
            },
            503 if worst == 2 else 200,
        )

    async def spend(self, request: web.Request) -> web.Response:
        """GET /spend?limit=N: what was spent of the caps, the newest requests."""
        text = request.query.get("limit", "20")
        limit = int(text) if text.isdecimal() and len(text) < 6 else 20
        purse = self._payer.purse

        def read(tx: Transaction) -> dict[str, Any]:
            told = history.summary(tx, purse.clock(), purse.caps.per_request, purse.caps.per_day)
            return {**told, "requests": history.rows(tx, purse.domain, 0, min(limit, MAX_ROWS))}

        return _json(await purse.journal.transact(read))

    async def proof(self, request: web.Request) -> web.Response:
        """GET /receipts/0x…/proof: the bundle of a receipt paid from here, its path fetched from its node, checked."""
        if self._proofs is None:
            raise OpenLoraError(ErrorCode.NOT_FOUND)
        return _json((await self._proofs.fetch(parse_bytes32(request.match_info["digest"]))).to_json())

    def _envelope(self, prepared: Prepared) -> Envelope:
        body = prepared.body
        return Envelope(
            body, secrets.token_hex(12), self._payer.purse.clock(), body.model or prepared.label, prepared.prompt_tokens
        )

    async def _keep(self, prepared: Prepared, finished: Finished, kept: Kept) -> None:
        if self._texts is None:
            return
        asked = ("messages", "prompt")
        prompt: dict[str, Any] = {name: value for name, value in prepared.body.raw.items() if name in asked}
        try:
            await asyncio.to_thread(self._texts.keep, finished.stored.digest, prompt, kept.outputs(), kept.tokens)
        except OpenLoraError as error:
            logger.warning("%s", error.message)


_ORDER = {Level.UP: 0, Level.INITIALIZING: 1, Level.DEGRADED: 1, Level.DOWN: 2}


def finish_reasons(finished: Finished, choices: int) -> list[str]:
    """Why each choice ended. The node says it for the response; of many choices each is judged by its length."""
    reason = finished.finish_reason or "stop"
    if choices == 1:
        return [reason]
    bound = finished.ticket.request.value.max_tokens // choices
    return ["length" if length >= bound else "stop" if reason == "length" else reason for length in finished.lengths]


def fee_headers(facts: dict[str, Any]) -> dict[str, str]:
    """Fee in wei, receipt id and node id."""
    return {
        "X-OpenLoRA-Fee": facts["fee"],
        "X-OpenLoRA-Receipt": facts["receipt"],
        "X-OpenLoRA-Node": facts["node"],
    }


def quote_facts(prepared: Prepared, offers: list[tuple[Offer, int, int]]) -> dict[str, Any]:
    """The answer of /v1/quote. Rates are wei per 1,000,000 tokens, amounts wei, as decimal text."""
    return {
        "model": prepared.label,
        "pipeline": format_bytes(prepared.pipeline.id),
        "promptTokens": prepared.prompt_tokens,
        "quotes": [
            {
                "node": format_bytes(offer.node),
                "inputRate": str(offer.quote.input_rate),
                "outputRate": str(offer.quote.output_rate),
                "settlementCharge": str(offer.quote.settlement_charge),
                "royalties": [
                    {
                        "artifact": format_artifact_id(royalty.artifact),
                        "owner": format_address(royalty.owner),
                        "rate": str(royalty.rate),
                    }
                    for royalty in offer.quote.royalties
                ],
                "maxTokens": tokens,
                "maxFee": str(most),
                "expiresAt": offer.quote.expires_at,
                "quote": format_bytes(offer.digest),
            }
            for offer, tokens, most in offers
        ],
    }


def _finished(answer: Answer) -> Finished:
    if answer.finished is None:
        raise OpenLoraError(ErrorCode.CANCELLED)
    return answer.finished


def _json(value: Any, status: int = 200) -> web.Response:
    return web.json_response(value, status=status)
