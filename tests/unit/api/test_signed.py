"""The signed HTTP door: the stream protocol's messages as JSON, errors by status, slow and leaving clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from multidict import CIMultiDict

from openlora_node.api import signed as door_module
from openlora_node.api.listeners import listen_tcp
from openlora_node.api.meters import Meters
from openlora_node.api.signed import SignedDoor
from openlora_node.attribution import Evidence
from openlora_node.config.endpoints import HostPort
from openlora_node.protocol import messages
from openlora_node.protocol.crypto import LocalSigner
from openlora_node.protocol.eip712 import Domain, Signed
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.ids import ZERO32
from openlora_node.protocol.merkle import NamedLeaf
from openlora_node.protocol.messages import AskQuote, Infer
from openlora_node.protocol.pipeline import Pipeline
from openlora_node.protocol.structs import (
    AccountQuery,
    Quote,
    Receipt,
    ReceiptStatus,
    Request,
    Royalty,
    Voucher,
    body_hash,
)
from openlora_node.serving import InboundLike

DOMAIN = Domain(chain_id=1, verifying_contract=bytes(19) + b"\x01")
PAYER, NODE = LocalSigner(bytes(31) + b"\x05"), bytes(31) + b"\x09"
BASE = bytes(31) + b"\x0b"
PIPELINE = Pipeline.of(BASE)
BODY = json.dumps({"messages": [{"role": "user", "content": "hunter22"}]})
REQUEST = Request(
    payer=PAYER.address, node=NODE, pipeline_id=PIPELINE.id, quote_digest=bytes(32), body_hash=body_hash(BODY.encode()),
    max_fee=10**18, max_tokens=8, nonce=bytes(31) + b"\x01", issued_at=1_000, expires_at=1_100,
).sign(DOMAIN, PAYER)  # fmt: skip
VOUCHER = Voucher(
    payer=PAYER.address, node=NODE, pipeline_id=PIPELINE.id, cumulative_tokens=5, cumulative_compute=7,
    reference_digest=bytes(32),
).sign(DOMAIN, PAYER)  # fmt: skip
RECEIPT = Receipt(
    request_digest=bytes(32), payer=PAYER.address, node=NODE, pipeline_id=PIPELINE.id, status=ReceiptStatus.COMPLETE,
    engine_digest=bytes(32), prompt_tokens=3, completion_tokens=2, output_hash=bytes(32), attribution_root=ZERO32,
    commitment_root=ZERO32, compute=5, royalties=0, started_at=1, finished_at=2, seq=1, previous=ZERO32,
).sign(DOMAIN, PAYER)  # fmt: skip
QUOTE = Quote(
    payer=PAYER.address, node=NODE, pipeline_id=PIPELINE.id, input_rate=1, output_rate=2,
    royalties=(Royalty(artifact=BASE, terms_version=0, rate=0, owner=bytes(20)),), settlement_charge=3,
    issued_at=1, expires_at=2,
).sign(DOMAIN, PAYER)  # fmt: skip
QUERY = AccountQuery(payer=PAYER.address, node=NODE, issued_at=5).sign(DOMAIN, PAYER)
GOOD = {"request": REQUEST.to_json(), "pipeline": PIPELINE.to_json(), "body": BODY}


EVIDENCE = Evidence((NamedLeaf("base", BASE),), (NamedLeaf("choice/0/tokens", bytes(31) + b"\x02"),))
LEAVES = {
    "attribution": {"base": f"0x{BASE.hex()}"}, "commitment": {"choice/0/tokens": f"0x{2:064x}"},
}  # fmt: skip


class World:
    """A serving that follows the test's script."""

    def __init__(self) -> None:
        self.seen: list[InboundLike] = []
        self.error: OpenLoraError | None = None
        self.after_error: OpenLoraError | None = None
        self.wait: asyncio.Event | None = None
        self.cancelled = asyncio.Event()

    async def handle(self, inbound: InboundLike) -> None:
        self.seen.append(inbound)
        if self.error is not None:
            raise self.error
        if isinstance(inbound.first, AskQuote):
            await inbound.send(messages.QuoteReply(id=1, quote=QUOTE.pack()))
            return
        await inbound.send(messages.Accepted(id=1, prompt_tokens=3))
        await inbound.tokens(0, 0, (4, 5), "hi", b'[{"token": "h"}]')
        await inbound.send(messages.Paused(id=1, cumulative_tokens=9, cumulative_compute=(10**20).to_bytes(16, "big")))
        if self.wait is not None:
            try:
                await asyncio.wait({asyncio.ensure_future(self.wait.wait()), asyncio.ensure_future(inbound.receive())},
                                   return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if self.after_error is not None:
            raise self.after_error
        done = messages.Done(
            id=1, receipt=RECEIPT.pack(), finish_reason="stop", salt=bytes(32), evidence=EVIDENCE.pack()
        )
        await inbound.send(done)
        await inbound.send(messages.Settled(id=1, cumulative_tokens=5))

    async def account(self, message: messages.GetAccount) -> messages.Account:
        Signed.unpack(AccountQuery, message.query)
        ledger = messages.Ledger(
            signer=PAYER.address, pipeline=PIPELINE.pack(), voucher=VOUCHER.pack(), tokens=5,
            compute_micro_wei=(7_000_000).to_bytes(20, "big"),
        )  # fmt: skip
        return messages.Account(ledgers=(ledger,), open_receipts=(RECEIPT.pack(),))

    async def voucher(self, message: messages.PutVoucher) -> messages.VoucherReply:
        return messages.VoucherReply(voucher=message.voucher)

    async def proof(self, message: messages.GetProof) -> messages.Proof:
        assert Signed.unpack(AccountQuery, message.query).signer(DOMAIN) == PAYER.address
        if message.receipt != RECEIPT.value.digest(DOMAIN):
            raise OpenLoraError(ErrorCode.NOT_FOUND)
        return messages.Proof(
            salt=b"\x05" * 32, evidence=EVIDENCE.pack(), epoch=7, closed=True, path=(b"\x01" * 32, b"\x02" * 32)
        )


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def meters() -> Meters:
    return Meters()


@pytest_asyncio.fixture
async def door(world: World, meters: Meters) -> AsyncIterator[SignedDoor]:
    door = SignedDoor(1 << 16, 1.0, behind_proxy=True, max_streams=1)
    door.handle, door.accounts = meters.watch(world.handle), world
    yield door


@pytest_asyncio.fixture
async def client(door: SignedDoor) -> AsyncIterator[aiohttp.ClientSession]:
    listener = await listen_tcp(door.app(), HostPort("127.0.0.1", 0), cancels=True)
    async with aiohttp.ClientSession(listener.address) as session:
        yield session
    await listener.close()


async def lines(answer: aiohttp.ClientResponse) -> list[dict[str, Any]]:
    return [json.loads(line) async for line in answer.content]


async def test_a_quote_is_a_signed_struct_in_json(client: aiohttp.ClientSession, world: World) -> None:
    asked = {"payer": f"0x{PAYER.address.hex()}", "pipeline": PIPELINE.to_json()}
    async with client.post("/v1/quote", json=asked, headers={"X-Forwarded-For": "6.6.6.6, 203.0.113.7"}) as answer:
        assert answer.status == 200
        assert Signed.from_json(Quote, (await answer.json())["quote"]) == QUOTE
    (inbound,) = world.seen
    assert isinstance(inbound.first, AskQuote)
    assert inbound.first.pipeline == PIPELINE.pack()
    assert inbound.remote_ip == "203.0.113.7", "the address that our own proxy noted, not what a client claims"


async def test_a_response_is_one_object_a_line(client: aiohttp.ClientSession, world: World, meters: Meters) -> None:
    async with client.post("/v1/signed", json={**GOOD, "voucher": VOUCHER.to_json()}) as answer:
        assert answer.status == 200
        assert answer.content_type == "application/x-ndjson"
        got = await lines(answer)
    assert [line["t"] for line in got] == ["accepted", "tokens", "paused", "done", "settled"]
    assert got[1] == {"t": "tokens", "choice": 0, "start": 0, "tokenIds": [4, 5], "text": "hi",
                      "logprobs": [{"token": "h"}]}  # fmt: skip
    assert got[2]["cumulativeCompute"] == str(10**20)
    assert Signed.from_json(Receipt, got[3]["receipt"]) == RECEIPT
    assert got[3]["evidence"] == LEAVES
    first = world.seen[0].first
    assert isinstance(first, Infer)
    assert (first.request, first.pipeline, first.voucher) == (REQUEST.pack(), PIPELINE.pack(), VOUCHER.pack())
    assert first.body == BODY.encode(), "the very bytes that were signed"
    value = meters.registry.get_sample_value
    assert value("openlora_node_requests_total", {"outcome": "complete"}) == 1
    assert value("openlora_node_tokens_total", {"kind": "prompt"}) == 3
    assert value("openlora_node_tokens_total", {"kind": "generated"}) == 2
    assert value("openlora_node_ttft_seconds_count") == 1


async def test_an_error_before_the_first_line_is_an_answer_of_its_own(
    client: aiohttp.ClientSession, world: World, meters: Meters
) -> None:
    world.error = OpenLoraError(ErrorCode.BUSY, "full", retry_after_ms=1500, alternatives=(NODE,))
    async with client.post("/v1/signed", json=GOOD) as answer:
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "2"
        error = (await answer.json())["error"]
    assert (error["code"], error["retryable"], error["alternatives"]) == ("BUSY", True, [f"0x{NODE.hex()}"])
    assert meters.registry.get_sample_value("openlora_node_requests_total", {"outcome": "BUSY"}) == 1


async def test_a_later_error_is_the_last_line(client: aiohttp.ClientSession, world: World) -> None:
    world.after_error = OpenLoraError(ErrorCode.ENGINE_FAILED)
    async with client.post("/v1/signed", json=GOOD) as answer:
        got = await lines(answer)
    assert got[-1]["t"] == "error"
    assert (got[-1]["code"], got[-1]["retryable"]) == ("ENGINE_FAILED", True)


async def test_a_client_that_leaves_ends_its_handler_and_frees_its_place(
    client: aiohttp.ClientSession, world: World
) -> None:
    world.wait = asyncio.Event()
    answer = await client.post("/v1/signed", json=GOOD)
    assert json.loads(await answer.content.readline())["t"] == "accepted"
    async with client.post("/v1/signed", json=GOOD) as second:
        assert second.status == 503, "one place, taken"
    answer.close()
    await asyncio.wait_for(world.cancelled.wait(), 5)
    world.wait.set()
    async with client.post("/v1/signed", json=GOOD) as third:
        assert third.status == 200
        assert (await lines(third))[-1]["t"] == "settled"


async def test_a_client_that_takes_nothing_loses_its_stream(
    client: aiohttp.ClientSession, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module, "WRITE_S", 0.05)
    lost: asyncio.Future[ErrorCode] = asyncio.get_running_loop().create_future()

    async def flood(inbound: InboundLike) -> None:
        try:
            for start in range(10_000):
                await inbound.tokens(0, start, (1,), "x" * 60_000)
        except OpenLoraError as error:
            lost.set_result(error.code)
            raise

    world.handle = flood  # type: ignore[method-assign]
    listener = await listen_tcp(_door_of(flood).app(), HostPort("127.0.0.1", 0), cancels=True)
    async with aiohttp.ClientSession(listener.address, read_bufsize=1024) as session:
        answer = await session.post("/v1/signed", json=GOOD)
        assert await asyncio.wait_for(lost, 10) is ErrorCode.NODE_LOST
        answer.close()
    await listener.close()


def _door_of(handle: Any) -> SignedDoor:
    door = SignedDoor(1 << 16, 1.0, behind_proxy=False)
    door.handle = handle
    return door


async def test_vouchers_and_accounts(client: aiohttp.ClientSession) -> None:
    async with client.post("/v1/voucher", json={"voucher": VOUCHER.to_json()}) as answer:
        assert Signed.from_json(Voucher, (await answer.json())["voucher"]) == VOUCHER
    query = AccountQuery(payer=PAYER.address, node=NODE, issued_at=5).sign(DOMAIN, PAYER)
    async with client.post("/v1/account", json={"query": query.to_json()}) as answer:
        account = await answer.json()
    assert account["ledgers"][0]["computeMicroWei"] == "7000000"
    assert Signed.from_json(Receipt, account["openReceipts"][0]) == RECEIPT


async def test_a_proof_is_leaves_by_name_and_a_path(client: aiohttp.ClientSession) -> None:
    asked = {"query": QUERY.to_json(), "receipt": f"0x{RECEIPT.value.digest(DOMAIN).hex()}"}
    async with client.post("/v1/proof", json=asked) as answer:
        assert await answer.json() == {
            "salt": f"0x{'05' * 32}", "evidence": LEAVES, "epoch": 7, "closed": True,
            "path": [f"0x{'01' * 32}", f"0x{'02' * 32}"],
        }  # fmt: skip
    async with client.post("/v1/proof", json=asked | {"receipt": f"0x{'09' * 32}"}) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/v1/signed", b"{", "MALFORMED"),
        ("/v1/signed", b"[]", "MALFORMED"),
        ("/v1/signed", json.dumps({**GOOD, "body": 5}).encode(), "MALFORMED"),
        ("/v1/signed", json.dumps({**GOOD, "request": {}}).encode(), "MALFORMED"),
        ("/v1/signed", json.dumps({**GOOD, "pipeline": None}).encode(), "MALFORMED"),
        ("/v1/signed", json.dumps({**GOOD, "body": "\ud800"}).encode(), "MALFORMED"),
        ("/v1/signed", json.dumps({**GOOD, "body": "x" * 70_000}).encode(), "FRAME_TOO_LARGE"),
        ("/v1/signed", b"x" * 400_000, "FRAME_TOO_LARGE"),
        ("/v1/quote", b"{}", "BAD_ID"),
        ("/v1/quote", json.dumps({"payer": "0x12", "pipeline": PIPELINE.to_json()}).encode(), "BAD_ID"),
        ("/v1/voucher", b"{}", "MALFORMED"),
        ("/v1/account", b'{"query": 1}', "MALFORMED"),
        ("/v1/proof", b'{"query": 1}', "MALFORMED"),
        ("/v1/proof", json.dumps({"query": QUERY.to_json()}).encode(), "BAD_ID"),
        ("/v1/nothing", b"{}", "NOT_FOUND"),
    ],
)
async def test_bad_requests_get_their_code(
    client: aiohttp.ClientSession, world: World, path: str, body: bytes, code: str
) -> None:
    async with client.post(path, data=body) as answer:
        text = await answer.text()
        assert json.loads(text)["error"]["code"] == code
    assert not world.seen
    assert "hunter22" not in text


async def test_behind_a_proxy_the_last_address_counts_whoever_wrote_the_others(
    client: aiohttp.ClientSession, world: World
) -> None:
    lines_of = [("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-For", "7.7.7.7, 8.8.8.8")]
    async with client.post("/v1/signed", json=GOOD, headers=CIMultiDict(lines_of)) as answer:
        await answer.read()
    async with client.post("/v1/signed", json=GOOD, headers={"X-Forwarded-For": "2001:db8::1:2:3:4"}) as answer:
        await answer.read()
    assert [inbound.remote_ip for inbound in world.seen] == ["8.8.8.8", "2001:db8::"], "a /64 is one customer"


async def test_bodies_under_way_share_a_budget_and_are_not_compressed(world: World) -> None:
    never = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b" " * 60_000
        await never.wait()

    door = SignedDoor(1 << 16, 5.0, behind_proxy=False)
    door.handle = world.handle
    door._bodies._free = 100_000
    listener = await listen_tcp(door.app(), HostPort("127.0.0.1", 0), cancels=True)
    async with aiohttp.ClientSession(listener.address) as session:
        first = asyncio.create_task(session.post("/v1/signed", data=slow()))
        while door._bodies._free > 40_000:
            await asyncio.sleep(0.01)
        async with session.post("/v1/signed", data=b" " * 50_000) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (503, "BUSY")
        first.cancel()
        while door._bodies._free < 100_000:
            await asyncio.sleep(0.01)
        async with session.post("/v1/signed", data=b"{}", headers={"Content-Encoding": "gzip"}) as answer:
            assert (await answer.json())["error"]["code"] == "UNSUPPORTED"
    await listener.close()


