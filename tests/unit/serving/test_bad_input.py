"""What strangers and cheats send: each is refused with its code, and leaves no trace in the books."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.admission import House, Knock, Rates, Refusal, examine
from openlora_node.chainview.values import Kind
from openlora_node.network.buckets import Allowance
from openlora_node.protocol import messages
from openlora_node.protocol.eip712 import Domain
from openlora_node.protocol.errors import ErrorCode
from openlora_node.protocol.manifest import AdapterManifest, FileEntry
from openlora_node.protocol.pipeline import Adapter, Pipeline
from openlora_node.protocol.pricing import Tally
from support.serving_world import (
    ADAPTERS,
    BASE,
    DOMAIN,
    NODE,
    NOW,
    OPEN_DOOR,
    OPTIONS,
    OWNER,
    Payer,
    World,
    refused,
)


@pytest.fixture
async def world(tmp_path: Path):
    async with World(tmp_path / "journal.sqlite") as made:
        yield made


async def code_of(world: World, *, parts: dict[str, bytes] | None = None, **changes: object) -> ErrorCode:
    """What a request gets that differs from a right one by `changes`, and that no book knows of it."""
    body = world.body()
    quote = (await world.quote()).value
    opening = world.opening(Tally(), world.prompt_of(body))
    fields = {"request": world.request(quote, body, **changes).pack(), "pipeline": world.pipeline.pack(), "body": body}
    message = messages.Infer(id=1, **(fields | {"voucher": opening} | (parts or {})))
    error = await refused(world.handle(message))
    ledger = await world.ledger()
    assert (ledger.reserved, ledger.tally, ledger.voucher) == (0, Tally(), None)
    assert world.engine.calls == 0
    return error.code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"node": b"\x99" * 32}, ErrorCode.WRONG_NODE),
        ({"pipeline_id": b"\x99" * 32}, ErrorCode.BAD_PIPELINE),
        ({"body_hash": b"\x99" * 32}, ErrorCode.BODY_MISMATCH),
        ({"quote_digest": b"\x99" * 32}, ErrorCode.QUOTE_UNKNOWN),
        ({"issued_at": NOW + 61, "expires_at": NOW + 100}, ErrorCode.NOT_YET_VALID),
        ({"issued_at": NOW - 200, "expires_at": NOW - 61}, ErrorCode.REQUEST_EXPIRED),
        ({"key": OWNER}, ErrorCode.BAD_SIGNATURE),
        ({"domain": Domain(chain_id=1612, verifying_contract=DOMAIN.verifying_contract)}, ErrorCode.WRONG_CHAIN),
        ({"domain": Domain(chain_id=31337, verifying_contract=b"\x01" * 20)}, ErrorCode.BAD_SIGNATURE),
        ({"max_fee": 10}, ErrorCode.MAX_FEE_TOO_LOW),
        ({"max_tokens": 10**7}, ErrorCode.MAX_FEE_TOO_LOW),
        ({"max_tokens": (1 << 64) - 1, "max_fee": (1 << 128) - 1}, ErrorCode.BAD_AMOUNT),
        ({"max_tokens": 200_000}, ErrorCode.PROMPT_TOO_LONG),
        ({"max_tokens": 0}, ErrorCode.MALFORMED),
    ],
)
async def test_a_request_that_is_wrong_in_one_field(world: World, changes: dict, code: ErrorCode) -> None:
    if changes.get("max_tokens") == 200_000:
        changes = changes | {"max_fee": 10**20}
        parts = {"body": world.body(max_tokens=200_000)}
        from openlora_node.protocol.structs import body_hash

        assert await code_of(world, parts=parts, body_hash=body_hash(parts["body"]), **changes) is code
        return
    assert await code_of(world, **changes) is code


async def test_a_request_for_another_chain_is_told_so(world: World) -> None:
    other = Domain(chain_id=1612, verifying_contract=DOMAIN.verifying_contract)
    for voucher in (b"", world.payer.voucher(world.pipeline.id, 12, 2_401_000, domain=other)):
        assert await code_of(world, parts={"voucher": voucher}, domain=other) is ErrorCode.WRONG_CHAIN


async def test_a_request_in_anothers_name(world: World) -> None:
    body, victim = world.body(), Payer(OWNER)
    quote = (await world.quote(victim)).value
    opening = world.opening(Tally(), world.prompt_of(body), payer=victim)
    signed = world.request(quote, body, victim, key=world.payer.key)
    for voucher in (b"", opening):
        error = await refused(world.handle(world.infer(signed, body, voucher)))
        assert error.code is ErrorCode.BAD_SIGNATURE


async def test_sixty_seconds_of_skew_are_forgiven(world: World) -> None:
    await world.paid(issued_at=NOW + 60, expires_at=NOW + 100)
    await world.paid(issued_at=NOW - 200, expires_at=NOW - 60)


@pytest.mark.parametrize("part", ["request", "pipeline", "voucher"])
async def test_truncated_and_padded_structs(world: World, part: str) -> None:
    body = world.body()
    quote = (await world.quote()).value
    whole = {
        "request": world.request(quote, body).pack(),
        "pipeline": world.pipeline.pack(),
        "voucher": world.opening(Tally(), world.prompt_of(body)),
    }[part]
    for bad in (whole[:-1], whole[1:], whole + b"\0", whole[: len(whole) // 2], b"\0", bytes(8192)):
        code = await code_of(world, parts={part: bad})
        assert code in {ErrorCode.MALFORMED, ErrorCode.BAD_PIPELINE, ErrorCode.BAD_SIGNATURE}, (part, len(bad))


async def test_a_megabyte_of_body_is_served_and_one_byte_more_is_refused(tmp_path: Path) -> None:
    async with World(tmp_path / "j.sqlite", replace(OPTIONS, max_body_bytes=1 << 20)) as world:
        world.engine.context = 10**7
        body = world.body("x" * ((1 << 20) - len(world.body(""))))
        assert len(body) == 1 << 20
        await world.paid(body=body)
        big = world.body("x" * ((1 << 20) + 1 - len(world.body(""))))
        signed = world.request((await world.quote()).value, big)
        knock = Knock(signed.pack(), world.pipeline.pack(), big)
        rates = Rates(peer=OPEN_DOOR, ip=OPEN_DOOR, signer=OPEN_DOOR)
        verdict = examine(knock, House(DOMAIN, NODE), rates, lambda _: None, now=NOW, instant=0)
        assert isinstance(verdict, Refusal)
        assert verdict.code is ErrorCode.FRAME_TOO_LARGE


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"messages": 1}', b"\xff" * 100, json.dumps({"messages": [], "nonsense": 1}).encode()]
)
async def test_a_signed_body_that_is_none(world: World, body: bytes) -> None:
    from openlora_node.protocol.structs import body_hash

    code = await code_of(world, parts={"body": body}, body_hash=body_hash(body))
    assert code in {ErrorCode.MALFORMED, ErrorCode.UNSUPPORTED}


async def test_replay_of_a_served_request_runs_and_charges_nothing(world: World) -> None:
    body = world.body()
    signed = world.request((await world.quote()).value, body)
    opening = world.opening(Tally(), world.prompt_of(body))
    first = world.handle(world.infer(signed, body, opening))
    await first.until(messages.Done)
    await world.settle(first)
    ledger = await world.ledger()
    for _ in range(3):
        await world.handle(world.infer(signed, body, opening), peer="a thief").task
    assert await world.ledger() == ledger
    assert world.engine.calls == 1


@pytest.mark.parametrize(
    ("tokens", "compute", "code"),
    [
        (10**6, 10**9, ErrorCode.VOUCHER_CONFLICT),
        (12, 10**9, ErrorCode.VOUCHER_CONFLICT),
        (10**6, 2_401_000, ErrorCode.VOUCHER_CONFLICT),
        (11, 2_401_000, ErrorCode.VOUCHER_TOO_LOW),
        (12, 2_400_999, ErrorCode.VOUCHER_TOO_LOW),
        (0, 0, ErrorCode.VOUCHER_TOO_LOW),
    ],
)
async def test_opening_vouchers_ahead_and_behind(world: World, tokens: int, compute: int, code: ErrorCode) -> None:
    assert world.due(Tally(), 12, 0) == Tally(12, 2_401_000 * 10**6)
    voucher = world.payer.voucher(world.pipeline.id, tokens, compute)
    assert await code_of(world, parts={"voucher": voucher}) is code


async def test_an_opening_voucher_of_another_ledger_signer_or_node(world: World) -> None:
    pipeline = world.pipeline.id
    for voucher, code in (
        (Payer(OWNER).voucher(pipeline, 12, 2_401_000), ErrorCode.VOUCHER_CONFLICT),
        (world.payer.voucher(b"\x01" * 32, 12, 2_401_000), ErrorCode.VOUCHER_CONFLICT),
        (world.payer.voucher(pipeline, 12, 2_401_000, node=b"\x01" * 32), ErrorCode.VOUCHER_CONFLICT),
        (replace(world.payer, signs_with=OWNER).voucher(pipeline, 12, 2_401_000), ErrorCode.BAD_SIGNATURE),
    ):
        assert await code_of(world, parts={"voucher": voucher}) is code


async def test_no_voucher_at_all_where_one_is_due(world: World) -> None:
    assert await code_of(world, parts={"voucher": b""}) is ErrorCode.VOUCHER_TOO_LOW


async def test_a_bad_voucher_mid_stream_ends_the_stream_and_not_the_books(world: World) -> None:
    world.engine.hold = 3
    inbound = await world.ask()
    await world.engine.held.wait()
    inbound.pay(world.payer.voucher(world.pipeline.id, 10**6, 10**12))
    assert (await refused(inbound)).code is ErrorCode.VOUCHER_CONFLICT
    held = (await world.ledger()).newest_voucher
    assert held.value.cumulative_tokens == 12


async def test_no_access(world: World) -> None:
    quote = (await world.quote()).value
    body = world.body()
    world.chain.closed.add((ADAPTERS[0], world.payer.address))
    inbound = world.handle(world.infer(world.request(quote, body), body))
    error = await refused(inbound)
    assert error.code is ErrorCode.ACCESS_DENIED
    assert ADAPTERS[0].hex() in error.message


async def test_superseded_terms(world: World) -> None:
    quote = (await world.quote()).value
    body = world.body()
    world.chain.accepted[ADAPTERS[0], 1] = NOW - 1
    error = await refused(world.handle(world.infer(world.request(quote, body), body)))
    assert error.code is ErrorCode.QUOTE_EXPIRED
    error = await refused(world.handle(messages.AskQuote(id=1, payer=bytes(20), pipeline=world.pipeline.pack())))
    assert error.code is ErrorCode.BAD_PIPELINE


async def test_a_quote_lives_no_longer_than_its_terms(world: World) -> None:
    world.chain.accepted[ADAPTERS[0], 1] = NOW + 10
    assert (await world.quote()).value.expires_at == NOW + 10


async def test_an_expired_quote(world: World) -> None:
    quote = (await world.quote()).value
    world.clock.now += world.options.quote_s + 1
    body = world.body()
    error = await refused(world.handle(world.infer(world.request(quote, body), body)))
    assert error.code is ErrorCode.QUOTE_EXPIRED


async def test_anothers_quote(world: World) -> None:
    quote = (await world.quote(Payer(OWNER))).value
    body = world.body()
    error = await refused(world.handle(world.infer(world.request(quote, body), body)))
    assert error.code is ErrorCode.QUOTE_UNKNOWN


def manifest(base: bytes) -> AdapterManifest:
    return AdapterManifest(
        config={}, files=(FileEntry(path="a.safetensors", root="0" * 64, size=1),), base=f"sha256:{base.hex()}"
    )


async def test_pipelines_that_this_node_does_not_serve(world: World) -> None:
    other = Pipeline.of(b"\xbb" * 32)
    kinds = Pipeline.of(BASE, Adapter(id=b"\xd0" * 32, terms_version=1, weight=10_000), base_terms_version=1)
    unknown = Pipeline.of(BASE, base_terms_version=7)
    for pipeline, code in (
        (other, ErrorCode.MODEL_NOT_FOUND),
        (kinds, ErrorCode.BAD_PIPELINE),
        (unknown, ErrorCode.BAD_PIPELINE),
    ):
        ask = messages.AskQuote(id=1, payer=world.payer.address, pipeline=pipeline.pack())
        assert (await refused(world.handle(ask))).code is code
    world.artifacts.manifests[ADAPTERS[0]] = manifest(b"\xbb" * 32)
    ask = messages.AskQuote(id=1, payer=world.payer.address, pipeline=world.pipeline.pack())
    assert (await refused(world.handle(ask))).code is ErrorCode.BAD_PIPELINE


async def test_an_adapter_that_turns_out_to_be_of_another_base_costs_nothing(world: World) -> None:
    inbound = await world.ask()
    world.artifacts.manifests[ADAPTERS[0]] = manifest(b"\xbb" * 32)
    assert (await refused(inbound)).code is ErrorCode.BAD_PIPELINE
    assert (await world.ledger()).reserved == 0


async def test_an_unregistered_dataset_may_become_registered(world: World) -> None:
    world.artifacts.manifests[ADAPTERS[1]] = manifest(BASE)
    world.chain.register(b"\xd1" * 32, Kind.DATASET, 0)
    await world.paid()


@pytest.mark.parametrize("which", ["peer", "ip", "signer"])
async def test_allowances(tmp_path: Path, which: str) -> None:
    narrow = replace(OPTIONS, **{which: Allowance(0.1, 3)})
    async with World(tmp_path / "j.sqlite", narrow) as world:
        quote = (await world.quote(peer="quoting", remote_ip="198.51.100.1")).value  # type: ignore[arg-type]
        body = world.body()
        codes = []
        for _ in range(4):
            message = world.infer(world.request(quote, body), body)
            error = await refused(world.handle(message))
            codes.append(error.code)
        assert codes == [ErrorCode.VOUCHER_TOO_LOW] * 3 + [ErrorCode.RATE_LIMITED]
        assert error.retry_after_ms == 10_000
        world.clock.now += 10
        message = world.infer(world.request(quote, body), body)
        assert (await refused(world.handle(message))).code is ErrorCode.VOUCHER_TOO_LOW


async def test_a_forged_request_spends_the_forgers_allowance_not_the_payers(tmp_path: Path) -> None:
    narrow = replace(OPTIONS, signer=Allowance(0.1, 3))
    async with World(tmp_path / "j.sqlite", narrow) as world:
        quote = (await world.quote()).value
        body = world.body()
        for _ in range(5):
            await refused(world.handle(world.infer(world.request(quote, body, key=OWNER), body)))
        await world.paid()


@given(st.binary(max_size=400), st.binary(max_size=400), st.binary(max_size=400), st.binary(max_size=400))
def test_random_bytes_are_refused_and_nothing_else(
    request: bytes, pipeline: bytes, body: bytes, voucher: bytes
) -> None:
    rates = Rates(peer=OPEN_DOOR, ip=OPEN_DOOR, signer=OPEN_DOOR)
    verdict = examine(
        Knock(request, pipeline, body, voucher), House(DOMAIN, NODE), rates, lambda _: None, now=NOW, instant=0.0
    )
    assert isinstance(verdict, Refusal)
