"""`openlora ask`: one question for people, paid by the gateway here or by one opened for the call."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..protocol.errors import ErrorCode, OpenLoraError
from .chain_errors import run as run_async
from .exits import Exit
from .options import NOUN, AsJson, ConfigFile, Sets, load_config
from .output import OutputLostError, ReaderLeftError, print_json, print_table, print_text

if TYPE_CHECKING:
    from ..config import Config

app = typer.Typer(
    help="Ask one question and pay for the answer.",
    invoke_without_command=True,
    context_settings={"allow_interspersed_args": True},
    **NOUN,
)

Model = Annotated[str | None, typer.Option("--model", metavar="NAME", help="Base, base+adapter, or an artifact id.")]
Adapters = Annotated[
    list[str] | None, typer.Option("--adapter", metavar="NAME[:WEIGHT]", help="Mix this adapter in; repeatable.")
]
Tokens = Annotated[int | None, typer.Option("--max-tokens", min=1, help="Most tokens that the answer may have.")]


@app.callback()
def ask(
    question: Annotated[str, typer.Argument(help="What to ask. -: read it from standard input.")],
    model: Model = None,
    adapters: Adapters = None,
    system: Annotated[str | None, typer.Option("--system", help="What the model is told beforehand.")] = None,
    max_tokens: Tokens = None,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> int:
    """Ask one question and pay for the answer: prints it as it comes, then its fee, its receipt and who earns what."""
    loaded = load_config(config, sets)
    text = sys.stdin.read() if question == "-" else question
    body = chat_body(loaded.config, text, model, adapters or [], system=system, max_tokens=max_tokens)
    run_async(_ask(loaded.config, body, as_json))
    return Exit.OK


def chat_body(
    config: Config,
    text: str,
    model: str | None,
    adapters: list[str],
    *,
    system: str | None = None,
    max_tokens: int | None = None,
) -> bytes:
    """The body of a streamed chat. Without a model it is the base of the adapters, or the only base that has a name."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": text})
    body: dict[str, Any] = {"model": model or _only_base(config, adapters), "messages": messages, "stream": True}
    if adapters:
        body["adapters"] = [_adapter(entry) for entry in adapters]
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    return json.dumps(body).encode()


async def _ask(config: Config, body: bytes, as_json: bool) -> None:
    from ..gateway.client import reach_gateway

    parts: list[str] = []
    facts: dict[str, Any] = {}
    async with reach_gateway(config) as link:
        async for item in link.ask(body):
            if isinstance(item, dict):
                facts = item
            else:
                parts.append(item)
                if not as_json:
                    _stream(item)
    if as_json:
        print_json({"text": "".join(parts), "openlora": facts})
        return
    _stream("\n\n")
    print_text(f"fee {coins(facts['fee'])}, receipt {facts['receipt']}")
    rows = [("compute", "node", facts["node"][:18] + "…", coins(facts["compute"]))]
    rows += [("royalty", share["artifact"][:23] + "…", share["owner"], coins(share["wei"])) for share in facts["earns"]]
    print_table(("for", "what", "who", "earns"), rows)


def coins(wei: str) -> str:
    """Wei as an exact amount of OPEN."""
    whole, rest = divmod(int(wei), 10**18)
    digits = f"{rest:018}".rstrip("0")
    return f"{whole}.{digits} OPEN" if digits else f"{whole} OPEN"


def _stream(text: str) -> None:
    """Show text as it comes, without what a terminal would take for a command."""
    shown = "".join(character if character.isprintable() or character in "\n\t" else "�" for character in text)
    try:
        sys.stdout.write(shown)
        sys.stdout.flush()
    except BrokenPipeError:
        raise ReaderLeftError from None
    except OSError:
        raise OutputLostError from None


def _adapter(text: str) -> dict[str, Any]:
    """`poet:0.7` → an entry of a body's `adapters`. An id has a colon of its own: the weight is behind the last."""
    name, _, weight = text.rpartition(":")
    if name and name != "sha256" and not name.endswith("@sha256"):
        try:
            return {"id": name, "weight": float(weight)}
        except ValueError:
            pass
    return {"id": text, "weight": 1.0}


def _only_base(config: Config, adapters: list[str]) -> str:
    from ..gateway.names import NAMES_FILE, load_names

    chosen = config.gateway.names_file
    names = load_names(chosen or config.gateway_dir / NAMES_FILE, must_exist=chosen is not None)
    bases = {
        names.name_of(entry.base)
        for text in adapters
        if (entry := names.adapters.get(_adapter(text)["id"])) is not None
    } or set(names.bases)
    if len(bases) != 1:
        told = ", ".join(sorted(names.bases)) or "none in the names file"
        raise OpenLoraError(ErrorCode.MODEL_NOT_FOUND, f"say which base by --model; there are {told}")
    return bases.pop()
