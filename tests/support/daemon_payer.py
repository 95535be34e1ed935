"""A payer that speaks HTTP to a node's signed door: quotes, signs, streams, pays. Its text is told to nobody else."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp

from openlora_chain.wallet import Wallet
from openlora_node.protocol.eip712 import Domain, Signed
from openlora_node.protocol.pipeline import Pipeline
from openlora_node.protocol.pricing import ComputeRates, RoyaltySchedule, Tally, charge, max_fee
from openlora_node.protocol.structs import Quote, Receipt, Request, Voucher, body_hash

PROMPT = "hunter22, who serves the adapters?"
"""No log may hold it."""


@dataclass(frozen=True)
class Asked:
    """A signed request as it is sent: once, or again."""

    request: Signed[Request]
    body: str
    voucher: Signed[Voucher]

    def as_json(self, pipeline: Pipeline) -> dict[str, Any]:
        """The body of POST /v1/signed."""
        return {
            "request": self.request.to_json(), "pipeline": pipeline.to_json(), "body": self.body,
            "voucher": self.voucher.to_json(),
        }  # fmt: skip


@dataclass
class HttpPayer:
    """One payer at one node, one pipeline: the base alone. `tally` is what it has been charged so far."""

    url: str
    domain: Domain
    wallet: Wallet
    node: bytes
    pipeline: Pipeline
    prompt_tokens: int
    """PROMPT as the model's tokenizer counts it."""
    tally: Tally = field(default_factory=Tally)
    quote: Quote | None = None

    async def __aenter__(self) -> Self:
        self.session = aiohttp.ClientSession(self.url)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and JSON of an answer that is no stream."""
        async with self.session.post(path, json=body) as answer:
            return answer.status, await answer.json()

    async def ask(self, max_tokens: int) -> Asked:
        """A request and its opening voucher, under a fresh quote."""
        asked = {"payer": f"0x{self.wallet.address.hex()}", "pipeline": self.pipeline.to_json()}
        status, body = await self.post("/v1/quote", asked)
        assert status == 200, body
        signed = Signed.from_json(Quote, body["quote"])
        self.quote = quote = signed.value
        text = json.dumps({"messages": [{"role": "user", "content": PROMPT}], "max_tokens": max_tokens, "stream": True,
                           "ignore_eos": True, "temperature": 0})  # fmt: skip
        now = int(time.time())
        request = Request(
            payer=self.wallet.address, node=self.node, pipeline_id=self.pipeline.id,
            quote_digest=quote.digest(self.domain), body_hash=body_hash(text.encode()),
            max_fee=max_fee(self.schedule, self.rates, self.prompt_tokens, max_tokens, quote.settlement_charge),
            max_tokens=max_tokens,
            nonce=secrets.token_bytes(32), issued_at=now, expires_at=now + 200,
        ).sign(self.domain, self.wallet)  # fmt: skip
        return Asked(request, text, self.voucher(self.tally, prompt=True))

    @property
    def schedule(self) -> RoyaltySchedule:
        """Royalties as quoted."""
        assert self.quote is not None
        return RoyaltySchedule.quoted(self.pipeline, self.quote)

    @property
    def rates(self) -> ComputeRates:
        """The node's price as quoted."""
        assert self.quote is not None
        return ComputeRates(self.quote.input_rate, self.quote.output_rate)

    def voucher(self, tally: Tally, *, prompt: bool = False, tokens: int = 0, compute: int = 0) -> Signed[Voucher]:
        """Over `tally`; with `prompt` over the prompt's fee more; at least `tokens` and `compute`."""
        if prompt:
            assert self.quote is not None
            tally = charge(tally, self.schedule, self.rates, self.prompt_tokens, 0, self.quote.settlement_charge).after
        return Voucher(
            payer=self.wallet.address, node=self.node, pipeline_id=self.pipeline.id,
            cumulative_tokens=max(tally.tokens, tokens), cumulative_compute=max(tally.compute, compute),
            reference_digest=bytes(32),
        ).sign(self.domain, self.wallet)  # fmt: skip

    def send(self, asked: Asked) -> Any:
        """POST /v1/signed: a context manager that gives the answer as it begins."""
        return self.session.post("/v1/signed", json=asked.as_json(self.pipeline))

    async def lines(self, answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
        """A response, line by line."""
        async for line in answer.content:
            yield json.loads(line)

    def book(self, line: dict[str, Any]) -> Receipt:
        """Take in the receipt of a `done` line."""
        receipt = Signed.from_json(Receipt, line["receipt"]).value
        assert self.quote is not None
        self.tally = charge(
            self.tally, self.schedule, self.rates, receipt.prompt_tokens, receipt.completion_tokens,
            self.quote.settlement_charge,
        ).after  # fmt: skip
        return receipt

    async def pay(self, voucher: Signed[Voucher]) -> tuple[int, dict[str, Any]]:
        """POST /v1/voucher."""
        return await self.post("/v1/voucher", {"voucher": voucher.to_json()})
