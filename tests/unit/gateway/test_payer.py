"""A payer among scripted nodes: what an honest one earns, what a lying one does not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from openlora_node.gateway.purse import Caps
from openlora_node.gateway.quotes import UNQUOTED_WEI, Quotes
from openlora_node.journal import LedgerKey, Reader, spending
from openlora_node.protocol import messages
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.pricing import ComputeRates
from openlora_node.protocol.structs import Quote, Receipt, ReceiptStatus
from support.gateway_world import (
    BASE,
    CHARGE,
    DOMAIN,
    PAYER_KEY,
    POET,
    RATES,
    STRANGER,
    Script,
    World,
    chat,
    world,
)


async def balanced(w: World) -> None:
    """Nothing is open, both sides count the same, nothing is owed."""
    await w.settle_down()
    with Reader(w.purse.journal.path) as reader:
        assert reader.violations(deep=True) == []
        assert reader.summary().running == 0
        for node in w.nodes:
            assert reader.account(PAYER_KEY.address, node.node).owed == 0
            for ours in reader.ledgers(PAYER_KEY.address, node.node, 100):
                theirs = await node.ledger(ours.key.pipeline)
                assert ours.tally.tokens == theirs.tally.tokens
                assert ours.tally.compute == theirs.tally.compute
                assert ours.voucher == theirs.voucher


async def test_an_honest_node_is_paid_what_it_earned(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        text, answer = await w.ask()
        assert text == "".join(f"t{token} " for token in range(100, 112))
        finished = answer.finished
        assert finished is not None
        receipt = finished.receipt
        assert receipt.completion_tokens == 12
        micro = RATES.micro_wei(receipt.prompt_tokens, 12)
        assert receipt.compute == micro // 10**6 + CHARGE
        assert finished.finish_reason == "stop"
        await balanced(w)
        assert await w.nodes[0].owed() == 0
        newest = w.nodes[0].vouchers[-1].value
        assert newest.reference_digest == finished.stored.digest
        assert (newest.cumulative_tokens, newest.cumulative_compute) == (receipt.tokens, receipt.compute)
        assert w.street.reports == [(w.nodes[0].node, None)]


async def test_the_settlement_charge_is_paid_once_and_fees_add_up(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        fees = [(await w.ask(text=f"number {n}"))[1].finished.receipt.fee for n in range(4)]  # type: ignore[union-attr]
        await balanced(w)
        assert fees[0] > CHARGE > max(fees[1:])
        rows = await w.purse.journal.transact(lambda tx: spending.listed(tx, 0))
        assert sum(row.amount for row in rows) == sum(fees)
        assert {row.state for row in rows} == {spending.SpendState.PAID}


async def test_a_mix_names_its_parts_and_divides_the_royalties(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        mix = [{"id": "brevity", "weight": 0.3}, {"id": "poet", "weight": 0.7}]
        prepared = await w.prepare(adapters=mix, model="tiny")
        assert prepared.label == "tiny+poet:0.7+brevity:0.3"
        assert [adapter.weight for adapter in prepared.pipeline.adapters] == [7_000, 3_000]
        _, answer = await w.ask(adapters=mix)
        assert answer.finished is not None
        numerators = answer.finished.offer.schedule.numerators
        assert numerators == (3 * 10**13, 7 * 7 * 10**12, 2 * 3 * 10**12)
        await balanced(w)


async def test_output_that_runs_past_the_voucher_is_paid_as_it_comes(tmp_path: Path) -> None:
    async with world(tmp_path, Script(output=tuple(range(64)), unpaid_tokens=8)) as w:
        _, answer = await w.ask(max_tokens=64)
        assert answer.finished is not None
        assert answer.finished.receipt.completion_tokens == 64
        amounts = [voucher.value.cumulative_tokens for voucher in w.nodes[0].vouchers]
        assert amounts == sorted(amounts)
        assert len(amounts) > 5
        await balanced(w)


def tampered(**changes: object) -> Callable[[Receipt], Receipt]:
    """A receipt with these fields changed; a callable gets the old value."""

    def tamper(receipt: Receipt) -> Receipt:
        import msgspec

        values = {
            name: change(getattr(receipt, name)) if callable(change) else change for name, change in changes.items()
        }
        return msgspec.structs.replace(receipt, **values)

    return tamper


LIES: dict[str, tuple[Script, str]] = {
    "more generated tokens than came": (
        Script(receipt=tampered(completion_tokens=lambda n: n + 1)), "generated tokens"),
    "fewer generated tokens than came": (
        Script(receipt=tampered(completion_tokens=lambda n: n - 1)), "generated tokens"),
    "more prompt tokens": (Script(receipt=tampered(prompt_tokens=lambda n: n + 1)), "prompt tokens"),
    "another output": (Script(receipt=tampered(output_hash=b"\x13" * 32)), "output hash"),
    "a higher price": (Script(receipt=tampered(compute=lambda wei: wei + 2)), "compute"),
    "a lower price": (Script(receipt=tampered(compute=lambda wei: wei - 2)), "compute"),
    "higher royalties": (Script(receipt=tampered(royalties=lambda wei: wei + 2)), "royalties"),
    "another payer": (Script(receipt=tampered(payer=b"\x31" * 20)), "another payer"),
    "another pipeline": (Script(receipt=tampered(pipeline_id=b"\x31" * 32)), "another payer, node or pipeline"),
    "another request": (Script(receipt=tampered(request_digest=b"\x31" * 32)), "another request"),
    "a time before the request": (
        Script(receipt=tampered(started_at=0, finished_at=lambda at: at - 3_600)), "not finished between"),
    "a time in the future": (Script(receipt=tampered(finished_at=lambda at: at + 3_600)), "not finished between"),
    "a stranger's signature": (Script(receipt_key=STRANGER), "not signed by the node"),
    "a prompt counted wrong at the start": (Script(prompt_error=3), "counts"),
    "a pause over tokens that never came": (Script(unpaid_tokens=3, demand=1), "demands a voucher over more"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.replace(" ", "-"))
async def test_a_lie_is_not_paid(tmp_path: Path, lie: str) -> None:
    script, told = LIES[lie]
    async with world(tmp_path, script) as w:
        with pytest.raises(OpenLoraError, match=told) as caught:
            await w.ask(max_tokens=40)
        assert caught.value.code is ErrorCode.RECEIPT_INVALID
        await w.settle_down()
        node = w.nodes[0]
        # What was given stands: the vouchers sent. Nothing past what had come was ever signed.
        given = max(voucher.value.cumulative_tokens for voucher in node.vouchers)
        request = node.requests[0].value
        prompt = (await w.prepare(max_tokens=40)).prompt_tokens
        assert given <= prompt + 12
        rows = await w.purse.journal.transact(lambda tx: spending.listed(tx, 0))
        assert [row.state for row in rows] == [spending.SpendState.LOST]
        assert 0 < rows[0].amount <= request.max_fee
        assert w.street.reports[-1] == (node.node, ErrorCode.RECEIPT_INVALID)
        # It is not asked again for an hour.
        with pytest.raises(OpenLoraError) as caught:
            await w.ask()
        assert caught.value.code is ErrorCode.NO_NODE
        assert len(node.requests) == 1


async def test_the_settlement_charge_is_not_paid_twice(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.ask()
        w.nodes[0].script.receipt = tampered(compute=lambda wei: wei + CHARGE)
        with pytest.raises(OpenLoraError, match="compute"):
            await w.ask(text="again")


async def test_a_settlement_charge_is_not_due_where_the_first_receipt_held_none(tmp_path: Path) -> None:
    async with world(tmp_path, Script(charge=0)) as w:
        await w.ask()
        w.clock.now += 200
        w.nodes[0].script = Script(receipt=tampered(compute=lambda wei: wei + CHARGE))
        with pytest.raises(OpenLoraError, match="compute") as caught:
            await w.ask(text="again")
        assert caught.value.code is ErrorCode.RECEIPT_INVALID


def quoted(**changes: object) -> Callable[[Quote], Quote]:
    import msgspec

    return lambda quote: msgspec.structs.replace(quote, **changes)


def dearer_royalties(quote: Quote) -> Quote:
    import msgspec

    first, *others = quote.royalties
    return msgspec.structs.replace(quote, royalties=(msgspec.structs.replace(first, rate=first.rate + 1), *others))


def other_owner(quote: Quote) -> Quote:
    import msgspec

    first, *others = quote.royalties
    return msgspec.structs.replace(quote, royalties=(msgspec.structs.replace(first, owner=b"\x77" * 20), *others))


@pytest.mark.parametrize(
    "script",
    [
        Script(quote_key=STRANGER),
        Script(quote=quoted(payer=b"\x31" * 20)),
        Script(quote=quoted(node=b"\x31" * 32)),
        Script(quote=quoted(pipeline_id=b"\x31" * 32)),
        Script(quote=dearer_royalties),
        Script(quote=other_owner),
    ],
    ids=["forged", "payer", "node", "pipeline", "royalties", "owner"],
)
async def test_a_false_quote_is_never_signed_for(tmp_path: Path, script: Script) -> None:
    async with world(tmp_path, script, Script()) as w:
        text, answer = await w.ask()
        assert text
        assert answer.finished is not None
        assert answer.finished.receipt.node == w.nodes[1].node
        assert w.nodes[0].requests == []
        await w.settle_down()


async def test_a_quote_above_the_cap_falls_to_a_cheaper_node(tmp_path: Path) -> None:
    dear = ComputeRates(10**22, 10**22)
    async with world(tmp_path, Script(rates=dear), Script()) as w:
        _, answer = await w.ask()
        assert answer.finished is not None
        assert answer.finished.receipt.node == w.nodes[1].node
        assert w.nodes[0].requests == []
        await balanced(w)


async def test_a_quote_above_the_cap_everywhere_says_so(tmp_path: Path) -> None:
    dear = ComputeRates(10**22, 10**22)
    async with world(tmp_path, Script(rates=dear)) as w:
        for fields in ({}, {"max_tokens": 10}):
            with pytest.raises(OpenLoraError, match="spend_per_request") as caught:
                await w.ask(**fields)
            assert caught.value.code is ErrorCode.SPEND_CAP
        assert w.nodes[0].requests == []


async def test_a_receipt_of_an_earlier_request_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path, Script(resend_receipt=True)) as w:
        await w.ask()
        with pytest.raises(OpenLoraError, match="another request"):
            await w.ask(text="another")


async def test_failover_before_the_first_token(tmp_path: Path) -> None:
    busy = Script(refuse=OpenLoraError(ErrorCode.BUSY, retry_after_ms=700))
    early = Script(error_after=(0, OpenLoraError(ErrorCode.ENGINE_UNAVAILABLE)))
    vanishing = Script(vanish_after=0)
    failing = Script(fail=True, output=())
    async with world(tmp_path, busy, early, vanishing, failing, Script()) as w:
        text, answer = await w.ask()
        assert text
        assert answer.finished is not None
        assert answer.finished.receipt.node == w.nodes[4].node
        await w.settle_down()
        nonces = {request.value.nonce for node in w.nodes for request in node.requests}
        assert len(nonces) == 4  # the busy one refused before it kept its own
        rows = await w.purse.journal.transact(lambda tx: spending.listed(tx, 0))
        states = [row.state for row in rows]
        assert states.count(spending.SpendState.PAID) == 2  # the failed one's receipt says 0
        assert states.count(spending.SpendState.LOST) == 3


async def test_the_node_before_is_cancelled_first(tmp_path: Path) -> None:
    hold = asyncio.Event()
    async with world(tmp_path, Script(prompt_error=1, hold=hold), Script()) as w:
        _, answer = await w.ask()
        assert answer.finished is not None
        assert answer.finished.receipt.node == w.nodes[1].node
        first, second = w.street.exchanges
        assert first.cancelled
        assert not second.cancelled or answer.finished
        hold.set()


async def test_unreachable_nodes_are_passed_over(tmp_path: Path) -> None:
    async with world(tmp_path, Script(), Script(silent_quote=True), Script()) as w:
        w.street.unreachable.add(w.nodes[0].node)
        _, answer = await w.ask()
        assert answer.finished is not None
        assert answer.finished.receipt.node == w.nodes[2].node
        await balanced(w)


async def test_the_only_node_is_tried_once_more_when_the_way_to_it_broke(tmp_path: Path) -> None:
    async with world(tmp_path, Script(vanish_after=0)) as w:
        with pytest.raises(OpenLoraError) as caught:
            await w.ask()
        assert caught.value.code in (ErrorCode.NODE_LOST, ErrorCode.VOUCHER_TOO_LOW)
        assert w.street.opened[w.nodes[0].node] >= 2
        await w.settle_down()
    folder = tmp_path / "again"
    folder.mkdir()
    async with world(folder, Script(silent_quote=True)) as w:
        opened = w.street.open

        async def mended(node: bytes) -> object:
            exchange = await opened(node)
            w.nodes[0].script = Script()
            return exchange

        answer = w.payer.start(await w.prepare())
        w.street.open = mended  # type: ignore[method-assign, assignment]
        assert [piece async for piece in answer]
        await balanced(w)


async def test_a_node_lost_mid_stream_ends_it_and_costs_the_vouchers_given(tmp_path: Path) -> None:
    async with world(tmp_path, Script(vanish_after=8, output=tuple(range(40))), Script()) as w:
        seen = []
        answer = w.payer.start(await w.prepare())
        with pytest.raises(OpenLoraError) as caught:
            async for piece in answer:
                seen.extend(piece.token_ids)
        assert caught.value.code is ErrorCode.NODE_LOST
        assert seen == list(range(8))
        await w.settle_down()
        assert w.nodes[1].requests == []  # never a second attempt after a token
        rows = await w.purse.journal.transact(lambda tx: spending.listed(tx, 0))
        voucher = w.nodes[0].vouchers[-1].value
        schedule = w.nodes[0]._schedules[voucher.pipeline_id]
        assert rows[0].amount == schedule.value(voucher)
        assert len(w.nodes[0].vouchers) == 1


async def test_an_error_of_the_engine_mid_stream_ends_it(tmp_path: Path) -> None:
    broken = Script(error_after=(4, OpenLoraError(ErrorCode.ENGINE_FAILED)))
    async with world(tmp_path, broken, Script()) as w:
        with pytest.raises(OpenLoraError) as caught:
            await w.ask()
        assert caught.value.code is ErrorCode.ENGINE_FAILED
        assert w.nodes[1].requests == []
        # The prompt's voucher was given: the next request on this node uses it up.
        w.nodes[0].script = Script()
        await w.settle_down()
        _, answer = await w.ask()
        assert answer.finished is not None
        assert answer.finished.receipt.node == w.nodes[0].node
        await balanced(w)


async def test_all_busy_passes_on_the_wait(tmp_path: Path) -> None:
    busy = Script(refuse=OpenLoraError(ErrorCode.BUSY, retry_after_ms=700))
    async with world(tmp_path, busy, replace(busy)) as w:
        with pytest.raises(OpenLoraError) as caught:
            await w.ask()
        assert caught.value.code is ErrorCode.BUSY
        assert caught.value.retry_after_ms == 700


@pytest.mark.parametrize("code", ["STORAGE_FULL", "SPEND_CAP", "JOURNAL_CORRUPT", "TOO_MANY_NONCES"])
async def test_a_node_speaks_for_itself_alone(tmp_path: Path, code: str) -> None:
    """What would end a request if it were said of this machine is one node's refusal, and another is asked."""
    claim = messages.ErrorReply(code=code, message="visit http://evil.example").error()
    async with world(tmp_path, Script(refuse=claim), Script()) as w:
        _, answer = await w.ask()
        assert answer.finished is not None
        assert answer.finished.receipt.node == w.nodes[1].node
        await balanced(w)


