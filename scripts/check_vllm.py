"""Tries the engine's client on a real vLLM server: `python scripts/check_vllm.py`, after `scripts/bench_peers.sh vllm`.

Starts vLLM on the CPU with the default model, loads the demo's adapters by artifact id, and holds counts, tokens,
mixes, refusals and cancellation to what docs/operator.md says of `engine.backend: vllm`. Takes a few minutes.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from openlora_node.engineclient import Channel, EngineClient, EngineState, Mix
from openlora_node.openai import Body, parse_body
from openlora_node.protocol.errors import ErrorCode, OpenLoraError

ROOT = Path(__file__).parents[1]
VLLM = ROOT / "build" / "peers" / "vllm" / "bin" / "python"
MODEL = Path(sys.prefix) / "share" / "openlora" / "models" / "smollm2-135m-instruct"
ADAPTERS = {name: sha256(name.encode()).digest() for name in ("haiku", "json", "pirate")}
FLAGS = (
    *("--dtype", "float32", "--max-model-len", "1024", "--max-num-seqs", "4", "--enforce-eager"),
    *("--enable-lora", "--max-lora-rank", "8"),
)
TETHER = ROOT / "node" / "openlora_node" / "engineclient" / "tether.py"
ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
START_S = 900.0


def body(**fields: Any) -> Body:
    """A request at temperature 0."""
    return parse_body(json.dumps({"temperature": 0} | fields).encode(), 1 << 20)


def chat(text: str, **fields: Any) -> Body:
    """A conversation of one message."""
    return body(messages=[{"role": "user", "content": text}], **fields)


async def text_of(client: EngineClient, asked: Body, mix: Mix, max_tokens: int = 24) -> str:
    """The text of choice 0, each token with its id."""
    async with client.generate(asked, mix, max_tokens=max_tokens, tenant="check", request_id="check") as chunks:
        found = [chunk async for chunk in chunks]
    assert all(chunk.token_ids for chunk in found if chunk.text)
    return "".join(chunk.text for chunk in found if chunk.choice == 0)


async def refused(code: ErrorCode, work: Awaitable[Any]) -> None:
    """Hold a refusal to its code."""
    try:
        await work
    except OpenLoraError as error:
        found = error.code
    else:
        found = None
    assert found is code, f"{found} instead of {code}"


@asynccontextmanager
async def server() -> AsyncIterator[EngineClient]:
    """A client of a vLLM server that is ready; the server ends with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-I",
        "-S",
        str(TETHER),
        str(os.getpid()),
        str(VLLM),
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    command += ["--model", str(MODEL), "--served-model-name", MODEL.name, *FLAGS]
    process = await asyncio.create_subprocess_exec(
        *command,
        env=os.environ | ENVIRONMENT,
        cwd=VLLM.parent,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with EngineClient(Channel(url=f"http://127.0.0.1:{port}"), "vllm") as client:
            async with asyncio.timeout(START_S):
                while (await client.report()).state is not EngineState.OK:
                    if process.returncode is not None:
                        raise SystemExit(f"vLLM ended with code {process.returncode}")
                    await asyncio.sleep(1)
            yield client
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def main() -> None:
    """Everything, in the order in which a node would do it."""
    question = chat("What is the capital of France?")
    async with server() as client:
        info = await client.info()
        print(f"vLLM {info.version} serves {info.model}, context {info.max_model_len}")
        print(f"prompt tokens: {await client.count(question, Mix())}")
        said = {"base": await text_of(client, question, Mix())}
        for name, artifact in ADAPTERS.items():
            for _ in range(2):
                await client.ensure(artifact, ROOT / "configs" / "demo" / "adapters" / name)
            said[name] = await text_of(client, question, Mix(((artifact, 10_000),)))
        for name, text in said.items():
            print(f"{name:>8}: {text!r}")
        assert len(set(said.values())) == len(said)
        assert await client.loaded() == frozenset(ADAPTERS.values())
        one, two = (ADAPTERS[name] for name in ("haiku", "pirate"))
        await refused(ErrorCode.UNSUPPORTED, text_of(client, question, Mix(((one, 5_000), (two, 5_000)))))
        await refused(ErrorCode.UNSUPPORTED, text_of(client, question, Mix(((one, 5_000),))))
        await refused(ErrorCode.ADAPTER_NOT_FOUND, text_of(client, question, Mix(((bytes(32), 10_000),))))
        await refused(ErrorCode.PROMPT_TOO_LONG, text_of(client, question, Mix(), 100_000))
        await refused(ErrorCode.PROMPT_TOO_LONG, client.count(chat("x " * 5_000), Mix()))
        await refused(ErrorCode.MALFORMED, text_of(client, chat("x", guided_regex="("), Mix()))
        assert await text_of(client, chat("Yes or no?", guided_choice=["yes", "no"]), Mix()) in ("yes", "no")
        long = chat("Count.", ignore_eos=True)
        async with client.generate(long, Mix(), max_tokens=900, tenant="check", request_id="check") as chunks:
            await anext(chunks)
        for _ in range(600):
            if not (await client.load()).running:
                break
            await asyncio.sleep(0.1)
        else:
            raise AssertionError("a run goes on whose client has left")
        await client.unload(one)
        await refused(ErrorCode.ADAPTER_NOT_FOUND, text_of(client, question, Mix(((one, 10_000),))))
        print("mixes, refusals, cancellation and unloading are as promised")


if __name__ == "__main__":
    asyncio.run(main())
