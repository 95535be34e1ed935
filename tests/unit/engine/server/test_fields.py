"""Fields beyond those served: the official client's own list has no gap, and nothing that matters is dropped."""

from __future__ import annotations

import msgspec
import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from openlora_engine.errors import Code, EngineError
from openlora_engine.server.fields import HARMLESS_VALUES, IGNORED, check_fields
from openlora_engine.server.requests import ChatBody, CompletionBody

SERVED = {ChatBody: frozenset(ChatBody.__struct_fields__), CompletionBody: frozenset(CompletionBody.__struct_fields__)}


@pytest.mark.parametrize(
    ("params", "kind"),
    [
        (chat_create_params.CompletionCreateParamsBase, ChatBody),
        (completion_create_params.CompletionCreateParamsBase, CompletionBody),
    ],
)
def test_every_field_of_the_official_client_is_known(params: type, kind: type) -> None:
    fields = {name for base in params.__mro__ for name in getattr(base, "__annotations__", {})} | {"stream"}
    assert fields >= {"model", "n", "logit_bias"}
    assert fields - SERVED[kind] - IGNORED - set(HARMLESS_VALUES) == set()


def test_no_field_is_in_two_lists() -> None:
    assert not IGNORED & set(HARMLESS_VALUES)
    for served in SERVED.values():
        assert not served & IGNORED
    assert (SERVED[ChatBody] | SERVED[CompletionBody]) & set(HARMLESS_VALUES) == {"add_special_tokens"}


@pytest.mark.parametrize("name", sorted(HARMLESS_VALUES))
def test_harmless_values_pass_and_others_are_refused_by_name(name: str) -> None:
    for value in HARMLESS_VALUES[name]:
        check_fields({name: msgspec.Raw(msgspec.json.encode(value))}, frozenset())
    for value in (["something"], "x" * 100, {"a": 1}):
        with pytest.raises(EngineError) as caught:
            check_fields({name: msgspec.Raw(msgspec.json.encode(value))}, frozenset())
        assert (caught.value.code, caught.value.param) == (Code.UNSUPPORTED, name)


def test_ignored_fields_pass_with_any_value() -> None:
    for name in IGNORED:
        check_fields({name: msgspec.Raw(b'{"any": ["thing"]}')}, frozenset())


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_token", "did you mean `max_tokens`?"),
        ("zzz", "remove it"),
        ("a" * 5_000, "remove it"),
        ("a\nb", "'a\\nb'"),
    ],
)
def test_unknown_fields_are_refused_with_a_hint(name: str, hint: str) -> None:
    with pytest.raises(EngineError) as caught:
        check_fields({name: msgspec.Raw(b"1")}, SERVED[ChatBody])
    assert caught.value.code is Code.BAD_REQUEST
    assert hint in caught.value.message
    assert len(caught.value.message) < 200
