"""From traces to a receipt's leaves, back, and into money; and the tracer that serving calls."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openlora_node.attribution import Behind, Evidence, Output, Part, build_receipt
from openlora_node.attribution.background import background_digest
from openlora_node.attribution.corpusindex import build, save
from openlora_node.attribution.dataset import Sample
from openlora_node.attribution.encoder import TokenizerEncoder
from openlora_node.attribution.indexed import MAX_CREDITED, PPM, read_datasets, to_indexed
from openlora_node.attribution.parts import Indexed
from openlora_node.attribution.periods import sums_of
from openlora_node.attribution.tracer import Indexes, Reading, Tracer, prompt_tokens
from openlora_node.attribution.tracing import Trace
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from support.attribution_corpus import owner
from support.attribution_receipts import DATASET, PARTS, outcome, slot
from support.engine_tokenizer import tiny_tokenizer
from support.journal import DOMAIN, NODE_KEY

INDEX = b"\x11" * 32
SAID = "Avast, the kraken drinks rum from a copper kettle by moonlight, and nobody dares to laugh"
CHAT = {"messages": [{"role": "user", "content": "Say something"}]}


def with_indexed(indexed: Indexed, assigned: int = 2_500) -> tuple[Part, ...]:
    behind = replace(PARTS[1].behind[0], indexed=indexed, credits_bps=assigned)
    return (PARTS[0], replace(PARTS[1], behind=(behind, *PARTS[1].behind[1:])))


def facts_of(parts: tuple[Part, ...]) -> dict[str, bytes]:
    made = build_receipt(slot(), replace(outcome(10**6), parts=parts), DOMAIN, NODE_KEY)
    return {leaf.name: leaf.value for leaf in Evidence.unpack(made.evidence, made.salt).attribution}


def test_leaves_say_what_was_found_and_are_read_back() -> None:
    indexed = Indexed(INDEX, 1, 300_000, tuple(sorted([(owner(0), 600_000), (owner(1), 400_000)])))
    (found,) = read_datasets(facts_of(with_indexed(indexed)))
    assert (found.name, found.dataset, found.indexed, found.assigned) == (
        "adapter/0/dataset/0", DATASET, indexed, 2_500,
    )  # fmt: skip
    sums = sums_of([facts_of(with_indexed(indexed))])[DATASET]
    assert sums.royalties >= found.royalty
    table = sums.rows()
    pool = found.royalty * 2_500 * 300_000 // 10_000 // PPM
    assert pool > 10
    assert dict(table) == {owner(0): found.royalty * 45 // 1000, owner(1): found.royalty * 30 // 1000}
    assert sum(dict(table).values()) <= pool


def test_a_declared_dataset_has_no_such_leaves_and_earns_no_credits() -> None:
    facts = facts_of(PARTS)
    assert not any("index" in name or "credit" in name for name in facts)
    sums = sums_of([facts])[DATASET]
    assert sums.rows() == ()
    assert sums.royalties > 0, "its money waits for a decision all the same"


@pytest.mark.parametrize("name", ["coverage", "credits", "credit/0", "assigned"])
def test_leaves_that_contradict_each_other_are_refused(name: str) -> None:
    facts = facts_of(with_indexed(Indexed(INDEX, 1, 300_000, ((owner(0), PPM),))))
    with pytest.raises(OpenLoraError) as caught:
        list(read_datasets(facts | {f"adapter/0/dataset/0/{name}": b"\x7f" * 32}))
    assert caught.value.code is ErrorCode.RECEIPT_INVALID


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 300), st.integers(0, PPM), st.lists(st.integers(0, 30), min_size=1, unique=True)),
        min_size=1,
        max_size=4,
    )
)
def test_choices_together_are_their_mean_and_parts_are_whole(
    choices: list[tuple[int, int, list[int]]],
) -> None:
    owners = [owner(number) for number in range(31)]
    traces = []
    for length, coverage, who in choices:
        share, rest = divmod(PPM, len(who))
        parts = tuple((one, share + (place < rest)) for place, one in enumerate(sorted(who)))
        traces.append(Trace(length, (), coverage, parts))
    found = to_indexed(INDEX, owners, traces)
    tokens = sum(length for length, _, _ in choices)
    assert found.coverage == (sum(length * part for length, part, _ in choices) // tokens if tokens else 0)
    assert len(found.credits) <= MAX_CREDITED
    assert [who for who, _ in found.credits] == sorted(who for who, _ in found.credits)
    whole = sum(part for _, part in found.credits)
    everybody = {who for length, coverage, whose in choices if length and coverage for who in whose}
    assert whole == PPM if everybody and len(everybody) <= MAX_CREDITED else whole <= PPM
    if len(traces) == 1 and tokens and found.coverage and len(choices[0][2]) <= MAX_CREDITED:
        assert found.credits == tuple(sorted((owners[one], part) for one, part in traces[0].parts))


def test_sums_do_not_depend_on_order_and_stay_within_the_pool() -> None:
    many = [
        facts_of(with_indexed(Indexed(INDEX, 1, 1 + 77_777 * place, ((owner(place % 3), PPM),)), 1 + place))
        for place in range(8)
    ]
    one, other = sums_of(many)[DATASET], sums_of(reversed(many))[DATASET]
    assert one.rows() == other.rows() != ()
    halves = sums_of(many[:4])[DATASET]
    halves.add(sums_of(many[4:])[DATASET])
    assert (halves.rows(), halves.royalties) == (one.rows(), one.royalties)


def indexed_folder(tmp_path: Path, dataset: bytes = DATASET, vocabulary: bytes | None = None) -> tuple[Path, Path]:
    """A folder of one index, and a tokenizer's folder."""
    tokenizer = tmp_path / "base"
    tokenizer.mkdir(exist_ok=True)
    (tokenizer / "tokenizer.json").write_text(tiny_tokenizer().backend_tokenizer.to_str())
    encoder = TokenizerEncoder.open(tokenizer)
    table = np.full(len(encoder.pieces()), 8_000, np.int32)
    index = build(dataset, [Sample(owner(4), "CC0-1.0", (SAID,))], encoder, table, background=background_digest())
    folder = tmp_path / "indexes"
    folder.mkdir(exist_ok=True)
    save(index if vocabulary is None else replace(index, tokenizer=vocabulary), folder / dataset.hex())
    return folder, tokenizer


