"""Credits tables as artifacts: kept once whatever cuts it off, and fetched by anyone over a real network."""

from __future__ import annotations

from pathlib import Path

import pytest

from openlora_node.artifacts import ArtifactStore
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.merkle import amount_leaf, verify_proof
from openlora_node.settlement.credits import CreditTable
from openlora_node.settlement.leaves import Leaves, pack
from openlora_node.settlement.tables import stored_table
from support.artifacts_peers import nodes, open_store

pytestmark = pytest.mark.timeout(60)
NODE, DATASET = b"n" * 32, b"d" * 32
LARGE = CreditTable(tuple((number.to_bytes(20, "big"), 10**18 + number) for number in range(1, 9_001)))
"""About 700 KiB: three chunks."""


class Killed(BaseException):
    """The process ends here."""


async def test_anyone_fetches_a_table_by_the_id_that_was_posted(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as (contributor, poster):
        leaves = await Leaves(poster.store).keep(NODE, DATASET, 7, LARGE)
        await contributor.fetch(leaves, poster)
    table = stored_table(tmp_path / "node0", leaves, LARGE.root)
    assert table == LARGE
    account, wei = table.credits[4_321]
    assert verify_proof(LARGE.root, amount_leaf(account, wei), table.proof(account))
    with pytest.raises(OpenLoraError) as refused:
        stored_table(tmp_path / "node0", leaves, bytes(32))
    assert refused.value.code is ErrorCode.NOT_FOUND, "a table of another root is none of this one"


@pytest.mark.parametrize("at", ["keep", "finish", "pin"])
async def test_a_table_is_kept_whole_after_a_kill_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def die(*_: object) -> None:
        raise Killed

    with open_store(tmp_path) as store, monkeypatch.context() as dying:
        dying.setattr(ArtifactStore, at, die)
        with pytest.raises(Killed):
            await Leaves(store).keep(NODE, DATASET, 7, LARGE)
    with open_store(tmp_path) as store:
        leaves = await Leaves(store).keep(NODE, DATASET, 7, LARGE)
        assert leaves == bytes(pack(NODE, DATASET, 7, LARGE)[0].id)
        assert await Leaves(store).keep(NODE, DATASET, 7, LARGE) == leaves
        assert leaves in store.pinned()
        assert await store.verify(leaves) == ()
        await Leaves(store).forget(leaves)
        assert leaves not in store.pinned()
    assert stored_table(tmp_path, leaves, LARGE.root) == LARGE
