"""Wallet-signed requests by HTTP: a second door to the same serving, for payers without libp2p. docs/protocol.md, 9.

Structs travel in their JSON form, a response as one JSON object a line. Nothing here judges a request: every message is
what the stream protocol would carry, and serving answers it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from aiohttp import web

from ..attribution.evidence import as_json as leaves_json
from ..protocol import messages
from ..protocol.eip712 import Signed
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import format_bytes, parse_address, parse_bytes32
from ..protocol.messages import AskQuote, Infer, InferMessage
from ..protocol.pipeline import Pipeline
from ..protocol.structs import AccountQuery, Quote, Receipt, Request, Voucher
from .answers import error_body, errors_as_json, json_answer, json_body
from .bodies import Bodies
from .hosts import site_of
from .meters import Handle

MAX_STREAMS = 256
"""Responses that are read at once."""
OVERHEAD_BYTES = 64 << 10
"""Beside the body: structs and escapes."""
WRITE_S = 30.0
"""A client that takes nothing for so long loses its stream; what runs goes on for a while without it."""
LINES = "application/x-ndjson"
ID = 1

logger = logging.getLogger(__name__)


class Accounts(Protocol):
    """Serving, as far as vouchers and accounts go."""

    async def account(self, message: messages.GetAccount) -> messages.Account:
        """A payer's ledgers and open receipts."""
        ...

    async def voucher(self, message: messages.PutVoucher) -> messages.VoucherReply:
        """Keep a voucher."""
        ...

    async def proof(self, message: messages.GetProof) -> messages.Proof:
        """The proof of a payer's receipt."""
        ...


@dataclass(frozen=True)
class HttpPeer:
    """Whoever sent a request by HTTP: only its address tells."""

    id: str


class HttpInbound:
    """One request over HTTP as serving takes it. Its vouchers come in requests of their own."""

    def __init__(
        self, first: AskQuote | Infer, ip: str | None, write: Callable[[InferMessage], Awaitable[None]]
    ) -> None:
        self.first = first
        self.remote_ip = ip
        self.peer = HttpPeer(f"http {ip}")
        self._write = write

    async def receive(self) -> NoReturn:
        """Nothing more comes on this connection; its end cancels the request's handler."""
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def send(self, message: InferMessage) -> None:
        """Answer. Raises NODE_LOST for a client that is gone or takes nothing."""
        await self._write(message)

    async def tokens(self, choice: int, start: int, token_ids: Sequence[int], text: str, logprobs: bytes = b"") -> None:
        """The next tokens of a choice."""
        await self._write(
            messages.Tokens(id=ID, choice=choice, start=start, token_ids=tuple(token_ids), text=text, logprobs=logprobs)
        )


class SignedDoor:
    """The routes. `handle` is serving's, counted or not; both may be None while nothing is served yet."""

    def __init__(
        self, max_body: int, body_timeout_s: float, *, behind_proxy: bool, max_streams: int = MAX_STREAMS
    ) -> None:
        """`behind_proxy`: the listener is on loopback, so that X-Forwarded-For is a proxy's of ours."""
        self.handle: Handle | None = None
        self.accounts: Accounts | None = None
        self._max_body = max_body
        self._bodies = Bodies(2 * max_body + OVERHEAD_BYTES, body_timeout_s)
        self._behind_proxy = behind_proxy
        self._free = max_streams

    def app(self) -> web.Application:
        """The application that serves them."""
        app = web.Application(middlewares=[errors_as_json])
        app.router.add_post("/v1/quote", self._quote)
        app.router.add_post("/v1/signed", self._signed)
        app.router.add_post("/v1/voucher", self._voucher)
        app.router.add_post("/v1/account", self._account)
        app.router.add_post("/v1/proof", self._proof)
        return app

    async def _quote(self, request: web.Request) -> web.StreamResponse:
        handle, given = self._open(self.handle), await json_body(request, self._bodies)
        ask = AskQuote(id=ID, payer=_address(given), pipeline=Pipeline.from_json(given.get("pipeline")).pack())
        answers: list[InferMessage] = []

        async def write(message: InferMessage) -> None:
            answers.append(message)

        await handle(HttpInbound(ask, self._ip(request), write))
        quote = next(answer for answer in answers if isinstance(answer, messages.QuoteReply))
        return json_answer({"quote": Signed.unpack(Quote, quote.quote).to_json()})

    async def _signed(self, request: web.Request) -> web.StreamResponse:
        handle, given = self._open(self.handle), await json_body(request, self._bodies)
        first = _infer(given, self._max_body)
        if self._free <= 0:
            raise OpenLoraError(ErrorCode.BUSY, retry_after_ms=1000)
        self._free -= 1
        try:
            return await self._stream(request, handle, first)
        finally:
            self._free += 1

    async def _stream(self, request: web.Request, handle: Handle, first: Infer) -> web.StreamResponse:
        """Lines until the handler has returned; an error before the first line is a plain answer."""
        response = web.StreamResponse(headers={"Content-Type": LINES, "Cache-Control": "no-store"})

        async def write(message: InferMessage) -> None:
            try:
                async with asyncio.timeout(WRITE_S):
                    if not response.prepared:
                        await response.prepare(request)
                    await response.write(_line(message))
            except (ConnectionError, TimeoutError):
                raise OpenLoraError(ErrorCode.NODE_LOST, "the client is gone") from None

        try:
            await handle(HttpInbound(first, self._ip(request), write))
        except OpenLoraError as error:
            if not response.prepared or error.code is ErrorCode.NODE_LOST:
                raise
            await write(messages.ErrorReply.of(error, ID))
        await response.write_eof()
        return response

    async def _voucher(self, request: web.Request) -> web.StreamResponse:
        accounts, given = self._open(self.accounts), await json_body(request, self._bodies)
        voucher = Signed.from_json(Voucher, given.get("voucher"))
        reply = await accounts.voucher(messages.PutVoucher(voucher=voucher.pack()))
        return json_answer({"voucher": Signed.unpack(Voucher, reply.voucher).to_json()})

    async def _proof(self, request: web.Request) -> web.StreamResponse:
        accounts, given = self._open(self.accounts), await json_body(request, self._bodies)
        query = Signed.from_json(AccountQuery, given.get("query"))
        receipt = parse_bytes32(str(given.get("receipt")))
        proof = await accounts.proof(messages.GetProof(query=query.pack(), receipt=receipt))
        return json_answer(proof_json(proof))

    async def _account(self, request: web.Request) -> web.StreamResponse:
        accounts, given = self._open(self.accounts), await json_body(request, self._bodies)
        query = Signed.from_json(AccountQuery, given.get("query"))
        return json_answer(account_json(await accounts.account(messages.GetAccount(query=query.pack()))))

    def _open(self, room: Any) -> Any:
        if room is None:
            raise OpenLoraError(ErrorCode.ENGINE_UNAVAILABLE, "the node is starting: retry, or ask another")
        return room

    def _ip(self, request: web.Request) -> str | None:
        """Who asks: behind a proxy the last address that it noted. Lines before the last are the client's own."""
        text = request.remote or ""
        if self._behind_proxy and (forwarded := request.headers.getall("X-Forwarded-For", [])):
            text = forwarded[-1].rpartition(",")[2].strip()
        return site_of(text)


