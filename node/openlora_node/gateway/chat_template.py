"""A conversation as the base's own chat template writes it, in the sandbox and with the names that transformers gives.

A test holds the text equal to transformers' over the engine's tokenizers. Imports no torch. Knows no token ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from ..openai import BodyError
from ..protocol.errors import ErrorCode

MAX_COMPLAINT = 200
_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_ROLES = {"developer": "system"}
_RESERVED = frozenset(
    {"messages", "conversation", "tools", "documents", "tokenize", "return_dict", "add_generation_prompt"}
    | {"continue_final_message", "chat_template", "padding", "truncation", "max_length", "return_tensors"}
    | {"return_assistant_tokens_mask", "tokenizer_kwargs"}
)
"""What the engine does not let `chat_template_kwargs` set."""


class ChatTemplate:
    """A compiled template with the special tokens that it may name. Rendering is synchronous and safe in any thread."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Raises BodyError UNSUPPORTED for a template that does not compile."""
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError:
            raise BodyError(ErrorCode.UNSUPPORTED, "the base's chat template does not compile", "model") from None
        self._source = source
        self._special_tokens = dict(special_tokens)

    def render(self, body: Mapping[str, Any]) -> str:
        """The prompt's text for a checked chat body. Raises BodyError MALFORMED with the template's own complaint."""
        extras = dict(body.get("chat_template_kwargs") or {})
        if taken := sorted(_RESERVED & set(extras)):
            raise BodyError(
                ErrorCode.MALFORMED, f"chat_template_kwargs may not set `{taken[0]}`", "chat_template_kwargs"
            )
        continues = bool(body.get("continue_final_message"))
        wanted = body.get("add_generation_prompt")
        generates = not continues if wanted is None else bool(wanted)
        messages = [plain(message) for message in body["messages"]]
        final = messages[-1]["content"]
        if continues:
            messages[-1]["content"] += _CONTINUE_TAG
        values = {**self._special_tokens, **extras}
        try:
            text = str(
                self._template.render(
                    messages=messages, tools=None, documents=None, add_generation_prompt=generates, **values
                )
            )
        except jinja2.TemplateError as error:
            raise _complaint(error) from None
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
            # Templates compute with what clients send: a wrong type in there is the request's fault, not ours.
            raise _complaint(None) from None
        return _cut_at_tag(text, final) if continues else text


def plain(message: Mapping[str, Any]) -> dict[str, str]:
    """A message as templates expect it: role and text, nothing else."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    told = {"role": _ROLES.get(message["role"], message["role"]), "content": content or ""}
    if message.get("name") is not None:
        told["name"] = message["name"]
    return told


def _cut_at_tag(text: str, final: str) -> str:
    if final.strip() not in text or _CONTINUE_TAG.strip() not in text:
        raise BodyError(
            ErrorCode.MALFORMED, "the chat template does not let the final message be continued", "messages"
        )
    place = text.rindex(_CONTINUE_TAG.strip())
    kept = text[place : place + len(_CONTINUE_TAG)] == _CONTINUE_TAG
    return text[:place] if kept else text[:place].rstrip()


def _complaint(error: jinja2.TemplateError | None) -> BodyError:
    """`raise_exception` in a template raises exactly TemplateError, with words for whoever sent the messages."""
    said = f": {error.message[:MAX_COMPLAINT]}" if type(error) is jinja2.TemplateError and error.message else ""
    return BodyError(ErrorCode.MALFORMED, f"the base's chat template does not take these messages{said}", "messages")


class _Generation(Extension):
    """`{% generation %}` marks what an assistant said; it changes no text."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own declaration

    def parse(self, parser: Any) -> Any:
        """The block's body, as it stands."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class _Dict:
    """`dict(...)` for templates, without the class behind it."""

    def __call__(self, *arguments: Any, **named: Any) -> dict[Any, Any]:
        return dict(*arguments, **named)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        """As dict.fromkeys."""
        return dict.fromkeys(*arguments)


class _Namespace(Namespace):
    """A namespace that holds no underscored name: the way out of the sandbox that Jinja leaves open."""

    def __init__(*arguments: Any, **named: Any) -> None:  # so that `namespace(self=…)` works
        self, rest = arguments[0], arguments[1:]
        values = dict(*rest, **named)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError("chat templates cannot store underscored names")


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    pair = None if separators is None else (separators[0], separators[1])
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)  # transformers shows templates the local time


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment
