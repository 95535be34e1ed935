"""`/openlora/voucher/1`: a payer sees its own account, and pays late; nobody else does either."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from openlora_node.attribution import Epochs, Evidence
from openlora_node.journal import Reader
from openlora_node.network.buckets import Allowance
from openlora_node.protocol import messages
from openlora_node.protocol.crypto import LocalSigner
from openlora_node.protocol.eip712 import Signed
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.merkle import named_root, receipt_leaf, root_by
from openlora_node.protocol.pipeline import Pipeline
from openlora_node.protocol.structs import Receipt, Voucher
from support.serving_world import DOMAIN, NODE, NOW, OPTIONS, OWNER, Payer, World, receipt_of

SHORT = replace(OPTIONS, closing_s=0.05)


@pytest.fixture
async def world(tmp_path: Path):
    async with World(tmp_path / "journal.sqlite", SHORT) as made:
        yield made


async def code_of(call) -> ErrorCode:
    with pytest.raises(OpenLoraError) as caught:
        await call
    return caught.value.code


async def test_an_account_shows_ledgers_vouchers_and_open_receipts(world: World) -> None:
    inbound = await world.ask()
    await inbound.task
    account = await world.serving.account(messages.GetAccount(query=world.payer.query()))
    messages.VOUCHER.encode(account)
    (ledger,) = account.ledgers
    held = await world.ledger()
    assert ledger.signer == world.payer.address
    assert Pipeline.unpack(ledger.pipeline) == world.pipeline
    assert ledger.voucher == held.voucher
    assert ledger.tokens == held.tally.tokens
    assert int.from_bytes(ledger.compute_micro_wei, "big") == held.tally.compute_micro_wei
    (packed,) = account.open_receipts
    assert Signed.unpack(Receipt, packed).value == receipt_of(inbound)


async def test_a_payer_gets_the_proof_of_its_receipt_and_nobody_else_does(world: World) -> None:
    inbounds = [await world.paid() for _ in range(3)]
    receipt = receipt_of(inbounds[1])
    digest = receipt.digest(DOMAIN)

    def asked(payer: Payer) -> messages.GetProof:
        return messages.GetProof(query=payer.query(world.clock.now), receipt=digest)

    early = await world.serving.proof(asked(world.payer))
    (done,) = inbounds[1].of(messages.Done)
    assert (early.salt, early.evidence) == (done.salt, done.evidence)
    assert (early.closed, early.path, early.epoch) == (False, (), receipt.finished_at // OPTIONS.epoch_s)
    evidence = Evidence.read(early.evidence, early.salt)
    assert named_root(evidence.attribution) == receipt.attribution_root
    assert named_root(evidence.commitment) == receipt.commitment_root
    world.clock.now += 2 * OPTIONS.epoch_s
    for _ in range(2):  # the second time from the tree that is kept
        proof = await world.serving.proof(asked(world.payer))
        messages.VOUCHER.encode(proof)
        assert (proof.closed, proof.epoch, proof.evidence) == (True, early.epoch, early.evidence)
        with Reader(world.path) as reader:
            root = Epochs(reader, NODE, OPTIONS.epoch_s).root(proof.epoch)
        assert root is not None
        assert root.totals.count == 3
        assert root_by(receipt_leaf(proof.salt, digest), proof.path) == root.root
    stranger = Payer(LocalSigner(b"\x55" * 32))
    assert await code_of(world.serving.proof(asked(stranger))) is ErrorCode.NOT_FOUND
    nothing = messages.GetProof(query=world.payer.query(world.clock.now), receipt=b"\x01" * 32)
    assert await code_of(world.serving.proof(nothing)) is ErrorCode.NOT_FOUND
    late = messages.GetProof(query=world.payer.query(world.clock.now - 61), receipt=digest)
    assert await code_of(world.serving.proof(late)) is ErrorCode.REQUEST_EXPIRED


async def test_a_late_voucher_closes_the_debt(world: World) -> None:
    inbound = await world.ask()
    await inbound.task
    tally = await world.tally()
    voucher = world.payer.voucher(world.pipeline.id, tally.tokens, tally.compute)
    reply = await world.serving.voucher(messages.PutVoucher(voucher=voucher))
    assert reply.voucher == voucher
    assert (await world.ledger()).owed == 0
    older = world.payer.voucher(world.pipeline.id, tally.tokens - 1, tally.compute)
    assert (await world.serving.voucher(messages.PutVoucher(voucher=older))).voucher == voucher
    assert (await world.serving.account(messages.GetAccount(query=world.payer.query()))).open_receipts == ()
    await world.paid()


async def test_a_late_voucher_is_taken_after_a_restart_with_the_chain_down(tmp_path: Path) -> None:
    async with World(tmp_path / "j.sqlite", SHORT) as world:
        await (await world.ask()).task
    async with World(tmp_path / "j.sqlite", SHORT) as world:
        world.chain.down = True
        tally = await world.tally()
        voucher = world.payer.voucher(world.pipeline.id, tally.tokens, tally.compute)
        await world.serving.voucher(messages.PutVoucher(voucher=voucher))
        ledger = await world.ledger()
        assert ledger.voucher_value == ledger.fee  # the pipeline's rates are in the journal


async def test_a_voucher_ahead_of_what_was_served_is_refused(world: World) -> None:
    await world.paid()
    held = await world.ledger()
    for tokens, compute in ((held.tally.tokens + 1, held.tally.compute), (held.tally.tokens, held.tally.compute + 1)):
        voucher = messages.PutVoucher(voucher=world.payer.voucher(world.pipeline.id, tokens, compute))
        assert await code_of(world.serving.voucher(voucher)) is ErrorCode.VOUCHER_CONFLICT
    assert await world.ledger() == held


async def test_vouchers_that_nobody_here_waits_for(world: World) -> None:
    await world.paid()
    pipeline = world.pipeline.id
    stranger, agent = Payer(OWNER), replace(world.payer, signs_with=OWNER)
    for voucher, code in (
        (stranger.voucher(pipeline, 1, 1), ErrorCode.NOT_FOUND),
        (world.payer.voucher(b"\x09" * 32, 1, 1), ErrorCode.NOT_FOUND),
        (agent.voucher(pipeline, 1, 1), ErrorCode.BAD_SIGNATURE),
        (world.payer.voucher(pipeline, 1, 1, node=b"\x09" * 32), ErrorCode.WRONG_NODE),
        (b"", ErrorCode.MALFORMED),
        (world.payer.voucher(pipeline, 1, 1)[:-1], ErrorCode.MALFORMED),
    ):
        assert await code_of(world.serving.voucher(messages.PutVoucher(voucher=voucher))) is code


async def test_an_account_is_shown_to_its_payer_and_signers_only(world: World) -> None:
    await world.paid()
    agent = replace(world.payer, signs_with=OWNER)
    for query, code in (
        (agent.query(), ErrorCode.BAD_SIGNATURE),
        (world.payer.query(NOW - 61), ErrorCode.REQUEST_EXPIRED),
        (world.payer.query(NOW + 61), ErrorCode.NOT_YET_VALID),
        (world.payer.query(node=b"\x09" * 32), ErrorCode.WRONG_NODE),
        (b"\x00" * 60, ErrorCode.MALFORMED),
    ):
        assert await code_of(world.serving.account(messages.GetAccount(query=query))) is code
    world.chain.signers.add((agent.address, OWNER.address))
    assert len((await world.serving.account(messages.GetAccount(query=agent.query()))).ledgers) == 1
    stranger = await world.serving.account(messages.GetAccount(query=Payer(OWNER).query()))
    assert stranger == messages.Account(ledgers=(), open_receipts=())


async def test_asking_is_counted_for_the_signer(tmp_path: Path) -> None:
    async with World(tmp_path / "j.sqlite", replace(OPTIONS, signer=Allowance(1, 2))) as world:
        for _ in range(2):
            await world.serving.account(messages.GetAccount(query=world.payer.query()))
        call = world.serving.account(messages.GetAccount(query=world.payer.query()))
        assert await code_of(call) is ErrorCode.RATE_LIMITED
        voucher = Voucher(
            payer=world.payer.address, node=NODE, pipeline_id=world.pipeline.id, cumulative_tokens=1,
            cumulative_compute=1, reference_digest=bytes(32),
        ).sign(DOMAIN, world.payer.key)  # fmt: skip
        put = world.serving.voucher(messages.PutVoucher(voucher=voucher.pack()))
        assert await code_of(put) is ErrorCode.RATE_LIMITED
