"""What waits on a stream: nothing lost, order kept, turns fair, tokens merged within bounds."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from openlora_node.network.outgoing import MAX_MERGED_CHARACTERS, MAX_MERGED_TOKENS, Outgoing, merge
from openlora_node.protocol.errors import ProtocolError
from openlora_node.protocol.framing import FrameDecoder
from openlora_node.protocol.messages import INFER, InferMessage, Paused, Tokens


def pop(outgoing: Outgoing) -> InferMessage | None:
    frame = outgoing.pop()
    if frame is None:
        return None
    (payload,) = FrameDecoder(INFER.max_frame).feed(frame)
    return INFER.decode(payload)


def paused(request: int) -> Paused:
    return Paused(id=request, cumulative_tokens=1, cumulative_compute=bytes(16))


steps = st.lists(
    st.tuples(st.integers(1, 2), st.sampled_from(["t", "t", "p", "l", "pop"]), st.integers(0, 1), st.integers(1, 5)),
    min_size=5,
    max_size=60,
)


@given(steps)
@example([(1, "t", 0, 1), (1, "p", 0, 1), (1, "t", 0, 1)])
@example([(1, "t", 0, 1), (1, "t", 1, 1), (1, "t", 0, 1), (1, "l", 0, 1), (1, "t", 0, 1)])
def test_each_choice_gets_all_its_tokens_in_order_and_other_messages_keep_their_place(
    program: list[tuple[int, str, int, int]],
) -> None:
    outgoing = Outgoing()
    starts: dict[tuple[int, int], int] = defaultdict(int)
    pauses: dict[int, int] = defaultdict(int)
    before_pause: dict[tuple[int, int, int], int] = {}
    got: dict[tuple[int, int], int] = defaultdict(int)
    got_pauses: dict[int, int] = defaultdict(int)

    def take(message: InferMessage | None) -> None:
        if isinstance(message, Tokens):
            key = message.id, message.choice
            assert message.start == got[key]
            assert message.token_ids == tuple(range(got[key], got[key] + len(message.token_ids)))
            assert message.text == "".join(chr(97 + place % 26) for place in message.token_ids)
            got[key] += len(message.token_ids)
        elif isinstance(message, Paused):
            for choice in range(3):
                assert got[message.id, choice] == before_pause[message.id, choice, got_pauses[message.id]]
            got_pauses[message.id] += 1

    for request, what, choice, count in program:
        if what == "pop":
            take(pop(outgoing))
        elif what == "p":
            for each in range(3):
                before_pause[request, each, pauses[request]] = starts[request, each]
            pauses[request] += 1
            outgoing.add(request, paused(request))
        else:
            start = starts[request, choice]
            ids = tuple(range(start, start + count))
            text = "".join(chr(97 + place % 26) for place in ids)
            logprobs = b"{}" if what == "l" else b""
            outgoing.add(
                request, Tokens(id=request, choice=choice, start=start, token_ids=ids, text=text, logprobs=logprobs)
            )
            starts[request, choice] += count
    while outgoing:
        take(pop(outgoing))
    assert {key: count for key, count in got.items() if count} == {key: count for key, count in starts.items() if count}
    assert got_pauses == pauses
    assert outgoing.size == 0


def test_requests_take_turns() -> None:
    outgoing = Outgoing()
    for request in (1, 1, 1, 2, 3, 3):
        outgoing.add(request, paused(request))
    order = []
    while (message := pop(outgoing)) is not None:
        order.append(message.id)
    assert order == [1, 2, 3, 1, 3, 1]


def test_what_is_dropped_counts_no_more() -> None:
    outgoing = Outgoing()
    for request in (1, 1, 2):
        outgoing.add(request, paused(request))
    outgoing.drop(1)
    outgoing.drop(9)
    assert outgoing.size_of(1) == 0
    assert outgoing.size == outgoing.size_of(2) > 0
    assert pop(outgoing) == paused(2)
    assert pop(outgoing) is None
    assert outgoing.size == 0


def test_merged_messages_stay_within_what_a_reader_takes() -> None:
    outgoing = Outgoing()
    for place in range(3 * MAX_MERGED_TOKENS):
        outgoing.add(1, Tokens(id=1, start=place, token_ids=(1,), text="xyz" if place % 2 else ""))
    sizes = []
    while (message := pop(outgoing)) is not None:
        assert isinstance(message, Tokens)
        sizes.append(len(message.token_ids))
    assert sum(sizes) == 3 * MAX_MERGED_TOKENS
    assert max(sizes) == MAX_MERGED_TOKENS
    first = Tokens(id=1, start=0, token_ids=(1,), text=MAX_MERGED_CHARACTERS * "x")
    assert merge(first, Tokens(id=1, start=1, token_ids=(1,), text="x")) is None
    assert merge(first, Tokens(id=1, start=2, token_ids=(1,), text="")) is None
    assert merge(first, Tokens(id=2, start=1, token_ids=(1,), text="")) is None


def test_a_message_that_a_reader_would_refuse_is_refused_here() -> None:
    outgoing = Outgoing()
    with pytest.raises(ProtocolError):
        outgoing.add(1, Tokens(id=1, start=0, token_ids=(), text=""))
    with pytest.raises(ProtocolError):
        outgoing.add(1, Tokens(id=1, start=0, token_ids=(1,), text=70_000 * "x"))
    assert not outgoing
    assert outgoing.size == 0
