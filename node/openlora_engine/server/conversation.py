"""A conversation to the prompt's text, by the model's own chat template. Knows no token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError

from ..errors import Code, EngineError
from .backend import Tokenizer
from .requests import Conversation, Message, is_null

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_RESERVED = frozenset(
    {"messages", "conversation", "tools", "documents", "tokenize", "return_dict", "add_generation_prompt"}
    | {"continue_final_message", "chat_template", "padding", "truncation", "max_length", "return_tensors"}
    | {"return_assistant_tokens_mask", "tokenizer_kwargs"}
)
_LONGEST_COMPLAINT = 200


def render(tokenizer: Tokenizer, given: Conversation) -> str:
    """The prompt's text. Raises BAD_REQUEST or UNSUPPORTED; a template's own complaint is passed on."""
    if tokenizer.chat_template is None:
        raise EngineError(
            Code.UNSUPPORTED, "this model has no chat template: use /v1/completions with a prompt", param="messages"
        )
    conversation = [_plain(message, index) for index, message in enumerate(given.messages)]
    if not conversation:
        raise EngineError(Code.PROMPT_EMPTY, "messages is empty: send at least one message", param="messages")
    continues = bool(given.continue_final_message)
    generates = not continues if given.add_generation_prompt is None else given.add_generation_prompt
    if continues and generates:
        raise EngineError(
            Code.BAD_REQUEST,
            "continue_final_message and add_generation_prompt exclude each other: set one",
            param="continue_final_message",
        )
    extras = _extras(given.chat_template_kwargs or {})
    try:
        text = tokenizer.apply_chat_template(
            conversation,
            tokenize=False,
            add_generation_prompt=generates,
            continue_final_message=continues,
            **extras,
        )
    except TemplateError as error:
        raise _refusal(error) from None
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
        # Templates compute with what clients send: a wrong type in there is the request's fault, not ours.
        raise _refusal(None) from None
    return str(text)


def _plain(message: Message, index: int) -> dict[str, str]:
    """A message as templates expect it: role and text, nothing else."""
    place = f"messages[{index}]"
    if message.role not in ROLES:
        allowed = ", ".join(ROLES)
        raise EngineError(Code.UNSUPPORTED, f"{place}.role must be one of {allowed}", param="messages")
    for name, value in (("tool_calls", message.tool_calls), ("function_call", message.function_call)):
        if not is_null(value) and bytes(value) != b"[]":
            raise EngineError(Code.UNSUPPORTED, f"{place}.{name} is not supported: leave it out", param="messages")
    plain = {"role": ROLES[message.role], "content": _text(message, place)}
    if message.name is not None:
        plain["name"] = message.name
    return plain


def _text(message: Message, place: str) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    if content is None:
        if message.role == "assistant":
            return ""
        raise EngineError(Code.BAD_REQUEST, f"{place}.content is missing: send text", param="messages")
    texts = []
    for number, part in enumerate(content):
        if part.type != "text":
            raise EngineError(
                Code.UNSUPPORTED, f"{place}.content[{number}].type must be text: only text is served", param="messages"
            )
        if part.text is None:
            raise EngineError(
                Code.BAD_REQUEST, f"{place}.content[{number}].text is missing: send text", param="messages"
            )
        texts.append(part.text)
    return "".join(texts)


def _extras(given: Mapping[str, str | int | float | bool | None]) -> dict[str, Any]:
    for name in given:
        if name in _RESERVED:
            raise EngineError(
                Code.BAD_REQUEST, f"chat_template_kwargs may not set `{name}`", param="chat_template_kwargs"
            )
    return dict(given)


def _refusal(error: TemplateError | None) -> EngineError:
    """`raise_exception` in a template raises exactly TemplateError, with words for whoever sent the messages."""
    said = ""
    if type(error) is TemplateError and error.message:
        said = f": {error.message[:_LONGEST_COMPLAINT]}"
    return EngineError(
        Code.BAD_REQUEST, f"the model's chat template does not take these messages{said}", param="messages"
    )