async def test_more_connections_than_allowed_are_refused_in_http(door: SignedDoor) -> None:
    listener = await listen_tcp(door.app(), HostPort("127.0.0.1", 0), max_connections=1)
    host, port = listener.address.removeprefix("http://").split(":")
    _, first = await asyncio.open_connection(host, int(port))
    await asyncio.sleep(0.05)
    reader, second = await asyncio.open_connection(host, int(port))
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 503")
    assert b'"BUSY"' in answer
    for writer in (first, second):
        writer.close()
    await listener.close()


async def test_a_body_that_trickles_in_is_dropped(client: aiohttp.ClientSession) -> None:
    never = asyncio.Event()

    async def trickle() -> AsyncIterator[bytes]:
        yield b"{"
        await never.wait()

    async with client.post("/v1/signed", data=trickle()) as answer:
        assert answer.status == 400


async def test_while_nothing_is_served_the_door_says_so() -> None:
    listener = await listen_tcp(SignedDoor(1 << 16, 1.0, behind_proxy=False).app(), HostPort("127.0.0.1", 0))
    async with aiohttp.ClientSession(listener.address) as session, session.post("/v1/quote", json={}) as answer:
        assert answer.status == 503
        assert (await answer.json())["error"]["code"] == "ENGINE_UNAVAILABLE"
    await listener.close()
