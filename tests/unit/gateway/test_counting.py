"""Prompts are rendered and counted as transformers does it, without importing it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from openlora_node.gateway.counting import PromptCounter, load_counter
from openlora_node.openai import BodyError, parse_body
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from support.engine_tokenizer import CHAT_TEMPLATE, fallback_tokenizer, tiny_tokenizer

TEMPLATES = {
    "chatml": CHAT_TEMPLATE,
    "llama": (
        "{{ bos_token }}{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "<<default>>{% endif %}[{{ message['role'] | upper }}] {{ message['content'] | trim }}{{ eos_token }}\n"
        "{% endfor %}{% if add_generation_prompt %}[ASSISTANT] {% endif %}"
    ),
    "clever": (
        "{%- set ns = namespace(count=0) %}\n{%- for message in messages %}\n    {%- set ns.count = ns.count + 1 %}\n"
        "    {%- if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}\n"
        "    {%- else %}{{ {'role': message.role, 'text': message.content} | tojson }}{% endif %}\n"
        "    {%- if ns.count > 5 %}{% break %}{% endif %}\n{%- endfor %}"
        "{% if mood is defined %} mood={{ mood }}{% endif %}{{ dict(a=1).a }}"
    ),
}
CONVERSATIONS = [
    [{"role": "user", "content": "the quick brown fox"}],
    [{"role": "system", "content": "be brief  "}, {"role": "user", "content": "  Grüße aus Köln; 你好 🎉\n"}],
    [
        {"role": "user", "content": "hello", "name": "ada"},
        {"role": "assistant", "content": "hi {{ not a template }}"},
        {"role": "user", "content": '"quoted" <tag> & more'},
    ],
]


def theirs(tokenizer: PreTrainedTokenizerFast, template: str, messages: list[dict[str, str]], **options: object) -> int:
    text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
    return len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)


def counter(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, template: str | None) -> PromptCounter:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    if template is not None:
        (tmp_path / "chat_template.jinja").write_text(template)
    return load_counter(tmp_path)


async def ours(made: PromptCounter, **fields: object) -> int:
    return await made.count(parse_body(json.dumps({"model": "m", **fields}).encode(), 1 << 20))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("make", [tiny_tokenizer, fallback_tokenizer])
async def test_chats_count_as_transformers_counts_them(tmp_path: Path, name: str, make: object) -> None:
    tokenizer = make()  # type: ignore[operator]
    made = counter(tmp_path, tokenizer, TEMPLATES[name])
    for messages in CONVERSATIONS:
        for generates in (None, True, False):
            expected = theirs(tokenizer, TEMPLATES[name], messages, add_generation_prompt=generates is not False)
            assert await ours(made, messages=messages, add_generation_prompt=generates) == expected


@pytest.mark.parametrize("name", ["chatml", "llama"])
async def test_a_final_message_is_continued_as_transformers_does_it(tmp_path: Path, name: str) -> None:
    tokenizer = tiny_tokenizer()
    made = counter(tmp_path, tokenizer, TEMPLATES[name])
    for begun in ("Once upon a time", "with a space at the end ", "  around  "):
        messages = [{"role": "user", "content": "tell"}, {"role": "assistant", "content": begun}]
        expected = theirs(tokenizer, TEMPLATES[name], messages, continue_final_message=True)
        assert await ours(made, messages=messages, continue_final_message=True) == expected


async def test_parts_roles_and_template_arguments(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    made = counter(tmp_path, tokenizer, TEMPLATES["clever"])
    parts = [{"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    plain = [{"role": "system", "content": "ab"}]
    kwargs = {"mood": "good"}
    expected = theirs(tokenizer, TEMPLATES["clever"], plain, add_generation_prompt=True, **kwargs)
    assert await ours(made, messages=parts, chat_template_kwargs=kwargs) == expected
    with pytest.raises(BodyError, match="may not set `messages`"):
        await ours(made, messages=parts, chat_template_kwargs={"messages": "x"})


async def test_prompts_count_with_their_special_tokens_and_lists_add_up(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    made = counter(tmp_path, tokenizer, None)
    one = len(tokenizer.backend_tokenizer.encode("the quick").ids)
    assert await ours(made, prompt="the quick") == one
    assert await ours(made, prompt=["the quick", "the quick"]) == 2 * one
    assert await ours(made, prompt=[5, 6, 7]) == 3
    assert await ours(made, prompt=[[5, 6, 7], [8]]) == 4
    long = "the quick brown fox jumps over the lazy dog " * 400
    assert await ours(made, prompt=long) == len(tokenizer.backend_tokenizer.encode(long).ids)
    with pytest.raises(BodyError) as caught:
        await ours(made, messages=CONVERSATIONS[0])
    assert caught.value.code is ErrorCode.UNSUPPORTED
    with pytest.raises(BodyError, match="no token"):
        await ours(made, prompt="")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[9].content }}", "does not take"),
        ("{{ ''.__class__.__mro__ }}", "does not take"),
        ("{{ messages.append(1) }}", "does not take"),
        ("{% set ns = namespace(_x=1) %}", "does not take"),
        ("{{ 1 / 0 }}", "does not take"),
    ],
)
async def test_a_template_that_refuses_or_breaks_out_is_the_requests_error(
    tmp_path: Path, template: str, said: str
) -> None:
    made = counter(tmp_path, tiny_tokenizer(), template)
    with pytest.raises(BodyError, match=said) as caught:
        await ours(made, messages=CONVERSATIONS[0])
    assert caught.value.code is ErrorCode.MALFORMED


def test_a_folder_without_a_tokenizer_or_with_another_is_refused(tmp_path: Path) -> None:
    from openlora_node.protocol.manifest import BaseManifest, FileEntry

    with pytest.raises(OpenLoraError) as caught:
        load_counter(tmp_path)
    assert caught.value.code is ErrorCode.MODEL_NOT_FOUND
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(OpenLoraError) as caught:
        load_counter(tmp_path)
    assert caught.value.code is ErrorCode.MODEL_NOT_FOUND
    counter(tmp_path, tiny_tokenizer(), CHAT_TEMPLATE)
    manifest = BaseManifest(
        config={}, files=(FileEntry(path="a", root="00" * 32, size=1),), tokenizer="11" * 32, chat_template="22" * 32
    )
    with pytest.raises(OpenLoraError) as caught:
        load_counter(tmp_path, manifest)
    assert caught.value.code is ErrorCode.BAD_MANIFEST


def test_counting_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; import openlora_node.gateway.app, openlora_node.gateway.counting;"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


async def test_a_tokenizer_that_panics_is_the_requests_error_and_ends_nothing(tmp_path: Path) -> None:
    """The library's panics are no Exceptions: one passed every handler, and the client never heard."""
    broken = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    single = [{"SpecialToken": {"id": "none", "type_id": 0}}]
    broken["post_processor"] = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(broken))
    (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)
    counter = load_counter(tmp_path)
    with pytest.raises(BodyError) as refused:
        await counter.count(parse_body(b'{"model":"m","prompt":"hello"}', 1_000))
    assert refused.value.code is ErrorCode.UNSUPPORTED
