"""One paid request from quote to closing voucher, and everything that may cut it short."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from openlora_node.chainview.values import EscrowState
from openlora_node.engineclient.values import Chunk
from openlora_node.protocol import messages
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.pricing import Tally
from openlora_node.protocol.structs import ReceiptStatus, output_hash
from support.serving_world import (
    ADAPTERS,
    BASE,
    DOMAIN,
    NODE_KEY,
    OPTIONS,
    OWNER,
    ROYALTY,
    FakeInbound,
    Payer,
    World,
    receipt_of,
    refused,
    tokens,
)

SHORT = replace(OPTIONS, pay_s=0.05, closing_s=0.05, orphan_s=0.05)


@pytest.fixture
async def world(tmp_path: Path):
    async with World(tmp_path / "journal.sqlite") as made:
        yield made


@pytest.fixture
async def hasty(tmp_path: Path):
    """A world that waits for nobody for long."""
    async with World(tmp_path / "journal.sqlite", SHORT) as made:
        yield made


async def test_a_quote_states_prices_royalties_and_owners_and_is_signed(world: World) -> None:
    signed = await world.quote()
    quote = signed.value
    assert signed.signer(DOMAIN) == NODE_KEY.address
    assert (quote.input_rate, quote.output_rate, quote.settlement_charge) == (
        world.prices.input_rate, world.prices.output_rate, world.prices.settlement_charge,
    )  # fmt: skip
    assert [(r.artifact, r.terms_version, r.rate, r.owner) for r in quote.royalties] == [
        (BASE, 1, ROYALTY, OWNER.address),
        (ADAPTERS[0], 1, ROYALTY, OWNER.address),
        (ADAPTERS[1], 0, 0, bytes(20)),
    ]
    assert quote.expires_at == world.clock.now + world.options.quote_s


async def test_the_same_question_gets_the_same_quote_until_half_its_life_or_another_price(world: World) -> None:
    first = (await world.quote()).value
    world.clock.now += world.options.quote_s // 2 - 1
    assert (await world.quote()).value == first
    world.clock.now += 2
    second = (await world.quote()).value
    assert second != first
    world.prices = replace(world.prices, input_rate=1)
    assert (await world.quote()).value.input_rate == 1


async def test_one_request_is_streamed_receipted_and_paid(world: World) -> None:
    inbound = await world.paid()
    kinds = [type(message).__name__ for message in inbound.sent]
    assert kinds == ["Accepted", *["Tokens"] * 20, "Done", "Settled"]
    prompt = inbound.of(messages.Accepted)[0].prompt_tokens
    receipt = receipt_of(inbound)
    ids = [token for message in inbound.of(messages.Tokens) for token in message.token_ids]
    assert (receipt.status, receipt.prompt_tokens, receipt.completion_tokens) == (ReceiptStatus.COMPLETE, prompt, 20)
    assert receipt.output_hash == output_hash(ids)
    after = world.due(Tally(), prompt, 20)
    assert (receipt.compute, receipt.royalties) == (after.compute, world.schedule.royalties(after.tokens))
    assert inbound.of(messages.Settled)[0].cumulative_tokens == after.tokens
    ledger = await world.ledger()
    assert (ledger.owed, ledger.reserved, ledger.tally) == (0, 0, after)
    assert world.engine.loaded == list(ADAPTERS)
    await world.journal.check_integrity(deep=True)


async def test_the_receipt_is_on_disk_before_done_is_sent(tmp_path: Path) -> None:
    steps: list[str] = []
    async with World(tmp_path / "journal.sqlite", on_step=steps.append) as world:
        inbound = await world.ask()
        send = inbound.send

        async def watched(message: messages.InferMessage) -> None:
            if isinstance(message, messages.Done):
                assert steps[-1] == "committed"
                assert "receipt.receipts" in steps
            await send(message)

        inbound.send = watched  # type: ignore[method-assign]
        await inbound.until(messages.Done)


async def test_receipts_chain_and_the_settlement_charge_is_due_once(world: World) -> None:
    first, second = receipt_of(await world.paid()), receipt_of(await world.paid())
    assert second.previous == first.digest(DOMAIN)
    assert second.seq == first.seq + 1
    assert first.compute - second.compute == world.prices.settlement_charge


async def test_choices_are_counted_and_hashed_in_order_of_their_index(world: World) -> None:
    inbound = await world.paid(body=world.body(n=3), max_tokens=9)
    receipt = receipt_of(inbound)
    assert receipt.completion_tokens == 9
    assert receipt.output_hash == output_hash([0, 1, 2, 1000, 1001, 1002, 2000, 2001, 2002])
    starts = [(m.choice, m.start) for m in inbound.of(messages.Tokens)]
    assert starts == [(choice, place) for place in range(3) for choice in range(3)]


@pytest.mark.parametrize(
    ("reasons", "said"),
    [(("stop", "stop"), "stop"), (("stop", "length"), "stop,length"), (("stop", "length") * 4, "mixed")],
)
async def test_finish_reasons_of_choices(world: World, reasons: tuple[str, ...], said: str) -> None:
    world.engine.script = [Chunk(index, (index,), "x", finish_reason=reason) for index, reason in enumerate(reasons)]
    inbound = await world.paid(body=world.body(n=len(reasons)), max_tokens=20)
    assert inbound.of(messages.Done)[0].finish_reason == said


async def test_text_without_a_token_goes_with_the_next_one(world: World) -> None:
    world.engine.script = [Chunk(0, (), "a"), Chunk(0, (1,), "b"), Chunk(0, (), "", finish_reason="stop")]
    inbound = await world.paid()
    assert [(m.token_ids, m.text) for m in inbound.of(messages.Tokens)] == [((1,), "ab")]
    assert inbound.of(messages.Done)[0].finish_reason == "stop"


async def test_the_bound_of_a_choice_is_the_bodys_within_max_tokens(world: World) -> None:
    await world.paid(body=world.body(max_tokens=5), max_tokens=20)
    await world.paid(body=world.body(max_tokens=50), max_tokens=20)
    await world.paid(body=world.body(n=2), max_tokens=21)
    assert [most for _, most, _ in world.engine.seen] == [5, 20, 10]


async def test_an_engine_that_gives_more_than_was_signed_is_stopped_for_nothing(world: World) -> None:
    world.engine.script = tokens(21)
    inbound = await world.ask(max_tokens=20)
    assert (await refused(inbound)).code is ErrorCode.ENGINE_FAILED
    assert (await world.tally()) == Tally()


async def test_output_pauses_past_the_newest_voucher_until_it_is_paid_for(tmp_path: Path) -> None:
    async with World(tmp_path / "j.sqlite", replace(OPTIONS, unpaid_tokens=8)) as world:
        inbound = await world.ask(max_tokens=20)
        paused = await inbound.until(messages.Paused)
        prompt = inbound.of(messages.Accepted)[0].prompt_tokens
        assert sum(len(m.token_ids) for m in inbound.of(messages.Tokens)) == 8
        due = world.due(Tally(), prompt, 8)
        assert paused.cumulative_tokens == due.tokens
        assert int.from_bytes(paused.cumulative_compute, "big") == due.compute
        inbound.pay(world.payer.voucher(world.pipeline.id, due.tokens, due.compute))
        await inbound.until(messages.Paused, 2)
        assert sum(len(m.token_ids) for m in inbound.of(messages.Tokens)) == 16
        most = world.due(Tally(), prompt, 20)
        inbound.pay(world.payer.voucher(world.pipeline.id, most.tokens, most.compute))
        await inbound.task
        assert receipt_of(inbound).status == ReceiptStatus.COMPLETE
        assert inbound.of(messages.Settled)[0].cumulative_tokens == most.tokens


async def test_a_voucher_that_is_not_enough_is_asked_about_again(tmp_path: Path) -> None:
    async with World(tmp_path / "j.sqlite", replace(OPTIONS, unpaid_tokens=8)) as world:
        inbound = await world.ask(max_tokens=20)
        await inbound.until(messages.Paused)
        prompt = inbound.of(messages.Accepted)[0].prompt_tokens
        world.engine.script = None
        some = world.due(Tally(), prompt, 1)
        inbound.pay(world.payer.voucher(world.pipeline.id, some.tokens, some.compute))
        again = await inbound.until(messages.Paused, 2)
        assert sum(len(m.token_ids) for m in inbound.of(messages.Tokens)) == 9
        assert again.cumulative_tokens == world.due(Tally(), prompt, 9).tokens
        more = world.payer.voucher(world.pipeline.id, some.tokens + 1, some.compute)
        inbound.pay(more)  # tokens without their compute: not one token goes out for it
        await inbound.until(messages.Paused, 3)
        assert sum(len(m.token_ids) for m in inbound.of(messages.Tokens)) == 9


async def test_no_voucher_while_paused_ends_it_as_cancelled_with_what_was_sent(tmp_path: Path) -> None:
    async with World(tmp_path / "j.sqlite", replace(SHORT, unpaid_tokens=8)) as world:
        inbound = await world.ask(max_tokens=20)
        await inbound.task
        receipt = receipt_of(inbound)
        assert (receipt.status, receipt.completion_tokens) == (ReceiptStatus.CANCELLED, 8)
        assert inbound.of(messages.Done)[0].finish_reason == "voucher_late"
        assert (await world.ledger()).owed > 0
        assert world.engine.left == 1


async def test_parallel_responses_of_one_ledger_share_the_bound(tmp_path: Path) -> None:
    async with World(tmp_path / "j.sqlite", replace(OPTIONS, unpaid_tokens=8)) as world:
        body = world.body()
        prompt = world.prompt_of(body)
        opening = world.opening(world.due(Tally(), prompt, 0), prompt)
        first = await world.ask(body=body)
        await first.until(messages.Paused)
        second = await world.ask(body=body, voucher=opening)
        await second.until(messages.Accepted)
        await second.until(messages.Paused)
        assert sum(len(m.token_ids) for i in (first, second) for m in i.of(messages.Tokens)) == 8


async def test_cancel_pays_prompt_and_what_was_generated(world: World) -> None:
    world.engine.hold = 5
    inbound = await world.ask()
    await world.engine.held.wait()
    await inbound.until_tokens(5)
    inbound.cancel()
    done = await inbound.until(messages.Done)
    receipt = receipt_of(inbound)
    assert (receipt.status, receipt.completion_tokens, done.finish_reason) == (ReceiptStatus.CANCELLED, 5, "cancelled")
    assert receipt.prompt_tokens > 0
    assert world.engine.exited.is_set()
    await world.settle(inbound)
    assert (await world.ledger()).owed == 0


async def test_cancel_before_the_engine_has_it_costs_nothing(world: World) -> None:
    world.chain.gate = asyncio.Event()
    inbound = await world.ask()
    inbound.cancel()
    while not inbound._inbox.empty():
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    world.chain.gate.set()
    assert (await refused(inbound)).code is ErrorCode.CANCELLED
    assert world.engine.calls == 0
    assert await world.tally() == Tally()


async def test_a_missing_closing_voucher_is_a_debt_that_shuts_the_door(hasty: World) -> None:
    world = hasty
    inbound = await world.ask()
    await inbound.until(messages.Done)
    await inbound.task
    owed = (await world.ledger()).owed
    assert owed > 0
    ledger = await world.ledger()
    covers_prompt_only = ledger.newest_voucher.pack()
    error = await refused(await world.ask(voucher=covers_prompt_only))
    assert error.code is ErrorCode.VOUCHER_TOO_LOW
    await world.ask()  # its opening voucher covers the debt


async def test_a_debt_in_another_ledger_shuts_the_door_too(hasty: World) -> None:
    world = hasty
    inbound = await world.ask()
    await inbound.task
    world.payer.signs_with = Payer().key
    other = replace(world.payer, signs_with=OWNER)
    world.chain.signers.add((world.payer.address, OWNER.address))
    error = await refused(
        await world.ask(payer=other, voucher=world.opening(Tally(), world.prompt_of(world.body()), payer=other))
    )
    assert error.code is ErrorCode.DEBT_OUTSTANDING


async def test_a_payer_may_go_on_while_its_closing_voucher_is_awaited(tmp_path: Path) -> None:
    async with World(tmp_path / "j.sqlite", OPTIONS) as world:
        body = world.body()
        prompt = world.prompt_of(body)
        first = await world.ask(body=body)
        await first.until(messages.Done)
        # Signed before the receipt arrived: prompts of both, nothing of the first one's output.
        opening = world.opening(world.due(Tally(), prompt, 0), prompt)
        second = await world.ask(body=body, voucher=opening)
        await second.until(messages.Done)
        tally = await world.tally()
        voucher = world.payer.voucher(world.pipeline.id, tally.tokens, tally.compute)
        second.pay(voucher)
        await asyncio.gather(first.task, second.task)
        assert (await world.ledger()).owed == 0


async def test_too_many_at_once_are_busy_and_told_where_else_to_go(tmp_path: Path) -> None:
    async with World(tmp_path / "j.sqlite", replace(OPTIONS, in_flight_per_payer=1, queue=1)) as world:
        world.engine.hold = 0
        first = await world.ask()
        await world.engine.held.wait()
        error = await refused(await world.ask())
        assert error.code is ErrorCode.BUSY
        assert error.retry_after_ms
        assert error.alternatives == world.others
        other = Payer(OWNER)
        error = await refused(await world.ask(payer=other))
        assert error.code is ErrorCode.BUSY
        world.engine.release.set()
        await first.until(messages.Done)
        await world.settle(first)
        await world.paid()


async def test_a_slow_reader_pauses_itself_alone(tmp_path: Path) -> None:
    async with World(tmp_path / "j.sqlite", replace(OPTIONS, lead_tokens=4)) as world:
        slow = await world.ask(max_tokens=20)
        slow.can_send.clear()
        other = Payer(OWNER)
        await world.paid(payer=other)
        assert world.serving.load().responses == 1
        assert world.engine.yielded < 20 + 20
        slow.can_send.set()
        await slow.until(messages.Done)
        assert receipt_of(slow).completion_tokens == 20


async def test_a_reader_that_never_reads_is_given_up(tmp_path: Path) -> None:
    async with World(tmp_path / "j.sqlite", replace(OPTIONS, lead_tokens=4, stall_s=0.05)) as world:
        slow = await world.ask(max_tokens=20)
        await slow.until(messages.Accepted)
        slow.can_send.clear()
        await world.engine.exited.wait()
        slow.can_send.set()
        await slow.until(messages.Done)
        assert receipt_of(slow).status == ReceiptStatus.CANCELLED


async def test_a_lost_payer_is_waited_for_then_the_response_ends_as_cancelled(hasty: World) -> None:
    world = hasty
    world.engine.hold = 3
    inbound = await world.ask()
    await world.engine.held.wait()
    inbound.lose()
    assert (await refused(inbound)).code is ErrorCode.NODE_LOST
    await world.engine.exited.wait()
    while not (tally := await world.tally()).tokens:
        await asyncio.sleep(0.01)
    assert tally.tokens == world.prompt_of(world.body()) + 3


@pytest.mark.parametrize("at", [0, 7])
async def test_an_engine_failure_costs_nothing_and_the_same_request_may_be_sent_again(world: World, at: int) -> None:
    world.engine.fail_at = at
    body = world.body()
    quote = (await world.quote()).value
    signed = world.request(quote, body)
    opening = world.opening(Tally(), world.prompt_of(body))
    error = await refused(world.handle(world.infer(signed, body, opening)))
    assert error.code is ErrorCode.ENGINE_FAILED
    assert error.code.retryable
    ledger = await world.ledger()
    assert (ledger.tally, ledger.reserved) == (Tally(), 0)
    world.engine.fail_at = None
    again = world.handle(world.infer(signed, body, opening))
    await again.until(messages.Done)
    assert receipt_of(again).completion_tokens == 20
    await world.settle(again)


async def test_a_fault_of_ours_is_told_as_internal_and_logs_no_prompt(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.engine.fail_at = 1
    world.engine.error = ValueError("SECRET PROMPT")  # type: ignore[assignment]
    inbound = await world.ask(body=world.body("SECRET PROMPT"))
    assert (await refused(inbound)).code is ErrorCode.INTERNAL
    assert (await world.ledger()).reserved == 0
    assert "ValueError" in caplog.text
    assert "SECRET" not in caplog.text


async def test_prompts_and_outputs_are_in_no_log_and_not_on_disk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with World(tmp_path / "j.sqlite") as world:
        world.engine.script = [Chunk(0, (7,), "SECRETOUTPUT", finish_reason="stop")]
        await world.paid(body=world.body("SECRETPROMPT", stop=["SECRETSTOP"]))
    assert "SECRET" not in caplog.text
    for file in tmp_path.iterdir():
        assert b"SECRET" not in file.read_bytes()


async def test_an_adapter_that_cannot_be_had_costs_nothing(world: World) -> None:
    world.artifacts.missing.add(ADAPTERS[1])
    assert (await refused(await world.ask())).code is ErrorCode.ADAPTER_NOT_FOUND
    assert (await world.ledger()).reserved == 0
    assert world.engine.calls == 0


async def test_a_chain_that_does_not_answer_is_said_so(world: World) -> None:
    quote = (await world.quote()).value
    world.chain.down = True
    body = world.body()
    inbound = world.handle(world.infer(world.request(quote, body), body))
    assert (await refused(inbound)).code is ErrorCode.CHAIN_FAILED


async def test_an_escrow_too_low_names_the_missing_wei(world: World) -> None:
    world.chain.default_escrow = EscrowState(10**12 - 7)
    error = await refused(await world.ask())
    assert error.code is ErrorCode.ESCROW_TOO_LOW
    assert "7 wei" in error.message


async def test_draining_refuses_new_requests_and_waits_for_those_under_way(tmp_path: Path) -> None:
    async with World(tmp_path / "j.sqlite", OPTIONS) as world:
        world.engine.hold = 2
        inbound = await world.ask()
        await world.engine.held.wait()
        quote = (await world.quote()).value
        draining = asyncio.create_task(world.serving.drain(30))
        await asyncio.sleep(0)
        assert world.serving.load().draining
        with pytest.raises(OpenLoraError, match="DRAINING"):
            await world.quote()
        body = world.body()
        error = await refused(world.handle(world.infer(world.request(quote, body), body)))
        assert (error.code, error.alternatives) == (ErrorCode.DRAINING, world.others)
        world.engine.release.set()
        await inbound.until(messages.Done)
        await world.settle(inbound)
        await draining
        assert receipt_of(inbound).completion_tokens == 20


async def test_what_runs_after_the_grace_ends_without_a_receipt(world: World) -> None:
    world.engine.hold = 2
    inbound = await world.ask()
    await world.engine.held.wait()
    await world.serving.drain(0.01)
    assert (await refused(inbound)).code is ErrorCode.DRAINING
    ledger = await world.ledger()
    assert (ledger.tally, ledger.reserved) == (Tally(), 0)


async def test_an_authorised_signer_pays_for_its_payer(world: World) -> None:
    agent = replace(world.payer, signs_with=OWNER)
    error = await refused(await world.ask(payer=agent))
    assert error.code is ErrorCode.BAD_SIGNATURE
    world.chain.signers.add((agent.address, OWNER.address))
    await world.paid(payer=agent)
    assert (await world.ledger(agent)).tally.tokens
    assert not (await world.ledger()).tally.tokens


async def test_load_counts_what_waits_runs_and_closes(tmp_path: Path) -> None:
    async with World(tmp_path / "j.sqlite", OPTIONS) as world:
        world.engine.hold = 1
        inbound = await world.ask()
        await world.engine.held.wait()
        load = world.serving.load()
        assert (load.queue, load.running, load.closing) == (0, 1, 0)
        world.engine.release.set()
        await inbound.until(messages.Done)
        assert world.serving.load().closing == 1
        await world.settle(inbound)
        for _ in range(10):
            await asyncio.sleep(0)
        load = world.serving.load()
        assert (load.queue, load.running, load.closing, load.responses) == (0, 0, 0, 1)
        assert load.tokens_per_second == 2.0


async def test_a_free_pipeline_needs_no_voucher(world: World) -> None:
    world.prices = replace(world.prices, input_rate=0, output_rate=0, settlement_charge=0)
    world.chain.registered = {key: replace(terms, rate=0) for key, terms in world.chain.registered.items()}
    quote = (await world.quote()).value
    body = world.body()
    inbound = world.handle(world.infer(world.request(quote, body, max_fee=0), body))
    await inbound.task
    assert isinstance(inbound, FakeInbound)
    assert receipt_of(inbound).fee == 0
    assert isinstance(inbound.sent[-1], messages.Settled)
