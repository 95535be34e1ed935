"""Which node this is: the journal's word, else the registry's once somebody registered the key; does it hold."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from openlora_chain.errors import ChainError, ChainErrorCode
from openlora_node.daemon.identity import registered, registration, remembered
from openlora_node.journal import Binding, Journal
from openlora_node.protocol.eip712 import Domain
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.health import Level, ServiceHealth
from openlora_node.protocol.ids import ZERO32

DOMAIN = Domain(chain_id=1, verifying_contract=bytes(19) + b"\x01")
OTHER = Domain(chain_id=2, verifying_contract=bytes(19) + b"\x01")
NODE, KEY = b"\x11" * 32, b"\x22" * 20


async def opened(path: Path, binding: Binding) -> None:
    await Journal.open(path, binding, lambda: 1_000).close()


async def test_a_journal_remembers_whose_it_is(tmp_path: Path) -> None:
    path = tmp_path / "node.sqlite"
    assert remembered(path, DOMAIN) is None
    await opened(path, Binding.to_node(DOMAIN, NODE))
    assert remembered(path, DOMAIN) == NODE
    with pytest.raises(OpenLoraError) as caught:
        remembered(path, OTHER)
    assert caught.value.code is ErrorCode.JOURNAL_MISMATCH


async def test_a_payers_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.sqlite"
    await opened(path, Binding.to_payer(DOMAIN, KEY))
    with pytest.raises(OpenLoraError) as caught:
        remembered(path, DOMAIN)
    assert caught.value.code is ErrorCode.JOURNAL_MISMATCH


def test_a_file_that_was_never_opened_to_the_end_remembers_nothing(tmp_path: Path) -> None:
    path = tmp_path / "node.sqlite"
    path.touch(mode=0o600)
    assert remembered(path, DOMAIN) is None
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(OpenLoraError) as caught:
        remembered(path, DOMAIN)
    assert caught.value.code is ErrorCode.JOURNAL_CORRUPT


@dataclass
class Key:
    node: bytes


@dataclass
class Registry:
    """Answers in turn: an error, nobody's key, then a node's."""

    answers: list[bytes | ChainError] = field(default_factory=list)

    async def key_of(self, key: bytes) -> Key:
        assert key == KEY
        answer = self.answers.pop(0)
        if isinstance(answer, ChainError):
            raise answer
        return Key(answer)


async def test_it_waits_for_the_chain_and_for_the_owner_and_says_for_what() -> None:
    told: list[str] = []
    registry = Registry([ChainError(ChainErrorCode.RPC_UNREACHABLE), ZERO32, ZERO32, NODE])
    assert await asyncio.wait_for(registered(registry, KEY, told.append, pause=0), 5) == NODE
    assert "cannot be asked" in told[0]
    assert "openlora operator register" in told[1]
    assert len(told) == 3


@dataclass
class View:
    """A chain view that knows one key."""

    node: bytes | None
    level: Level = Level.UP

    def node_of(self, address: bytes) -> bytes | None:
        return self.node

    def health(self) -> ServiceHealth:
        return ServiceHealth("chain", self.level)


@pytest.mark.parametrize(
    ("view", "level", "text"),
    [
        (View(NODE), Level.UP, ""),
        (View(None, Level.INITIALIZING), Level.INITIALIZING, "being read"),
        (View(None, Level.DOWN), Level.INITIALIZING, "being read"),
        (View(None), Level.DOWN, "openlora operator status"),
        (View(b"\x33" * 32), Level.DOWN, "another node's"),
    ],
)
def test_whether_the_key_still_speaks_for_the_node(view: View, level: Level, text: str) -> None:
    found = registration(view, NODE, KEY)
    assert found.level is level
    assert text in found.reason
