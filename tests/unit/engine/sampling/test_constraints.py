"""Whatever the model prefers, constrained output matches its grammar; what is no grammar is refused with the reason."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openlora_engine.errors import Code, EngineError
from openlora_engine.sampling.constraints import Grammar, GrammarCompiler
from openlora_engine.sampling.detokenizer import TextDecoder
from openlora_engine.sampling.params import Constraint, ConstraintKind, SamplingParams
from openlora_engine.sampling.probe import GrammarProbe
from openlora_engine.sampling.sampler import Sampler
from openlora_engine.sampling.state import SamplingState
from support.engine_tokenizer import fallback_tokenizer, tiny_tokenizer

VOCAB, EOS = 530, 0  # wider than the tokenizer, as padded embeddings are
TINY = GrammarCompiler(tiny_tokenizer(), VOCAB, [EOS])
FALLBACK = GrammarCompiler(fallback_tokenizer(), VOCAB, [2])

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b", None]}, "minItems": 1, "maxItems": 3},
        "home": {"$ref": "#/$defs/place"},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
    "$defs": {"place": {"type": "object", "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}}}},
}


def regex(pattern: str) -> Constraint:
    return Constraint(ConstraintKind.REGEX, pattern)


def schema(value: Any) -> Constraint:
    return Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(value))


def generate(constraint: Constraint, seed: int, *, compiler: GrammarCompiler = TINY, steps: int = 200) -> str | None:
    """Text drawn from random logits that lean towards the end; None when `steps` did not bring it there."""
    tokenizer, eos = (tiny_tokenizer(), EOS) if compiler is TINY else (fallback_tokenizer(), 2)
    state = SamplingState(
        SamplingParams(),
        seed=seed,
        index=0,
        vocab_size=VOCAB,
        eos_token_ids=[eos],
        grammar=compiler.compile(constraint),
    )
    output: list[int] = []
    rng, sampler = np.random.default_rng(seed), Sampler(VOCAB)
    closing = [token for token, piece in enumerate(TextDecoder(tokenizer)._pieces) if piece in (b'"', b"}", b"]", '"')]
    for _ in range(steps):
        logits = (rng.standard_normal((1, VOCAB)) * 3).astype(np.float32)
        logits[0, eos] += 4
        logits[0, closing] += 5
        result = sampler.sample(torch.from_numpy(logits), [state])[0]
        assert result.error is None, result.error
        state.accept(result.token_id)
        if result.token_id == eos:
            return TextDecoder(tokenizer).decode(output)
        output.append(result.token_id)
        if state.ended:
            return TextDecoder(tokenizer).decode(output)
    return None


def is_person(text: str) -> bool:
    value = json.loads(text)
    home = value.get("home", {})
    return (
        {"name", "age", "tags"} <= set(value) <= {"name", "age", "tags", "home"}
        and isinstance(value["name"], str)
        and len(value["name"]) <= 12
        and type(value["age"]) is int
        and 0 <= value["age"] <= 130
        and 1 <= len(value["tags"]) <= 3
        and all(tag in ("a", "b", None) for tag in value["tags"])
        and isinstance(home, dict)
        and ("zip" not in home or re.fullmatch("[0-9]{5}", home["zip"]) is not None)
    )


def is_number(text: str) -> bool:
    return isinstance(json.loads(text), int | float)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("constraint", "holds"),
    [
        (schema(PERSON), is_person),
        (schema({"type": "number"}), is_number),
        (schema(True), lambda text: json.loads(text) is not ...),
        (schema({"anyOf": [{"const": "yes"}, {"const": "no"}]}), lambda text: json.loads(text) in ("yes", "no")),
        (Constraint(ConstraintKind.JSON_OBJECT), lambda text: isinstance(json.loads(text), dict)),
    ],
)
def test_json_output_fits_its_schema(constraint: Constraint, holds: Callable[[str], bool]) -> None:
    texts = [generate(constraint, seed) for seed in range(12)]
    complete = [text for text in texts if text is not None]
    assert len(complete) > 5
    for text in complete:
        assert holds(text), text


PATTERNS = [
    r"[a-z]{3,5}\d+",
    r"(yes|no|maybe)( sir)?",
    r"(\d{4})-(0[1-9]|1[0-2])",
    r"a/b\\c\"[/\n]+",
    r"(é|你|👋){2}",
    r"",
    r"^anchored$",
    r"(?i)Mixed[^a-z]",
]


@given(pattern=st.sampled_from(PATTERNS), seed=st.integers(0, 10**6))
def test_regex_output_matches_in_full(pattern: str, seed: int) -> None:
    text = generate(regex(pattern), seed, steps=60)
    assert text is None or re.fullmatch(pattern, text), text


@given(seed=st.integers(0, 10**6))
def test_byte_fallback_vocabularies_can_be_constrained(seed: int) -> None:
    text = generate(regex(r" (é|你|👋){1,3} a[bc]+"), seed, compiler=FALLBACK, steps=60)
    # The vocabulary's own decoding drops the first blank.
    assert text is None or re.fullmatch(r" ?(é|你|👋){1,3} a[bc]+", text), text


def allowed(grammar: Grammar, output: list[int]) -> set[int]:
    matcher = grammar.matcher()
    for token_id in output:
        matcher.accept(token_id)
    words = np.empty(-(-VOCAB // 32), dtype=np.int32)
    matcher.fill(words)
    return {token_id for token_id in range(VOCAB) if words[token_id // 32] >> (token_id % 32) & 1}


def test_the_end_is_allowed_exactly_where_the_output_is_complete() -> None:
    grammar = TINY.compile(regex("(ab)+"))
    a, b = (tiny_tokenizer().convert_tokens_to_ids(text) for text in "ab")
    assert isinstance(a, int)
    assert isinstance(b, int)
    assert EOS not in allowed(grammar, [])
    assert EOS not in allowed(grammar, [a])
    assert EOS in allowed(grammar, [a, b])
    assert all(token_id < 512 for token_id in allowed(grammar, [])), "no id beyond the tokenizer's"


def test_digits_and_words_are_ascii_as_in_json_schemas() -> None:
    pieces = TextDecoder(tiny_tokenizer())._pieces
    for pattern in (r"\d+", r"\w+"):
        texts = [pieces[token_id] for token_id in allowed(TINY.compile(regex(pattern)), []) if token_id != EOS]
        assert texts
        for text in texts:
            assert isinstance(text, bytes)
            assert re.fullmatch(pattern.encode(), text), "bytes patterns are ASCII"


def test_matchers_of_one_grammar_do_not_share_their_place() -> None:
    grammar = TINY.compile(regex("ab|cd"))
    first, second = grammar.matcher(), grammar.matcher()
    for text in "ab":
        token_id = tiny_tokenizer().convert_tokens_to_ids(text)
        assert isinstance(token_id, int)
        first.accept(token_id)
    assert first.ended
    assert not second.ended
    assert second.error is None


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        (regex("(a"), "unclosed group"),
        (regex("[z-a]"), "invalid character class range"),
        (regex("(?=x)y"), "look-around"),
        (regex("\ud800"), "surrogates"),
        (schema({"type": "objekt"}), "objekt"),
        (schema({"$ref": "http://example.org/schema"}), "example.org"),
        (schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (schema({"type": "string", "minLength": 5, "maxLength": 2}), "minLength"),
        (schema({"type": "string", "pattern": "(?<=a)b"}), "look-around"),
        (schema([]), "object schema"),
        (schema(False), "object schema"),
        (Constraint(ConstraintKind.JSON_SCHEMA, ""), "EOF"),
        (Constraint(ConstraintKind.JSON_SCHEMA, "{'a': 1}"), "key must be a string"),
        (Constraint(ConstraintKind.JSON_SCHEMA, '{"allOf":[' * 3_000), "recursion limit"),
        (schema({"allOf": [{"properties": {str(n): {"pattern": f"({n}|a)*"}}} for n in range(900)]}), "too large"),
    ],
)
def test_what_is_no_grammar_is_refused_with_the_reason(constraint: Constraint, reason: str) -> None:
    with pytest.raises(EngineError, match=re.escape(reason)) as caught:
        TINY.compile(constraint)
    assert caught.value.code is Code.BAD_REQUEST
    assert caught.value.param == "constraint"
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400


@pytest.mark.slow
@pytest.mark.parametrize(
    "endless",
    [
        {"allOf": [{"type": "string", "pattern": f".*{number}.*"} for number in range(20)]},
        {"patternProperties": {f"^p{number}_": {} for number in range(200)}, "additionalProperties": False},
    ],
)
def test_a_grammar_that_takes_for_ever_is_refused(endless: dict[str, Any]) -> None:
    compiler = GrammarCompiler(tiny_tokenizer(), VOCAB, [EOS])
    compiler._probe = GrammarProbe(cpu_seconds=1)
    for _ in range(2):  # the second time from memory
        with pytest.raises(EngineError, match="too long") as caught:
            compiler.compile(schema(endless))
        assert caught.value.code is Code.BAD_REQUEST
    assert compiler.compile(regex("a")).matcher().error is None, "the probe is there again"
    compiler.close()
    compiler.close()


def test_compiled_grammars_are_kept_up_to_a_bound() -> None:
    compiler = GrammarCompiler(tiny_tokenizer(), VOCAB, [EOS], max_cached=2)
    first, second = compiler.compile(regex("a")), compiler.compile(regex("b"))
    assert compiler.compile(regex("a")) is first
    compiler.compile(regex("c"))
    assert compiler.compile(regex("a")) is first
    assert compiler.compile(regex("b")) is not second
    assert len(compiler._cached) == 2


def test_threads_may_compile_at_once() -> None:
    compiler = GrammarCompiler(tiny_tokenizer(), VOCAB, [EOS])
    found: list[set[int]] = []

    def work(number: int) -> None:
        grammar = compiler.compile(regex(f"[0-9]{{{number % 3 + 1}}}"))
        found.append(allowed(grammar, []))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12
    assert all(found)