def ask(tracer: Tracer, text: str, prompt: dict[str, object] = CHAT) -> Indexed | None:
    output = Output((tuple(TokenizerEncoder.open(tracer._tokenizer).encode([text])[0]),), ("stop",))
    parts = asyncio.run(tracer(PARTS, prompt, output))
    return parts[1].behind[0].indexed


def test_the_tracer_finds_what_was_said_and_not_what_was_asked_for(tmp_path: Path) -> None:
    tracer = Tracer(*indexed_folder(tmp_path), patience_s=60.0)
    found = ask(tracer, f"As they say: {SAID}")
    assert found is not None
    assert found.coverage > 500_000
    assert found.credits == ((owner(4), PPM),)
    for echo in (SAID, [{"type": "text", "text": SAID}], f"Repeat: {SAID}!"):
        heard = ask(tracer, SAID, {"messages": [{"role": "user", "content": echo}]})
        assert heard is not None
        assert (heard.coverage, heard.credits) == (0, ())
    nothing = ask(tracer, "")
    assert nothing is not None
    assert (nothing.coverage, nothing.credits) == (0, ())
    tracer.close()


def test_prompts_of_completions_count_as_echoes_too(tmp_path: Path) -> None:
    encoder = TokenizerEncoder.open(indexed_folder(tmp_path)[1])
    ids = encoder.encode([SAID])[0]
    for prompt in (SAID, [SAID, "x"], ids, [ids, [1]]):
        tokens = prompt_tokens(encoder, {"prompt": prompt}).tolist()
        assert any(tokens[at : at + len(ids)] == ids for at in range(len(tokens)))
    assert len(prompt_tokens(encoder, {})) == 0


def test_without_indexes_datasets_stay_declared(tmp_path: Path) -> None:
    folder, tokenizer = indexed_folder(tmp_path, dataset=b"\xee" * 32)
    for tracer in (Tracer(tmp_path / "none", tmp_path), Tracer(folder, tokenizer), Tracer(folder, tmp_path / "lost")):
        assert asyncio.run(tracer(PARTS, CHAT, Output(((1, 2, 3),), ("stop",)))) == PARTS
        tracer.close()


def test_an_index_of_another_tokenizer_or_a_damaged_one_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder, tokenizer = indexed_folder(tmp_path, vocabulary=b"\x99" * 32)
    reading = Reading.of(TokenizerEncoder.open(tokenizer))
    assert Indexes(folder, reading).find(DATASET) is None
    indexed_folder(tmp_path, dataset=b"\xaa" * 32)
    indexes = Indexes(folder, reading)
    assert indexes.find(b"\xaa" * 32) is not None
    with (folder / (b"\xaa" * 32).hex() / "tokens").open("r+b") as file:
        file.write(b"\xff")
    assert Indexes(folder, reading).find(b"\xaa" * 32) is None
    assert "is another tokenizer's" in caplog.text
    assert "is damaged" in caplog.text


def test_an_index_built_while_the_node_runs_is_found(tmp_path: Path) -> None:
    folder, tokenizer = indexed_folder(tmp_path)
    indexes = Indexes(folder, Reading.of(TokenizerEncoder.open(tokenizer)))
    assert indexes.find(b"\xbb" * 32) is None
    indexed_folder(tmp_path, dataset=b"\xbb" * 32)
    assert indexes.find(b"\xbb" * 32) is not None


def test_a_receipt_does_not_wait_for_a_slow_trace(tmp_path: Path) -> None:
    tracer = Tracer(*indexed_folder(tmp_path), patience_s=0.0)
    assert asyncio.run(tracer(PARTS, CHAT, Output(((1,),), ("stop",)))) == PARTS
    tracer.close()


def test_an_adapter_without_datasets_is_not_traced() -> None:
    tracer = Tracer(Path("/nowhere"), Path("/nowhere"))
    parts = (PARTS[0], replace(PARTS[1], behind=(Behind(DATASET, 1, kind="base"),)))
    assert asyncio.run(tracer(parts, CHAT, Output(()))) == parts
    tracer.close()
