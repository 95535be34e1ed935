"""A process that a supervisor takes for an engine: no model, started in a moment, wrong in the way it is told to be.

`python engineclient_fake.py SOCKET WAY...`: `exit N SENTENCE` ends at once; `stubborn` ignores SIGTERM; `failed`
answers its health with a fault; `quiet` never says that it serves; `mute` says so and never answers; `chatty` writes a
lot first.
"""

from __future__ import annotations

import asyncio
import signal
import sys


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Any request gets the health."""
    while await reader.readuntil(b"\r\n\r\n"):
        body = b'{"status": "failed", "message": "5 steps in a row failed"}' if "failed" in sys.argv else b"{}"
        status = b"503 Service Unavailable" if "failed" in sys.argv else b"200 OK"
        writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
        await writer.drain()


async def main() -> None:
    socket, ways = sys.argv[1], sys.argv[2:]
    if ways[:1] == ["exit"]:
        print(ways[2], file=sys.stderr, flush=True)
        sys.exit(int(ways[1]))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None if "stubborn" in ways else stop.set())
    if "chatty" in ways:
        sys.stdout.write("x" * (1 << 20) + "\n" + "one more line\n" * 10_000)
    print("2026-01-01 00:00:00,000 INFO fake: loading", flush=True)
    if "mute" not in ways:
        await asyncio.start_unix_server(answer, socket)
    if "quiet" not in ways:
        print(f"2026-01-01 00:00:00,000 INFO fake: serving on unix:{socket}", flush=True)
    await stop.wait()


asyncio.run(main())
