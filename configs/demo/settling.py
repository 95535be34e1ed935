"""The demo's end: nodes redeem and anchor by themselves, everybody claims, and the balances add up to the wei."""

from __future__ import annotations

from chain import ChainDesk
from offers import Offers
from people import People
from stage import say
from talking import Answer
from village import Village


async def settle(desk: ChainDesk, village: Village, people: People, offers: Offers, answers: list[Answer]) -> None:
    """To be seen."""
    for answer in answers:
        say("paid", f"{answer.title}: {answer.about}")
