"""What serving keeps in memory: quotes, ledgers, finished responses, places, speed; all bounded, all adding up."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.admission import OpenQuote, OpenRun
from openlora_node.engineclient.values import Chunk
from openlora_node.journal import Ledger, LedgerKey
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.ids import Digest
from openlora_node.protocol.messages import Tokens
from openlora_node.protocol.pipeline import Pipeline
from openlora_node.protocol.pricing import ComputeRates, RoyaltySchedule, Tally
from openlora_node.protocol.structs import Quote, Royalty, Voucher
from openlora_node.serving.capacity import Capacity
from openlora_node.serving.ledgers import LiveLedger
from openlora_node.serving.meter import WINDOW_S, Meter
from openlora_node.serving.quotes import QuoteBook
from openlora_node.serving.recent import Recent
from openlora_node.serving.response import Response
from support.serving_world import DOMAIN, NODE, NODE_KEY

PIPELINE = Pipeline.of(b"\x02" * 32)
KEY = LedgerKey(b"\x01" * 20, NODE, b"\x01" * 20, PIPELINE.id)


def quote(number: int, payer: int = 0, life: int = 100) -> OpenQuote:
    value = Quote(
        payer=payer.to_bytes(20, "big"), node=NODE, pipeline_id=PIPELINE.id, input_rate=number, output_rate=0,
        royalties=(Royalty(artifact=PIPELINE.base, terms_version=0, rate=0, owner=bytes(20)),), settlement_charge=0,
        issued_at=1000, expires_at=1000 + life,
    )  # fmt: skip
    return OpenQuote(value.sign(DOMAIN, NODE_KEY), Digest(value.digest(DOMAIN)), PIPELINE, RoyaltySchedule((0,)))


def test_quotes_are_found_until_they_expire() -> None:
    book = QuoteBook(10, 10)
    first, second = quote(1), quote(2)
    book.add(first, "peer", 1000)
    book.add(second, "peer", 1000)
    assert book.find(first.digest) == first
    assert book.newest(bytes(20), PIPELINE.id) == second
    assert book.newest(bytes(20), bytes(32)) is None
    book.add(quote(3, payer=1), "peer", 1101)
    assert len(book) == 1
    assert book.newest(bytes(20), PIPELINE.id) is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10**6)), max_size=60))
def test_who_asks_for_many_quotes_pushes_out_its_own(asked: list[tuple[int, int]]) -> None:
    book = QuoteBook(8, 4)
    modest = quote(10**7)
    book.add(modest, "modest", 1000)
    for peer, number in asked:
        book.add(quote(number, payer=peer), f"peer {peer}", 1000)
        assert len(book) <= 8
    # At most 8 in all and nobody holds more than 4: whoever holds one only keeps it while others hold more.
    if len({peer for peer, _ in asked}) <= 3:
        assert book.find(modest.digest) == modest


runs = st.builds(
    OpenRun,
    rates=st.builds(ComputeRates, st.integers(0, 10**7), st.integers(0, 10**7)),
    settlement_charge=st.integers(0, 1000),
    prompt_tokens=st.integers(0, 100),
    max_tokens=st.just(1000),
)
programs = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), runs),
        st.tuples(st.just("use"), st.integers(0, 30)),
        st.tuples(st.just("end"), st.booleans()),
        st.tuples(st.just("pay"), st.integers(0, 100)),
    ),
    max_size=30,
)


@given(programs, st.booleans())
def test_a_live_ledgers_sums_equal_its_snapshot_after_any_program(program: list, fresh: bool) -> None:
    schedule = RoyaltySchedule((50_000_000_000,))
    stored = Ledger(KEY) if fresh else Ledger(KEY, Tally(10, 10**8))
    ledger = LiveLedger(KEY, schedule, stored, Counter())
    open_: dict[bytes, OpenRun] = {}
    for number, (what, value) in enumerate(program):
        digest = number.to_bytes(32, "big")
        if what == "begin":
            ledger.begin(digest, value)
            open_[digest] = value
        elif what == "use" and open_:
            ledger.use(next(iter(open_)), value)
        elif what == "end" and open_:
            first = next(iter(open_))
            used = ledger.state().used()
            after = Tally(ledger.tally.tokens + 5, max(used.compute_micro_wei, ledger.tally.compute_micro_wei))
            ledger.end(first, after if value else None)
            del open_[first]
        elif what == "pay":
            due = ledger.due()
            paid = Voucher(
                payer=KEY.payer, node=NODE, pipeline_id=PIPELINE.id, reference_digest=bytes(32),
                cumulative_tokens=due.tokens * value // 100, cumulative_compute=due.compute * value // 100,
            )  # fmt: skip
            ledger.took(SimpleNamespace(newest_voucher=paid.sign(DOMAIN, NODE_KEY)))
        state = ledger.state()
        assert ledger.used() == state.used()
        assert ledger.unpaid_tokens() == state.unpaid_tokens()


async def test_a_receipt_is_excused_until_its_time_is_over_or_everything_is_paid() -> None:
    graces: Counter[bytes] = Counter()
    ledger = LiveLedger(KEY, RoyaltySchedule((0,)), Ledger(KEY, Tally(10, 10**8)), graces)
    ledger.allow(b"a", 70, 100)
    ledger.allow(b"a", 50, 100)
    ledger.allow(b"b", 7, 100)
    assert (ledger.grace, graces[KEY.payer], ledger.idle) == (57, 57, False)
    ledger.stop_allowing(b"b")
    assert ledger.grace == 50
    paid = Voucher(
        payer=KEY.payer, node=NODE, pipeline_id=PIPELINE.id, cumulative_tokens=10, cumulative_compute=100,
        reference_digest=bytes(32),
    ).sign(DOMAIN, NODE_KEY)  # fmt: skip
    ledger.took(SimpleNamespace(newest_voucher=paid))
    assert (ledger.grace, dict(graces), ledger.idle) == (0, {}, True)
    ledger.allow(b"c", 9, 0)
    bell = ledger.changed.next
    import asyncio

    while ledger.grace:
        await asyncio.sleep(0)
    assert not bell.is_set()


def response(number: int, size: int, at: int) -> Response:
    made = Response(Digest(number.to_bytes(32, "big")), KEY)
    made.size = size
    made.finished = SimpleNamespace(at=at)
    return made


def test_finished_responses_are_kept_by_number_bytes_and_time() -> None:
    recent = Recent(3, 100, 300)
    for number, size in enumerate((40, 40, 40)):
        recent.add(response(number, size, 1000 + number), 1000 + number)
    assert (len(recent), recent.size) == (2, 80)
    assert recent.find((0).to_bytes(32, "big"), 1002) is None
    recent.add(response(9, 101, 1003), 1003)
    assert len(recent) == 2
    for number in range(10, 14):
        recent.add(response(number, 1, 1004), 1004)
    assert len(recent) == 3
    assert recent.find((13).to_bytes(32, "big"), 1304) is not None
    assert recent.find((13).to_bytes(32, "big"), 1305) is None
    assert (len(recent), recent.size) == (0, 0)


BASE, OTHER = b"\x0b" * 32, b"\x0c" * 32


def test_places_are_counted_and_given_back() -> None:
    capacity = Capacity(2, 1)
    capacity.enter(b"a", BASE)
    for payer, why in ((b"a", "of this payer"), (b"b", ""), (b"c", "queue is full")):
        if not why:
            capacity.enter(payer, BASE)
            continue
        with pytest.raises(OpenLoraError, match=why) as caught:
            capacity.enter(payer, BASE)
        assert caught.value.code is ErrorCode.BUSY
        assert caught.value.retry_after_ms == 1_000
    capacity.enter(b"c", OTHER)  # a queue that is full is its own base's
    assert capacity.waiting == 3
    capacity.ended(OTHER, False, False)
    capacity.leave(b"c", False)
    capacity.started(BASE, 5.0)
    assert (capacity.waiting, capacity.running, capacity.retry_after_ms) == (1, 1, 1_500)
    capacity.ended(BASE, True, True)
    assert (capacity.running, capacity.closing, capacity.of(b"a")) == (0, 1, 1)
    capacity.leave(b"a", True)
    capacity.ended(BASE, False, False)
    capacity.leave(b"b", False)
    assert (capacity.waiting, capacity.running, capacity.closing, capacity.of(b"a"), capacity.of(b"b")) == (0,) * 5


def test_the_meter_tells_a_steady_rate_and_forgets() -> None:
    meter = Meter()
    for second in range(100):
        meter.add(float(second), 7)
    assert meter.rate(99.9) == pytest.approx(7, rel=0.15)
    assert meter.rate(99.9 + 3 * WINDOW_S) == 0


def test_more_log_probabilities_than_a_message_takes_go_in_several() -> None:
    """An engine whose reader lagged gives hundreds of tokens at once."""
    entries = [{"token": "x" * 900, "logprob": -1.0} for _ in range(400)]
    made = Response(Digest(bytes(32)), KEY)
    made.add(Chunk(0, tuple(range(400)), "text", json.dumps({"content": entries}).encode()))
    assert len(made.pieces) > 1
    for piece in made.pieces:
        Tokens(id=1, choice=0, start=piece.start, token_ids=piece.token_ids, text=piece.text, logprobs=piece.logprobs)
        assert len(piece.logprobs) < 1 << 18
        assert len(json.loads(piece.logprobs)["content"]) == len(piece.token_ids)
    assert [token for piece in made.pieces for token in piece.token_ids] == list(range(400))
    assert [piece.start for piece in made.pieces][1] == len(made.pieces[0].token_ids)
    assert "".join(piece.text for piece in made.pieces) == "text"
    assert made.generated == 400