def _infer(given: dict[str, Any], max_body: int) -> Infer:
    body = given.get("body")
    if not isinstance(body, str):
        raise OpenLoraError(ErrorCode.MALFORMED, "body is the exact text of the OpenAI-dialect request")
    try:
        data = body.encode()
    except UnicodeEncodeError:
        raise OpenLoraError(ErrorCode.MALFORMED, "body is not Unicode text") from None
    if len(data) > max_body:
        raise OpenLoraError(ErrorCode.FRAME_TOO_LARGE, f"body is at most {max_body} bytes")
    voucher = given.get("voucher")
    return Infer(
        id=ID,
        request=Signed.from_json(Request, given.get("request")).pack(),
        pipeline=Pipeline.from_json(given.get("pipeline")).pack(),
        body=data,
        voucher=b"" if voucher is None else Signed.from_json(Voucher, voucher).pack(),
    )


def _address(given: dict[str, Any]) -> bytes:
    payer = given.get("payer")
    if not isinstance(payer, str):
        raise OpenLoraError(ErrorCode.BAD_ID, "payer is an address")
    return bytes(parse_address(payer))


def _line(message: InferMessage) -> bytes:
    return json.dumps(message_json(message)).encode() + b"\n"


def message_json(message: InferMessage) -> dict[str, Any]:
    """A message of `/openlora/infer/1` as a line of a response."""
    match message:
        case messages.Accepted():
            body: dict[str, Any] = {"t": "accepted", "promptTokens": message.prompt_tokens}
        case messages.Tokens():
            body = {"t": "tokens", "choice": message.choice, "start": message.start,
                    "tokenIds": list(message.token_ids), "text": message.text}  # fmt: skip
            if message.logprobs:
                body["logprobs"] = json.loads(message.logprobs)
        case messages.Paused():
            compute = int.from_bytes(message.cumulative_compute, "big")
            body = {"t": "paused", "cumulativeTokens": message.cumulative_tokens, "cumulativeCompute": str(compute)}
        case messages.Done():
            body = {"t": "done", "receipt": Signed.unpack(Receipt, message.receipt).to_json(),
                    "finishReason": message.finish_reason, "salt": format_bytes(message.salt),
                    "evidence": leaves_json(message.evidence)}  # fmt: skip
        case messages.Settled():
            body = {"t": "settled", "cumulativeTokens": message.cumulative_tokens}
        case messages.ErrorReply():
            body = {"t": "error", **error_body(message.error())["error"]}
        case _:
            raise OpenLoraError(ErrorCode.INTERNAL)
    return body


def proof_json(proof: messages.Proof) -> dict[str, Any]:
    """What proves a receipt: its leaves by name, and its path once its epoch is over."""
    return {
        "salt": format_bytes(proof.salt),
        "evidence": leaves_json(proof.evidence),
        "epoch": proof.epoch,
        "closed": proof.closed,
        "path": [format_bytes(sibling) for sibling in proof.path],
    }


def account_json(account: messages.Account) -> dict[str, Any]:
    """An account: ledgers with their newest vouchers, and receipts that no voucher covers."""
    return {
        "ledgers": [
            {
                "signer": format_bytes(ledger.signer),
                "pipeline": Pipeline.unpack(ledger.pipeline).to_json(),
                "voucher": Signed.unpack(Voucher, ledger.voucher).to_json() if ledger.voucher else None,
                "tokens": ledger.tokens,
                "computeMicroWei": str(int.from_bytes(ledger.compute_micro_wei, "big")),
            }
            for ledger in account.ledgers
        ],
        "openReceipts": [Signed.unpack(Receipt, receipt).to_json() for receipt in account.open_receipts],
    }
