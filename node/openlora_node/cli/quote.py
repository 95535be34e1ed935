"""`openlora quote`: what a request would cost at most, asked of nodes and not paid."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .ask import Adapters, Model, Tokens, chat_body, coins
from .chain_errors import run as run_async
from .exits import Exit
from .options import NOUN, AsJson, ConfigFile, Sets, load_config
from .output import print_json, print_table, print_text

if TYPE_CHECKING:
    from ..config import Config

app = typer.Typer(help="Ask nodes what a request would cost.", invoke_without_command=True, **NOUN)


@app.callback()
def quote(
    prompt: Annotated[str, typer.Option("--prompt", help="What would be asked.")],
    model: Model = None,
    adapters: Adapters = None,
    max_tokens: Tokens = None,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> int:
    """Ask nodes what a request would cost. Nothing is signed and nothing paid."""
    loaded = load_config(config, sets)
    body = chat_body(loaded.config, prompt, model, adapters or [], max_tokens=max_tokens)
    told = run_async(_quote(loaded.config, body))
    if as_json:
        print_json(told)
        return Exit.OK
    print_text(f"{told['model']}: {told['promptTokens']} prompt tokens")
    now = int(time.time())
    rows = [
        (
            entry["node"][:18] + "…",
            coins(entry["inputRate"]),
            coins(entry["outputRate"]),
            coins(str(sum(int(royalty["rate"]) for royalty in entry["royalties"]))),
            coins(entry["settlementCharge"]),
            str(entry["maxTokens"]),
            coins(entry["maxFee"]),
            f"{max(0, entry['expiresAt'] - now)} s",
        )
        for entry in told["quotes"]
    ]
    columns = ("node", "prompt, 1M", "output, 1M", "royalties, 1M", "once", "max tokens", "costs at most", "valid")
    print_table(columns, rows)
    return Exit.OK


async def _quote(config: Config, body: bytes) -> dict[str, Any]:
    from ..gateway.client import reach_gateway

    async with reach_gateway(config) as link:
        return await link.quote(body)
