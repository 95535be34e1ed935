"""Who may be sent an artifact: whom its host policy names; a credits table goes to everybody, whoever registered it."""

from __future__ import annotations

from pathlib import Path

from openlora_node.artifacts import ArtifactStore
from openlora_node.chainview import Scope
from openlora_node.daemon.shelf import Shelf
from openlora_node.network.identity import Peer
from openlora_node.settlement.credits import CreditTable
from openlora_node.settlement.leaves import Leaves


class Private:
    """A chain on which every artifact is registered as private."""

    async def has_access(self, artifact: bytes, scope: Scope, subject: bytes) -> bool:
        return False


async def test_a_private_registration_of_its_id_keeps_no_credits_table_from_anyone(tmp_path: Path) -> None:
    with ArtifactStore.open(tmp_path / "store", 1 << 20) as store:
        table = await Leaves(store).keep(b"n" * 32, b"d" * 32, 7, CreditTable(((b"a" * 20, 5),)))
        shelf = Shelf(store, Private(), None, b"n" * 32, (), 1 << 20)  # type: ignore[arg-type]
        stranger = Peer("16Uiu2HAmStranger", None, None)
        assert await shelf.may_send(table, stranger)
        assert not await shelf.may_send(b"x" * 32, stranger)
