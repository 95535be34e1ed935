"""The pure parts that decide about money: rounding, checks of receipts in any order, vouchers, places at nodes."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.gateway.checking import grown
from openlora_node.gateway.lanes import Lanes
from openlora_node.gateway.ledger_book import Amounts, LedgerBook, OpenRequest
from openlora_node.gateway.offers import Offer
from openlora_node.gateway.progress import Progress
from openlora_node.protocol.crypto import LocalSigner
from openlora_node.protocol.eip712 import Domain
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.messages import Accepted, Done, Paused, Tokens
from openlora_node.protocol.pipeline import Pipeline
from openlora_node.protocol.pricing import ComputeRates, RoyaltySchedule, Tally, charge, max_fee
from openlora_node.protocol.structs import Quote, Receipt, Royalty, output_hash

KEY = LocalSigner(b"\x07" * 32)
DOMAIN = Domain(chain_id=1, verifying_contract=b"\x01" * 20)
PIPELINE = Pipeline.of(b"\xba" * 32)
RATE = st.integers(0, 10**13)


def offer(input_rate: int, output_rate: int, royalty: int, once: int) -> Offer:
    quote = Quote(
        payer=bytes(20),
        node=bytes(32),
        pipeline_id=PIPELINE.id,
        input_rate=input_rate,
        output_rate=output_rate,
        royalties=(Royalty(artifact=PIPELINE.base, terms_version=0, rate=royalty, owner=bytes(20)),),
        settlement_charge=once,
        issued_at=1,
        expires_at=100,
    ).sign(DOMAIN, KEY)
    schedule = RoyaltySchedule.quoted(PIPELINE, quote.value)
    return Offer(quote, quote.value.digest(DOMAIN), PIPELINE, schedule, ComputeRates(input_rate, output_rate), ((),))


def receipt(number: int, prompt: int, completion: int, compute: int, royalties: int) -> Receipt:
    return Receipt(
        request_digest=bytes(32),
        payer=bytes(20),
        node=bytes(32),
        pipeline_id=PIPELINE.id,
        status=0,
        engine_digest=bytes(32),
        prompt_tokens=prompt,
        completion_tokens=completion,
        output_hash=bytes(32),
        attribution_root=bytes(32),
        commitment_root=bytes(32),
        compute=compute,
        royalties=royalties,
        started_at=1,
        finished_at=1,
        seq=number,
        previous=bytes(32),
    )


@given(
    RATE,
    RATE,
    st.integers(0, 10**9),
    st.lists(st.tuples(st.integers(1, 5_000), st.integers(0, 5_000)), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
def test_in_whatever_order_receipts_come_both_sides_count_the_same(
    input_rate: int, output_rate: int, once: int, responses: list[tuple[int, int]], dice: object
) -> None:
    """The node sums in its order; the payer, in another, follows what the receipts state."""
    made = offer(input_rate, output_rate, 0, once)
    node, receipts = Tally(), []
    for number, (prompt, completion) in enumerate(responses):
        cost = charge(node, made.schedule, made.rates, prompt, completion, once)
        charged = node.compute_micro_wei == 0 and once > 0
        receipts.append((receipt(number, prompt, completion, cost.compute, cost.royalties), charged))
        node = cost.after
    dice.shuffle(receipts)  # type: ignore[attr-defined]
    payer = Tally()
    for each, charged in receipts:
        after = grown(payer, each, made, charged=charged)
        assert after.compute - payer.compute == each.compute
        assert after.compute_micro_wei >= payer.compute_micro_wei
        payer = after
    assert (payer.tokens, payer.compute) == (node.tokens, node.compute)


@given(RATE, RATE, RATE, st.integers(0, 10**9), st.integers(1, 4_000), st.integers(0, 10**12))
def test_affordable_tokens_are_the_most_that_the_money_pays_for(
    input_rate: int, output_rate: int, royalty: int, once: int, prompt: int, wei: int
) -> None:
    made = offer(input_rate, output_rate, royalty, once)
    tokens = made.affordable_tokens(prompt, wei, 2_000)
    if tokens == -1:
        assert made.most(prompt, 0) > wei
        return
    assert max_fee(made.schedule, made.rates, prompt, tokens, once) <= wei
    if tokens < 2_000:
        assert made.most(prompt, tokens + 1) > wei


def test_a_voucher_counts_what_the_node_took_and_what_is_sent_with_it() -> None:
    made = offer(10**6, 2 * 10**6, 0, 100)
    book = LedgerBook(made.schedule)
    book.open(b"a", made, 10)
    assert book.next_voucher() == Amounts()
    assert book.next_voucher(b"a") == Amounts(10, 110)
    book.accept(b"a")
    book.generated(b"a", 7)
    book.open(b"b", made, 5)
    assert book.next_voucher() == Amounts(17, 10 + 14 + 100)
    assert book.next_voucher(b"b") == Amounts(22, 10 + 14 + 5 + 100)
    book.voucher = book.next_voucher(b"b")
    book.close(b"b")
    assert book.next_voucher() == Amounts(22, 129)  # it never goes back
    book.generated(b"unknown", 5)


def test_a_settled_ledger_asks_for_exactly_what_it_holds() -> None:
    book = LedgerBook(RoyaltySchedule((0,)), committed=Amounts(5, 7), remainder_micro_wei=999_999)
    assert book.accrued() == Amounts(5, 7)
    book.charge_due = False
    book.requests[b"x"] = OpenRequest(1, ComputeRates(1, 1), 50, accepted=True)
    assert book.accrued() == Amounts(6, 8)


def progress(**options: int) -> Progress:
    made = Progress(prompt_tokens=5, max_tokens=8, **options)
    made.accepted(Accepted(id=1, prompt_tokens=5))
    return made


def tokens(start: int, *ids: int, choice: int = 0) -> Tokens:
    return Tokens(id=1, choice=choice, start=start, token_ids=ids, text="x")


def test_progress_counts_and_hashes_by_choice() -> None:
    made = progress(choices=2)
    made.tokens(tokens(0, 1, 2))
    made.tokens(tokens(0, 9, choice=1))
    made.tokens(tokens(2, 3))
    assert made.generated == 4
    assert made.output_hash == output_hash([1, 2, 3, 9])
    assert made.paused(Paused(id=1, cumulative_tokens=3, cumulative_compute=(7).to_bytes(16, "big"))) == (3, 7)
    assert made.done(Done(id=1, receipt=b"r", finish_reason="stop", salt=bytes(32))) == b"r"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda p: p.accepted(Accepted(id=1, prompt_tokens=5)), "twice"),
        (lambda p: p.tokens(tokens(1, 1)), "lost or repeated"),
        (lambda p: (p.tokens(tokens(0, 1)), p.tokens(tokens(0, 1))), "lost or repeated"),
        (lambda p: p.tokens(tokens(0, 1, choice=1)), "not asked for"),
        (lambda p: p.tokens(tokens(0, *range(9))), "more tokens came"),
        (lambda p: (p.done(Done(id=1, receipt=b"", finish_reason="", salt=bytes(32))), p.tokens(tokens(0, 1))), "end"),
        (lambda p: [p.done(Done(id=1, receipt=b"", finish_reason="", salt=bytes(32))) for _ in range(2)], "twice"),
    ],
)
def test_what_has_no_place_is_refused(wrong: object, told: str) -> None:
    with pytest.raises(OpenLoraError, match=told) as caught:
        wrong(progress())  # type: ignore[operator]
    assert caught.value.code is ErrorCode.RECEIPT_INVALID


def test_text_is_bounded_by_the_tokens_that_came() -> None:
    made = progress(longest_token=10)
    made.tokens(Tokens(id=1, choice=0, start=0, token_ids=(1,), text="x" * 74))  # the margin, once
    with pytest.raises(OpenLoraError, match="more text came"):
        made.tokens(Tokens(id=1, choice=0, start=1, token_ids=(2,), text="x" * 11))


def test_log_probabilities_come_as_asked_for() -> None:
    def piece(start: int, data: bytes) -> Tokens:
        return Tokens(id=1, choice=0, start=start, token_ids=(1,), text="x", logprobs=data)

    with pytest.raises(OpenLoraError, match="not asked for"):
        progress().tokens(piece(0, b"[]"))
    made = progress(logprobs=2)
    made.tokens(piece(0, b"x" * 2048))
    with pytest.raises(OpenLoraError, match="more log-probabilities"):
        made.tokens(piece(1, b"x" * 2200))


def test_a_node_cannot_pause_for_ever() -> None:
    made = progress()

    def pause(tokens: int) -> tuple[int, int]:
        return made.paused(Paused(id=1, cumulative_tokens=tokens, cumulative_compute=bytes(16)))

    for due in range(3, 50):  # other requests of the ledger bring tokens, and the node waits for all of them
        assert pause(due) == (due, 0)
    for _ in range(4):
        pause(49)
    with pytest.raises(OpenLoraError, match="again and again"):
        pause(49)


def test_nothing_comes_before_it_is_accepted() -> None:
    made = Progress(prompt_tokens=5, max_tokens=8)
    with pytest.raises(OpenLoraError, match="before"):
        made.tokens(tokens(0, 1))
    with pytest.raises(OpenLoraError, match="had not accepted"):
        made.paused(Paused(id=1, cumulative_tokens=1, cumulative_compute=bytes(16)))
    with pytest.raises(OpenLoraError, match="counts 6 prompt tokens"):
        made.accepted(Accepted(id=1, prompt_tokens=6))


async def test_a_node_s_places_are_learnt_from_its_refusals() -> None:
    lanes, node = Lanes(), b"n"
    for run in range(10):
        assert not lanes.is_full(node)
        lanes.enter(node, run)
    for run in range(4):
        lanes.accepted(node, run)
    for run in range(4, 10):
        lanes.refused(node)
        lanes.leave(node, run, completed=False)
    assert lanes.is_full(node)
    assert lanes.holds(node)
    waiting = asyncio.ensure_future(lanes.room(30))
    await asyncio.sleep(0)
    lanes.leave(node, 0, completed=True)
    await waiting
    assert not lanes.is_full(node)
    for run in range(1, 4):
        lanes.leave(node, run, completed=True)
    assert not lanes.holds(node)
    for run in range(100, 105):  # four completions, one place more
        lanes.enter(node, run)
    assert lanes.is_full(node)