async def test_two_nodes_that_refuse_alike_blame_the_request(tmp_path: Path) -> None:
    refusal = Script(refuse=OpenLoraError(ErrorCode.UNSUPPORTED, "no logit_bias here"))
    async with world(tmp_path, refusal, replace(refusal), Script()) as w:
        with pytest.raises(OpenLoraError, match="logit_bias"):
            await w.ask()
        assert w.nodes[2].requests == []


async def test_an_expired_quote_is_asked_for_again(tmp_path: Path) -> None:
    script = Script(refuse=OpenLoraError(ErrorCode.QUOTE_UNKNOWN), refuse_times=1)
    async with world(tmp_path, script) as w:
        await w.ask()
        assert w.nodes[0].quoted == 2
        await balanced(w)


async def test_a_quote_serves_until_it_expires(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for _ in range(3):
            await w.ask()
        assert w.nodes[0].quoted == 1
        w.clock.now += 200
        await w.ask()
        assert w.nodes[0].quoted == 2
        await balanced(w)


async def test_a_client_that_leaves_pays_for_what_was_made(tmp_path: Path) -> None:
    hold = asyncio.Event()
    async with world(tmp_path, Script(output=tuple(range(400)), hold=hold)) as w:
        answer = w.payer.start(await w.prepare(max_tokens=400))
        hold.set()
        first = await anext(answer)
        assert first.token_ids
        answer.hang_up()
        await balanced(w)
        assert w.nodes[0].cancelled == 1
        rows = await w.purse.journal.transact(lambda tx: spending.listed(tx, 0))
        assert rows[0].state is spending.SpendState.PAID
        with Reader(w.purse.journal.path) as reader:
            (stored,) = reader.receipts(w.nodes[0].node, -1, 10)
        assert stored.receipt.value.status == ReceiptStatus.CANCELLED
        assert 0 < stored.receipt.value.completion_tokens < 400


async def test_a_client_that_leaves_before_the_first_token(tmp_path: Path) -> None:
    hold = asyncio.Event()
    async with world(tmp_path, Script(hold=hold)) as w:
        answer = w.payer.start(await w.prepare())
        while not w.nodes[0].requests:
            await asyncio.sleep(0)
        answer.hang_up()
        hold.set()
        await balanced(w)
        with Reader(w.purse.journal.path) as reader:
            (stored,) = reader.receipts(w.nodes[0].node, -1, 10)
        assert stored.receipt.value.completion_tokens == 0


@pytest.mark.parametrize("streams", [8, 24])
async def test_requests_side_by_side_keep_one_ledger_straight(tmp_path: Path, streams: int) -> None:
    script = Script(output=tuple(range(40)), unpaid_tokens=6, per_message=3)
    async with world(tmp_path, script, caps=Caps(10**15, 10**18)) as w:
        answers = await asyncio.gather(*(w.ask(text=f"number {n}", max_tokens=17 + n) for n in range(streams)))
        fees = [answer.finished.receipt.fee for _, answer in answers]  # type: ignore[union-attr]
        await balanced(w)
        pipeline = (await w.prepare()).pipeline
        ledger = await w.purse.journal.ledger(
            LedgerKey(PAYER_KEY.address, w.nodes[0].node, PAYER_KEY.address, pipeline.id)
        )
        assert ledger.fee == sum(fees)
        assert sum(fee > CHARGE for fee in fees) == 1


async def test_parallel_requests_do_not_pass_the_days_cap(tmp_path: Path) -> None:
    hold = asyncio.Event()
    async with world(tmp_path, Script(hold=hold)) as w:
        offers = await w.payer.quotes(await w.prepare(max_tokens=12))
        most = offers[0][2]
    cap = 3 * most
    folder = tmp_path / "capped"
    folder.mkdir()
    async with world(folder, Script(hold=hold, output=range(12)), caps=Caps(most, cap)) as w:  # type: ignore[arg-type]
        asking = [asyncio.ensure_future(w.ask(max_tokens=12)) for _ in range(10)]
        done, waiting = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 7:
            more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            done |= more
        assert len(w.nodes[0].requests) == 3
        codes = {task.exception().code for task in done}  # type: ignore[union-attr]
        assert codes == {ErrorCode.SPEND_CAP}
        spent = await w.purse.journal.transact(lambda tx: spending.spent_since(tx, 0))
        assert spent == cap
        hold.set()
        await asyncio.gather(*waiting)
        await balanced(w)
        assert await w.purse.journal.transact(lambda tx: spending.spent_since(tx, 0)) < cap
        # The day's cap rolls.
        w.clock.now += spending.DAY_S + 1
        await w.ask(max_tokens=12)


async def test_the_cap_holds_across_a_restart(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        most = (await w.payer.quotes(await w.prepare(max_tokens=12)))[0][2]
    caps = Caps(most, most + 1)
    folder = tmp_path / "capped"
    folder.mkdir()
    async with world(folder, Script(), caps=caps) as w:
        await w.ask(max_tokens=12)
        nodes, w_clock = w.nodes, w.clock
    from support.gateway_world import ScriptedNode

    again = ScriptedNode(9, folder, w_clock, Script())
    async with world(folder, caps=caps, nodes=[again]) as w:
        with pytest.raises(OpenLoraError) as caught:
            await w.ask(max_tokens=12)
        assert caught.value.code is ErrorCode.SPEND_CAP
    await again.journal.close()
    assert nodes


async def test_the_chain_decides_what_a_bare_id_means(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.payer._preparer.names = replace(w.names, adapters={})
        w.chain.components[POET] = ((b"\xd5" * 32, 5_000), (BASE, 1_000))
        prepared = await w.prepare(model=f"sha256:{POET.hex()}")
        assert prepared.pipeline.base == BASE
        assert [adapter.id for adapter in prepared.pipeline.adapters] == [POET]
        base = await w.prepare(model=f"sha256:{BASE.hex()}")
        assert base.pipeline.adapters == ()
        for unknown in (b"\x44" * 32, b"\xd5" * 32):
            with pytest.raises(OpenLoraError) as caught:
                await w.prepare(model=f"sha256:{unknown.hex()}")
            assert caught.value.code is ErrorCode.MODEL_NOT_FOUND


async def test_access_and_an_unreachable_chain_are_told_before_anything_is_sent(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.chain.denied.add(POET)
        with pytest.raises(OpenLoraError, match=r"poet: `openlora artifacts buy sha256:.* --for 0x") as caught:
            await w.ask(model="tiny+poet")
        assert caught.value.code is ErrorCode.ACCESS_DENIED
        w.chain.down = True
        with pytest.raises(OpenLoraError) as caught:
            await w.ask()
        assert caught.value.code is ErrorCode.CHAIN_FAILED
        assert w.nodes[0].requests == []


async def test_several_choices_share_one_bound(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        _, answer = await w.ask(n=3, max_tokens=5)
        assert answer.finished is not None
        assert answer.finished.lengths == (5, 5, 5)
        assert w.nodes[0].requests[0].value.max_tokens == 15
        await balanced(w)


async def test_the_body_sent_is_the_prompt_and_nothing_of_the_clients_own(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        body = chat(user="alice", stream=True, metadata={"trace": "1"}, temperature=0.5, model="poet")
        await w.ask(body)
        sent = w.nodes[0].bodies[0]
        assert b"alice" not in sent
        assert b"trace" not in sent
        assert b"poet" not in sent
        assert f'"model":"sha256:{BASE.hex()}"'.encode() in sent
        assert b'"temperature":0.5' in sent
        assert DOMAIN.chain_id


async def test_the_picker_learns_which_ledgers_have_paid_their_charge(tmp_path: Path) -> None:
    async with world(tmp_path, Script(charge=700)) as w:
        node = w.nodes[0].node
        await w.ask()
        pipeline = w.street.asks[-1].pipeline
        assert w.payer.held.charge_due(node, pipeline) == 0
        assert w.payer.held.charge_due(node, b"\x09" * 32) == UNQUOTED_WEI
        again = Quotes(w.purse, w.chain)
        assert again.charge_due(node, pipeline) == UNQUOTED_WEI
        await again.load()
        assert again.charge_due(node, pipeline) == 0, "a restart remembers"


async def test_a_quote_says_what_the_first_response_is_charged(tmp_path: Path) -> None:
    async with world(tmp_path, Script(charge=700)) as w:
        await w.payer.quotes(await w.prepare(max_tokens=12))
        assert w.payer.held.charge_due(w.nodes[0].node, w.street.asks[-1].pipeline) == 700


@pytest.mark.parametrize("lie", [lambda text: "x" * len(text), lambda text: text[1:], lambda text: text + "!"])
async def test_text_that_its_ids_do_not_stand_for_is_not_paid(tmp_path: Path, lie: Callable[[str], str]) -> None:
    async with world(tmp_path, Script(text=lie)) as w:
        with pytest.raises(OpenLoraError, match="not what its token ids stand for") as caught:
            await w.ask(max_tokens=12)
        assert caught.value.code is ErrorCode.RECEIPT_INVALID
        assert w.street.reports == [(w.nodes[0].node, ErrorCode.RECEIPT_INVALID)]
        with Reader(w.purse.journal.path) as reader:
            assert not list(reader.receipts(w.nodes[0].node, -1, 10))
        with pytest.raises(OpenLoraError) as caught:
            await w.ask(text="again")
        assert caught.value.code is ErrorCode.NO_NODE, "it is not asked again"
