"""Names of KV blocks: equal for equal prefixes, different for any difference."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from openlora_engine.request import GenerateRequest
from openlora_engine.sampling.params import SamplingParams
from openlora_engine.scheduling import PrefixHasher, Sequence


def sequence(tokens: list[int], adapter: str | None = None, salt: str = "") -> Sequence:
    return Sequence("r/0", "r", tokens, len(tokens), 1, adapter=adapter, cache_salt=salt)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=12, max_size=12), st.integers(0, 11), st.integers(1, 100))
def test_a_changed_token_changes_its_block_and_all_after(tokens: list[int], position: int, change: int) -> None:
    hasher = PrefixHasher("model", 4)
    names = hasher.extend(sequence(list(tokens)), 3)
    tokens[position] = (tokens[position] + change) % 2**32
    others = hasher.extend(sequence(tokens), 3)
    assert [a == b for a, b in zip(names, others, strict=True)] == [index < position // 4 for index in range(3)]


def test_extending_step_by_step_gives_the_same_names() -> None:
    tokens = [random.Random(1).randrange(2**32) for _ in range(64)]
    whole = PrefixHasher("m", 16).extend(sequence(tokens), 4)
    hasher, grown = PrefixHasher("m", 16), sequence(tokens)
    for blocks in (0, 1, 1, 3, 4):
        assert hasher.extend(grown, blocks)[:blocks] == whole[:blocks]
    assert len(set(whole)) == 4
    assert {len(name) for name in whole} == {16}


def test_fields_cannot_pass_for_one_another() -> None:
    texts = ("", "a", "b", "ab", "\0", "a\0b", "é")
    roots = {
        PrefixHasher(model, 4).root(adapter, salt) for model, adapter, salt in itertools.product(texts, texts, texts)
    }
    assert len(roots) == len(texts) ** 3


def test_choices_of_a_request_are_sequences_of_their_own() -> None:
    request = GenerateRequest(
        "r", (1, 2, 3), SamplingParams(n=2, max_tokens=5), adapter="a", tenant="t", cache_salt="s"
    )
    first, second = Sequence.choices(request)
    assert [first.seq_id, second.seq_id] == ["r/0", "r/1"]
    first.token_ids.append(4)
    assert (second.token_ids, second.num_prompt_tokens, second.max_tokens) == ([1, 2, 3], 3, 5)
    assert first.output_token_ids == [4]
    assert (second.adapter, second.tenant, second.cache_salt, second.index) == ("a", "t", "s", 1)
    assert first.max_computed_tokens == 7
