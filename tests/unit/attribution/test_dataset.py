"""Lines of a dataset, and the share table of its contributors."""

from __future__ import annotations

import pytest

from openlora_node.attribution.dataset import Sample, normalised, read_samples, shares_by_size
from openlora_node.protocol.errors import OpenLoraError
from openlora_node.protocol.ids import format_address
from openlora_node.protocol.manifest import canonical_json
from support.attribution_corpus import owner


def line(sample: object, **changes: object) -> bytes:
    return canonical_json({"contributor": format_address(owner(0)), "licence": "CC0-1.0", "sample": sample} | changes)


CHAT = {"messages": [{"content": "Hi", "role": "user"}, {"content": "Hello!", "role": "assistant"}]}


def test_answers_and_texts_count_and_questions_do_not() -> None:
    samples = list(read_samples([line(CHAT) + b"\n", line({"text": "A heron."})]))
    assert [sample.texts for sample in samples] == [("Hello!",), ("A heron.",)]
    assert {sample.contributor for sample in samples} == {owner(0)}


@pytest.mark.parametrize(("bad", "why"), [
    (b"", "line 1"),
    (b"\xff\xfe", "line 1"),
    (line({"text": "x"}).replace(b"x", b"\xc3\x28"), "UTF-8"),
    (line({"text": "x"}).replace(b":", b": ", 1), "canonical"),
    (line({"text": "  "}), "no answer"),
    (line({"messages": [{"content": "Hi", "role": "user"}]}), "no answer"),
    (line({"messages": [{"content": "Hi", "role": "tool"}]}), "role|tool"),
    (line({"text": "x", "more": 1}), "more"),
    (line({"text": "x"}, licence=""), "licence"),
    (line({"text": "x"}, contributor="0x12"), "address"),
    (line({"text": "x" * (16 << 20)}), "16 MiB"),
    (b'{"contributor":' + b"[" * 500_000, "line 1"),
])  # fmt: skip
def test_bad_lines_are_named(bad: bytes, why: str) -> None:
    with pytest.raises(OpenLoraError, match=why):
        list(read_samples([bad]))


def test_an_empty_dataset_is_refused() -> None:
    with pytest.raises(OpenLoraError, match="at least one sample"):
        list(read_samples([]))


def test_a_sample_of_ten_megabytes_is_read() -> None:
    (sample,) = read_samples([line({"text": "word " * 2_000_000})])
    assert len(sample.texts[0]) == 10_000_000


def test_shares_follow_sizes_and_sum_to_the_whole() -> None:
    table = shares_by_size([Sample(owner(number), "CC0-1.0", ("x" * (number + 1),)) for number in range(3)])
    assert table.shares == ((owner(0), 1667), (owner(1), 3333), (owner(2), 5000))


def test_case_width_and_space_make_no_new_text() -> None:
    assert normalised("The  Ｈeron\n") == normalised("the heron")
