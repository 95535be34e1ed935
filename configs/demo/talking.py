"""The demo's payer: a stock OpenAI client that knows nothing of wallets; the gateway pays for what it asks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from offers import Offers
from openai import AsyncOpenAI
from stage import say
from village import Village

QUESTION = "What is the capital of France?"
MAX_TOKENS = 48


@dataclass(frozen=True)
class Answer:
    """What came back, and what it cost."""

    title: str
    text: str
    about: dict[str, Any]
    """The response's `openlora` field."""


class Talk:
    """Asks and prints."""

    def __init__(self, village: Village, offers: Offers, began: float) -> None:
        self._client = AsyncOpenAI(base_url=f"{village.gateway_url}/v1", api_key=village.token, timeout=120)
        self._began = began
        self._offers = offers

    async def ask_everything(self) -> list[Answer]:
        """The base, each adapter, and a mix of two."""
        mix = {"adapters": [{"id": "pirate", "weight": 0.7}, {"id": "haiku", "weight": 0.3}]}
        answers = [await self._ask("the base alone", "smollm2")]
        say("", f"(first answer {time.monotonic() - self._began:.0f} s after the start)")
        for name in self._offers.adapters:
            answers.append(await self._ask(f"with {name}", f"smollm2+{name}"))
        answers.append(await self._ask("0.7 pirate + 0.3 haiku", "smollm2", mix))
        return answers

    async def _ask(self, title: str, model: str, extra: dict[str, Any] | None = None) -> Answer:
        text, about = "", None
        stream = await self._client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=MAX_TOKENS,
            temperature=0,
            stream=True,
            extra_body=extra or {},
        )
        async for chunk in stream:
            for choice in chunk.choices:
                text += choice.delta.content or ""
            about = (chunk.model_extra or {}).get("openlora") or about
        assert about, "the gateway says what a response cost"
        say("")
        say("ask", f"{QUESTION}  ({title})")
        for line in text.strip().splitlines():
            say("", f"  {line}")
        return Answer(title, text, about)
