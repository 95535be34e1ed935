"""A journal belongs to one chain, contract and owner, and does not go on in its own past."""

from __future__ import annotations

from pathlib import Path

import pytest

from openlora_node.journal import Binding, Journal, Reader
from openlora_node.protocol.eip712 import Domain
from openlora_node.protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from support.journal import DOMAIN, NODE, NOW, Builder, Clock, admit, open_journal, request, respond

OTHERS = {
    "chain": Binding.to_node(Domain(chain_id=1, verifying_contract=DOMAIN.verifying_contract), NODE),
    "contract": Binding.to_node(Domain(chain_id=1612, verifying_contract=b"\x01" * 20), NODE),
    "node": Binding.to_node(DOMAIN, b"\x12" * 32),
    "role": Binding.to_payer(DOMAIN, b"\x12" * 20),
}


async def test_a_journal_opens_for_what_it_was_made_for_only(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    async with open_journal(path):
        pass
    for name, binding in OTHERS.items():
        with pytest.raises(OpenLoraError) as caught:
            Journal.open(path, binding, Clock())
        assert caught.value.code is ErrorCode.JOURNAL_MISMATCH
        assert f"another {name}" in caught.value.message
    async with open_journal(path):
        pass
    with Reader(path) as reader:
        assert reader.binding == Binding.to_node(DOMAIN, NODE)


async def test_the_largest_chain_id_survives(tmp_path: Path) -> None:
    binding = Binding.to_node(Domain(chain_id=2**256 - 1, verifying_contract=b"\x01" * 20), NODE)
    for _ in range(2):
        async with Journal.open(tmp_path / "journal.sqlite", binding, Clock()):
            pass


@pytest.mark.parametrize("make", [lambda: Binding.to_node(DOMAIN, b"\x01" * 20), lambda: Binding.to_payer(DOMAIN, b"")])
def test_an_owner_of_the_wrong_width_is_refused(make) -> None:
    with pytest.raises(ProtocolError):
        make()


async def test_an_admission_from_the_future_stops_the_start(tmp_path: Path) -> None:
    path, clock = tmp_path / "journal.sqlite", Clock()
    async with open_journal(path, clock) as journal:
        await admit(journal, request(1))
    async with open_journal(path, Clock(NOW - 60)):
        pass
    with pytest.raises(OpenLoraError) as caught:
        open_journal(path, Clock(NOW - 61))
    assert caught.value.code is ErrorCode.CLOCK_WRONG
    assert "61 s" in caught.value.message
    async with open_journal(path, clock):
        pass


async def test_a_receipt_from_the_future_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    async with open_journal(path) as journal:
        await respond(journal, request(1), Builder(finished_at=NOW + 100))
    with pytest.raises(OpenLoraError) as caught:
        open_journal(path, Clock(NOW + 39))
    assert caught.value.code is ErrorCode.CLOCK_WRONG
    async with open_journal(path, Clock(NOW + 40)):
        pass
