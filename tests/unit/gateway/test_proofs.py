"""A payer keeps what proves its receipts: leaves before it pays, the path to the anchored root when it asks for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from openlora_node.attribution import Behind, Evidence, leaves, verify
from openlora_node.gateway.proofs import Proofs
from openlora_node.gateway.recovery import Recovered
from openlora_node.journal import Reader, StoredReceipt, spending
from openlora_node.protocol import messages
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.messages import VOUCHER, VoucherMessage
from support.gateway_world import DOMAIN, EPOCH_S, POET, Script, ScriptedNode, World, world

DATASET = b"\xda" * 32
ROYALTIES = {POET: (Behind(DATASET, 4_000, b"\x05" * 32),)}


class Anchors:
    """The chain's roots."""

    def __init__(self) -> None:
        self.roots: dict[tuple[bytes, int], bytes] = {}

    async def __call__(self, node: bytes, epoch: int) -> bytes:
        return self.roots.get((node, epoch), bytes(32))


async def kept(w: World) -> tuple[StoredReceipt, bytes]:
    """The newest receipt in the payer's journal, and its packed leaves."""
    (spend, *_) = await w.purse.journal.transact(lambda tx: spending.listed(tx, 0))
    with Reader(w.purse.journal.path) as reader:
        stored = reader.receipt(spend.request_digest)
        assert stored is not None
        return stored, reader.evidence(stored.receipt.value.node, stored.receipt.value.seq)


async def unpaid(w: World, node: ScriptedNode, told: str) -> None:
    """The next request is refused for what its receipt's leaves say, and no voucher answers it."""
    with pytest.raises(OpenLoraError, match=told) as caught:
        await w.ask(model="tiny+poet")
    assert caught.value.code is ErrorCode.RECEIPT_INVALID
    await w.settle_down()
    (row, *_) = await w.purse.journal.transact(lambda tx: spending.listed(tx, 0))
    assert row.state is spending.SpendState.LOST
    assert told in (row.note or "")
    # The opening voucher, over the prompt, and nothing after it.
    assert len(node.vouchers) == 1
    assert await node.owed() > 0
    assert w.street.reports[-1] == (node.node, ErrorCode.RECEIPT_INVALID)


async def test_leaves_are_kept_before_the_closing_voucher_leaves(tmp_path: Path) -> None:
    async with world(tmp_path, Script(behind=ROYALTIES)) as w:
        w.chain.components[POET] = ((DATASET, 4_000),)
        await w.ask(model="tiny+poet")
        stored, packed = await kept(w)
        with Reader(w.nodes[0].journal.path) as reader:
            theirs = reader.evidence(w.nodes[0].node, stored.receipt.value.seq)
        assert packed == theirs
        facts = {leaf.name: leaf.value for leaf in Evidence.unpack(packed, stored.salt).attribution}
        assert facts["adapter/0/dataset/0"] == DATASET
        await w.settle_down()
        assert await w.nodes[0].owed() == 0


def fewer(group: str, facts: dict[str, bytes]) -> dict[str, bytes]:
    """Without the dataset."""
    return {name: value for name, value in facts.items() if "/dataset/" not in name}


def dearer(group: str, facts: dict[str, bytes]) -> dict[str, bytes]:
    """A wei more for the base than is paid."""
    if group == "attribution":
        facts["base/royalty"] = leaves.word(leaves.number(facts["base/royalty"]) + 1)
    return facts


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (Script(behind=ROYALTIES, evidence=lambda packed: b""), "not a receipt's leaves"),
        (Script(behind=ROYALTIES, evidence=lambda packed: packed[:-1]), "not a receipt's leaves"),
        (Script(behind=ROYALTIES, leaves=fewer), "passes royalties on, is missing"),
        (Script(behind=ROYALTIES, leaves=dearer), "do not add up"),
        (Script(behind={}), "passes royalties on, is missing"),
        (
            Script(behind=ROYALTIES, evidence=lambda packed: Evidence().pack()),
            "attribution leaves do not lead to attributionRoot",
        ),
        (
            Script(
                behind=ROYALTIES,
                evidence=lambda packed: msgspec.msgpack.encode([[(f"{n:05}", b"") for n in range(10_000)], []]),
            ),
            "not a receipt's leaves",
        ),
    ],
    ids=["none", "cut", "no-dataset", "a-wei-more", "undeclared", "empty", "ten-thousand"],
)
async def test_a_receipt_whose_leaves_do_not_hold_is_not_paid(tmp_path: Path, script: Script, told: str) -> None:
    async with world(tmp_path, script) as w:
        w.chain.components[POET] = ((DATASET, 4_000),)
        await unpaid(w, w.nodes[0], told)


async def test_a_late_receipt_is_paid_with_its_leaves_and_its_salt(tmp_path: Path) -> None:
    async with world(tmp_path, Script(lose_done=True, behind=ROYALTIES)) as w:
        w.chain.components[POET] = ((DATASET, 4_000),)
        with pytest.raises(OpenLoraError):
            await w.ask(model="tiny+poet")
        node = w.nodes[0]
        assert await w.recovery.look(node.node) == Recovered(settled=1)
        stored, packed = await kept(w)
        with Reader(node.journal.path) as reader:
            (theirs,) = reader.find_receipts(stored.digest, 2)
            assert packed == reader.evidence(node.node, stored.receipt.value.seq)
        assert stored.salt == theirs.salt
        assert await node.owed() == 0


