"""Prompts to token ids: equal to Hugging Face's own, off the loop where long, and never beyond the context."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openlora_engine.errors import Code, EngineError
from openlora_engine.server.prompts import INLINE_CHARS, Prompts
from openlora_engine.server.requests import ChatBody, Message, TextPart
from support.engine_backend import FakeBackend
from support.engine_tokenizer import fallback_tokenizer, tiny_tokenizer

TOKENIZERS = [tiny_tokenizer, fallback_tokenizer]


@pytest.fixture(scope="module")
def prompts() -> Iterator[Prompts]:
    made = _prompts()
    yield made
    made.close()


def _prompts(max_model_len: int = 10_000) -> Prompts:
    return Prompts(tiny_tokenizer(), FakeBackend(tiny_tokenizer(), max_model_len=max_model_len).model)


def chat(*messages: Message, **fields: object) -> ChatBody:
    return ChatBody(model="m", messages=list(messages), **fields)


@pytest.mark.parametrize("make", TOKENIZERS)
@given(text=st.text(min_size=1, max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_encoding_is_hugging_faces_own(make, text: str) -> None:
    prompts = Prompts(make(), FakeBackend(make()).model)
    try:
        assert prompts._encode(text, True) == tuple(make()(text).input_ids)
        assert prompts._encode(text, False) == tuple(make()(text, add_special_tokens=False).input_ids)
    finally:
        prompts.close()


async def test_a_conversation_is_what_the_chat_template_makes(prompts: Prompts) -> None:
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    expected = tiny_tokenizer().apply_chat_template(plain, add_generation_prompt=True, return_dict=False)
    body = chat(Message("developer", "Be brief."), Message("user", [TextPart("text", "Wh"), TextPart("text", "y?")]))
    assert list(await prompts.of_conversation(body)) == expected
    assert tiny_tokenizer().decode(expected).endswith("<|im_start|>assistant\n")


async def test_an_answer_can_be_continued(prompts: Prompts) -> None:
    body = chat(Message("user", "Why?"), Message("assistant", "Because"), continue_final_message=True)
    text = tiny_tokenizer().decode(await prompts.of_conversation(body))
    assert text.endswith("Because")
    silent = chat(Message("user", "Why?"), add_generation_prompt=False)
    assert tiny_tokenizer().decode(await prompts.of_conversation(silent)).endswith("<|im_end|>\n")


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ raise_exception('x' * 5000) }}", "x" * 200),
        ("{{ messages[7].content.secret() }}", "does not take these messages"),
        ("{{ messages | first + 1 }}", "does not take these messages"),
        ("{{ 1 // 0 }}", "does not take these messages"),
        ("{{ ''.__class__.__mro__ }}{{ messages.clear() }}", "does not take these messages"),
    ],
)
async def test_a_template_that_refuses_or_breaks_is_the_requests_fault(template: str, says: str) -> None:
    tokenizer = type(tiny_tokenizer())(tokenizer_object=tiny_tokenizer().backend_tokenizer, chat_template=template)
    prompts = Prompts(tokenizer, FakeBackend(tokenizer).model)
    with pytest.raises(EngineError) as caught:
        await prompts.of_conversation(chat(Message("user", "a")))
    prompts.close()
    assert (caught.value.code, caught.value.param) == (Code.BAD_REQUEST, "messages")
    assert says in caught.value.message
    assert len(caught.value.message) < 300


async def test_template_arguments_arrive(prompts: Prompts) -> None:
    template = "{{ messages[0].content }}{{ ' thinking' if thinking else '' }}{{ messages[0].name or '' }}"
    tokenizer = type(tiny_tokenizer())(tokenizer_object=tiny_tokenizer().backend_tokenizer, chat_template=template)
    made = Prompts(tokenizer, FakeBackend(tokenizer).model)
    body = chat(Message("user", "a", name="Ada"), chat_template_kwargs={"thinking": True})
    assert tokenizer.decode(await made.of_conversation(body)) == "a thinkingAda"
    made.close()


async def test_long_prompts_are_tokenised_off_the_event_loops_thread(monkeypatch) -> None:
    made = _prompts()
    threads: list[str] = []
    encode = made._encode

    def watched(text: str, add_special_tokens: bool) -> tuple[int, ...]:
        threads.append(threading.current_thread().name)
        return encode(text, add_special_tokens)

    monkeypatch.setattr(made, "_encode", watched)
    for text in ("a" * INLINE_CHARS, "a" * (INLINE_CHARS + 1)):
        assert await made.of_text(text) == tuple(tiny_tokenizer()(text).input_ids)
        assert await made.of_conversation(chat(Message("user", text)))
    made.close()
    here = threading.current_thread().name
    assert [name == here for name in threads] == [True, True, False, False]
    assert threads[2].startswith("tokenize")


async def test_no_text_that_fits_is_refused_for_its_length() -> None:
    longest = max(tiny_tokenizer().get_vocab(), key=len)
    text = tiny_tokenizer().decode(tiny_tokenizer().convert_tokens_to_ids(longest))
    made = _prompts(max_model_len=20)
    ids = await made.of_text(text * 20)
    assert len(ids) == 20
    with pytest.raises(EngineError) as caught:
        await made.of_text(text * 20 + "a")
    made.close()
    assert caught.value.code is Code.PROMPT_TOO_LONG


@pytest.mark.parametrize("make", TOKENIZERS)
async def test_text_and_ids_round_trip(make) -> None:
    made = Prompts(make(), FakeBackend(make()).model)
    ids = await made.of_text("the thé 你 ", add_special_tokens=False)
    assert await made.text_of(ids) == make().decode(list(ids))
    assert await made.text_of([]) == ""
    made.close()


def test_bodies_of_both_kinds_are_conversations() -> None:
    body = msgspec.json.decode(b'{"model": "m", "messages": [{"role": "user", "content": "a"}]}', type=ChatBody)
    assert body.chat_template_kwargs is None
