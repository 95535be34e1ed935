"""Datasets' pools decided on a real chain: posted, brought into force, vetoed, lapsed; claimed to the wei."""

from __future__ import annotations

from pathlib import Path

import pytest

from openlora_chain.bindings import ActiveCredits
from openlora_node.artifacts import ArtifactStore
from openlora_node.attribution.indexed import UNIT
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.ids import format_address, format_artifact_id, format_bytes
from openlora_node.settlement import credit_rows
from openlora_node.settlement.auditing import audit
from openlora_node.settlement.crediting import ACTIVATE_GAS, LAPSE_GAS, NOBODY, POST_GAS
from openlora_node.settlement.leaves import Leaves
from support.chain_cli import ChainCli
from support.chain_world import ChainWorld
from support.credits_place import ASSIGNED, ROYALTIES, Place, place
from support.settlement_world import open_desk

pytestmark = pytest.mark.slow


async def test_what_receipts_credit_is_posted_comes_into_force_and_is_claimed_to_the_wei(
    world: ChainWorld, cli: ChainCli, tmp_path: Path
) -> None:
    async with place(world, tmp_path, "claimed") as here:
        await here.serve(1, 500_000, 200_001)
        assert await here.decide() == 1
        pending = await world.credits.pending_of(here.desk.node, here.dataset)
        assert pending is not None
        assert (pending.epoch, pending.through) == (1, ASSIGNED)
        assert await here.decide() == 0, "one post waits for its timelock"
        await here.pass_time(61)
        assert await here.decide() == 1
        credited = [ASSIGNED * 500_000 // 10**6, ASSIGNED * 200_001 // 10**6]
        assert (await here.in_force())[:2] == (1, sum(credited))
        assert await here.shares_pool() == ROYALTIES * 4_000 // 10_000 - sum(credited), "what is left goes by shares"

        # The second epoch continues the table.
        await here.serve(2, 0, 0, 1_000_000)
        assert await here.decide() == 1
        await here.pass_time(61)
        assert await here.decide() == 1
        credited.append(ASSIGNED)
        assert (await here.in_force())[:2] == (2, sum(credited))
        (leaves,) = [each for each, kept in here.desk.leaves.tables.items() if kept.root == (await here.in_force())[2]]

        posts = await here.desk.journal.transact(lambda tx: credit_rows.posts(tx, here.desk.node, here.dataset))
        found = audit(posts, here.periods.since(0, 0), 2)
        assert found is not None
        assert found.agrees
        assert found.posted.table.root == (await here.in_force())[2]
        here.periods.epochs[2][here.dataset].credits[here.contributors[0]] = UNIT
        tampered = audit(posts, here.periods.since(0, 0), 2)
        assert tampered is not None
        assert not tampered.agrees

        sender_file = await cli.key(here.payer, "sender")
        (tmp_path / "shares.json").write_bytes(here.table.encode())
        where = ("--node", format_bytes(here.desk.node), "--dataset", format_artifact_id(here.dataset))
        shown = await cli.json("credits", "show", *where)
        assert (shown["epoch"], shown["credited"], shown["waiting"]) == ("2", str(sum(credited)), "0")
        assert shown["table"] == f"{format_artifact_id(leaves)}, not here: openlora artifacts pull it"
        about = ("--dataset", format_artifact_id(here.dataset), "--shares", tmp_path / "shares.json")
        of_node = ("--node", format_bytes(here.desk.node))
        first = ("contributor", "--address", format_address(here.contributors[0]), *about, *of_node)
        refused = await cli.json("rewards", "show", *first, status=8)
        assert f"openlora artifacts pull {format_artifact_id(leaves)}" in refused["error"]["message"]
        with ArtifactStore.open(tmp_path / "home/devnet/artifacts", 1 << 20) as store:
            kept = await Leaves(store).keep(here.desk.node, here.dataset, 2, here.desk.leaves.tables[leaves])
        assert kept == leaves, "as every node packs it"
        assert (await cli.json("credits", "show", *where))["table"] == format_artifact_id(leaves)
        paid = 0
        for number, account in enumerate(here.contributors):
            before = await world.rpc.balance(account)
            paying = ("--key", sender_file, "--password-file", cli.password, "--yes")
            who = ("contributor", "--address", format_address(account))
            await cli.json("rewards", "claim", *who, *about, *of_node, *paying)
            got = await world.rpc.balance(account) - before
            share = (2 * ROYALTIES * 4_000 // 10_000 - sum(credited)) * (5_000, 3_000, 2_000)[number] // 10_000
            assert got == credited[number] + share
            paid += got
        assert 0 <= 2 * ROYALTIES * 4_000 // 10_000 - paid < 3, "the data pools of all receipts, but for dust of shares"


async def test_a_veto_sends_a_period_to_shares_and_it_is_never_credited(
    world: ChainWorld, cli: ChainCli, tmp_path: Path
) -> None:
    async with place(world, tmp_path, "veto") as here:
        await here.serve(1, 900_000)
        assert await here.decide() == 1
        where = ("--node", format_bytes(here.desk.node), "--dataset", format_artifact_id(here.dataset))
        assert "not here" in (await cli.json("credits", "show", *where))["pendingTable"], "a ground for a veto"
        key = ("--key", await cli.key(here.owner, "owner"), "--password-file", cli.password)
        plan = await cli.json("credits", "veto", *where, *key)
        assert [step["step"] for step in plan["plan"]["steps"]] == ["veto the credits"]
        await cli.json("credits", "veto", *where, *key, "--yes")
        again = await cli.json("credits", "veto", *where, *key, "--yes", status=8)
        assert "no post of this node is in its timelock" in again["error"]["message"]
        assert (await here.in_force())[:2] == (1, 0)
        await here.serve(2, 0, 100_000)
        assert await here.decide() == 1
        await here.pass_time(61)
        assert await here.decide() == 1
        assert (await here.in_force())[:2] == (2, ASSIGNED // 10)
        posts = await here.desk.journal.transact(lambda tx: credit_rows.posts(tx, here.desk.node, here.dataset))
        assert posts[0].table.credits == ((here.contributors[1], ASSIGNED // 10),)
        found = audit(posts, here.periods.since(0, 0), 2)
        assert found is not None
        assert found.agrees


async def test_a_pool_that_nobody_decided_in_time_lapses_and_later_ones_go_on(
    world: ChainWorld, tmp_path: Path
) -> None:
    async with place(world, tmp_path, "lapse") as here:
        await here.serve(1, 900_000)
        await here.pass_time(3_700)
        here.periods.closed = 1
        assert await here.decide() == 1
        assert await here.shares_pool() == ROYALTIES * 4_000 // 10_000
        assert await here.in_force() == (0, 0, bytes(32))
        here.periods.closed = 2
        await here.serve(2, 300_000)
        assert await here.decide() == 1
        await here.pass_time(61)
        assert await here.decide() == 1
        assert (await here.in_force())[:2] == (2, ASSIGNED * 3 // 10), "nothing of the epoch that lapsed"


async def test_money_that_nobody_is_credited_with_does_not_wait_for_the_window(
    world: ChainWorld, tmp_path: Path
) -> None:
    async with place(world, tmp_path, "nobody") as here:
        await here.serve(1)
        assert await here.decide() == 1
        await here.pass_time(61)
        assert await here.decide() == 1
        assert (await here.in_force())[:2] == (1, 0)
        assert await here.shares_pool() == ROYALTIES * 4_000 // 10_000
        (table,) = here.desk.leaves.tables.values()
        assert table.credits == ((NOBODY, 0),)


async def test_what_was_earned_under_older_terms_is_credited_in_full(world: ChainWorld, tmp_path: Path) -> None:
    """The owner assigns less to use after the money came in: a post reaches what it credits, or it would be refused."""
    async with place(world, tmp_path, "lowered") as here:
        await here.serve(1, 900_000)
        await world.send(here.owner, world.artifacts.set_terms(here.dataset, (0, 1_000, [])))
        assert await here.decide() == 1
        pending = await world.credits.pending_of(here.desk.node, here.dataset)
        assert pending is not None
        assert (pending.total, pending.through) == (ASSIGNED * 9 // 10, ASSIGNED * 9 // 10)


async def test_a_decision_between_two_reads_is_not_taken_for_a_lapse(
    world: ChainWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody activates while the node looks: the epochs after that are credited all the same."""
    async with place(world, tmp_path, "between") as here:
        await here.serve(1, 900_000)
        assert await here.decide() == 1
        await here.pass_time(61)
        by_use, meanwhile = here.desk.parts.credits, [world.credits.activate(here.desk.node, here.dataset)]
        read = by_use.active_of

        async def active_of(node: bytes, dataset: bytes, at: int | None = None) -> ActiveCredits:
            if meanwhile:
                await world.send(here.payer, meanwhile.pop())
            return await read(node, dataset, at)

        monkeypatch.setattr(by_use, "active_of", active_of)
        await here.decide()
        assert not meanwhile
        here.periods.closed = 2
        await here.serve(2, 0, 100_000)
        assert await here.decide() == 1
        await here.pass_time(61)
        assert await here.decide() == 1
        assert (await here.in_force())[:2] == (2, ASSIGNED)


async def test_an_epoch_that_credits_nobody_leaves_the_table_as_it_was_and_the_audit_right(
    world: ChainWorld, tmp_path: Path
) -> None:
    async with place(world, tmp_path, "unchanged") as here:
        for epoch, parts in ((1, (900_000,)), (2, ()), (3, (0, 100_000))):
            await here.serve(epoch, *parts)
            assert await here.decide() == 1
            await here.pass_time(61)
            assert await here.decide() == 1
        assert (await here.in_force())[:2] == (3, ASSIGNED)
        posts = await here.desk.journal.transact(lambda tx: credit_rows.posts(tx, here.desk.node, here.dataset))
        for through in (1, 2, 3):
            found = audit(posts, here.periods.since(0, 0), through)
            assert found is not None
            assert found.posted.epoch == through
            assert found.agrees


async def test_a_table_that_cannot_be_kept_is_not_posted_and_stops_nothing_else(
    world: ChainWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place(world, tmp_path, "full") as here:
        await here.serve(1, 900_000)

        async def keep(*_: object) -> bytes:
            raise OpenLoraError(ErrorCode.STORAGE_FULL, "no room")

        with monkeypatch.context() as full:
            full.setattr(here.desk.leaves, "keep", keep)
            assert await here.decide() == 0
            await here.desk.round()
        assert await world.credits.pending_of(here.desk.node, here.dataset) is None
        assert await here.decide() == 1


async def test_a_node_that_is_killed_posts_once(world: ChainWorld, tmp_path: Path) -> None:
    """Queued in one transaction with the table behind it: another life finds both, and queues nothing."""
    async with place(world, tmp_path, "killed") as here:
        await here.serve(1, 900_000)
        await here.desk.catch_up()
        assert await here.desk.service.decide_now() == 1
        assert await here.desk.service.decide_now() == 0
        key, node, periods, dataset = here.desk.key, here.desk.node, here.periods, here.dataset
    async with open_desk(world, tmp_path, key, node, periods=periods) as again:
        await again.catch_up()
        assert await again.service.decide_now() == 0
        await again.send()
        assert await again.service.decide_now() == 0
        pending = await world.credits.pending_of(node, dataset)
        assert pending is not None
        assert [kind for kind in await again.kinds() if kind == "credits"] == ["credits"]


async def test_what_is_not_worth_its_gas_waits_and_gas_is_as_counted(world: ChainWorld, tmp_path: Path) -> None:
    async with place(world, tmp_path, "gas") as here:
        await here.serve(1, 900_000)
        await here.desk.catch_up()
        decisions = here.desk.service._decisions
        assert decisions is not None
        assert await decisions.round(10**15, here.desk.now) == 0, "the gas would cost more than the pool holds"
        spent: list[int] = []
        for bound in (POST_GAS, ACTIVATE_GAS):
            assert await here.decide() == 1
            spent.append(await _gas_of_newest(here))
            assert spent[-1] <= bound
            await here.pass_time(61)
        await here.serve(2, 1)
        await here.pass_time(3_700)
        assert await here.decide() == 1
        assert await _gas_of_newest(here) <= LAPSE_GAS


async def _gas_of_newest(here: Place) -> int:
    from openlora_node.journal.outbox import JournalOutbox

    newest = (await JournalOutbox(here.desk.journal).recent(1))[0]
    assert newest.request.kind == "credits"
    receipt = await here.world.rpc.receipt(newest.live_attempts[-1].hash)
    assert receipt is not None
    return receipt.gas_used