@pytest.mark.parametrize(
    "answer",
    [
        lambda proof: msgspec.structs.replace(proof, evidence=b""),
        lambda proof: msgspec.structs.replace(proof, salt=b"\x01" * 32),
        lambda proof: messages.ErrorReply(code="NOT_FOUND", message="there is no such receipt"),
        lambda proof: messages.VoucherReply(voucher=b""),
    ],
    ids=["no-leaves", "another-salt", "not-found", "no-proof"],
)
async def test_a_late_receipt_without_its_leaves_is_not_paid(
    tmp_path: Path, answer: Callable[[messages.Proof], VoucherMessage]
) -> None:
    async with world(tmp_path, Script(lose_done=True, proof=answer)) as w:
        with pytest.raises(OpenLoraError):
            await w.ask(model="tiny+poet")
        found = await w.recovery.look(w.nodes[0].node)
        assert (found.settled, found.disputed) == (0, 1)
        assert await w.nodes[0].owed() > 0


async def test_a_node_that_is_busy_is_asked_for_the_leaves_later(tmp_path: Path) -> None:
    busy = messages.ErrorReply(code="RATE_LIMITED", message="slower", retry_after_ms=500)
    async with world(tmp_path, Script(lose_done=True, proof=lambda _: busy)) as w:
        node = w.nodes[0]
        with pytest.raises(OpenLoraError):
            await w.ask(model="tiny+poet")
        with pytest.raises(OpenLoraError) as caught:
            await w.recovery.look(node.node)
        assert caught.value.code is ErrorCode.RATE_LIMITED
        assert await w.recovery.pending() == [node.node]
        node.script.proof = lambda proof: proof
        assert await w.recovery.look(node.node) == Recovered(settled=1)


# the path


async def proven(tmp_path: Path, proof: Callable[[messages.Proof], VoucherMessage], **anchors: bytes) -> ErrorCode:
    """With what code a node's answer is refused."""
    async with world(tmp_path, Script(proof=proof)) as w:
        await w.ask(model="tiny+poet")
        stored, _ = await kept(w)
        roots = Anchors()
        value = stored.receipt.value
        if anchors:
            roots.roots[value.node, value.finished_at // EPOCH_S] = anchors["root"]
        with pytest.raises(OpenLoraError) as caught:
            await Proofs(w.purse, w.street, roots).fetch(stored.digest)
        return caught.value.code


async def test_a_payer_completes_its_receipt_and_anyone_verifies_it(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.ask(model="tiny+poet")
        stored, packed = await kept(w)
        node, value, roots = w.nodes[0], stored.receipt.value, Anchors()
        proofs = Proofs(w.purse, w.street, roots)
        found = await proofs.fetch(stored.digest)
        assert not found.anchored
        assert found.epoch == value.finished_at // EPOCH_S
        assert found.bundle.evidence.pack() == packed
        roots.roots[node.node, found.epoch] = found.root
        found = await proofs.fetch(stored.digest)
        assert found.anchored
        data = found.to_json()["bundle"].encode()
        assert verify(data, found.root, DOMAIN, node.key.address).receipt == stored.receipt
        # A journal that was written before leaves came has none: the node's are taken, and held to the same roots.
        await w.purse.journal.transact(lambda tx: tx.write("test", "DELETE FROM evidence"))
        assert (await proofs.fetch(stored.digest)).bundle == found.bundle
        with pytest.raises(OpenLoraError) as caught:
            await proofs.fetch(b"\x09" * 32)
        assert caught.value.code is ErrorCode.NOT_FOUND
        w.street.unreachable.add(node.node)
        with pytest.raises(OpenLoraError) as caught:
            await proofs.fetch(stored.digest)
        assert caught.value.code is ErrorCode.NODE_LOST


async def test_a_path_that_leads_elsewhere_is_not_taken(tmp_path: Path) -> None:
    def longer(proof: messages.Proof) -> messages.Proof:
        return msgspec.structs.replace(proof, path=(b"\x01" * 32,))

    for place, (answer, anchors, code) in enumerate(
        [
            (lambda proof: proof, {"root": b"\x01" * 32}, ErrorCode.RECEIPT_INVALID),
            (longer, {"root": b"\x01" * 32}, ErrorCode.RECEIPT_INVALID),
            (lambda proof: msgspec.structs.replace(proof, closed=False, path=()), {}, ErrorCode.NOT_FOUND),
            (lambda proof: messages.Account(ledgers=(), open_receipts=()), {}, ErrorCode.MALFORMED),
            (lambda proof: messages.ErrorReply(code="BUSY", message="later"), {}, ErrorCode.BUSY),
        ]
    ):
        folder = tmp_path / str(place)
        folder.mkdir()
        assert await proven(folder, answer, **anchors) is code


def test_a_path_has_an_end() -> None:
    proof = messages.Proof(salt=bytes(32), evidence=b"", epoch=0, closed=True, path=(bytes(32),) * 65)
    with pytest.raises(OpenLoraError):
        VOUCHER.encode(proof)
