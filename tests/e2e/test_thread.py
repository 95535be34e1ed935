"""A thread through the house: request → stub engine → receipt → voucher → redeem → claim, on a real chain, to the wei.

Everything but the engine is real: the protocol's structs, the node's journal, the outbox, the contracts on anvil. The
sums expected are computed here from the rates alone.
"""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import pytest
from coincurve import PrivateKey

from openlora_chain.bindings import ArtifactRegistry, Calldata, NodeRegistry, Settlement
from openlora_chain.compiled import error_table
from openlora_chain.deploy import Parameters, deploy
from openlora_chain.deployment import check_deployment
from openlora_chain.devnet.anvil import Anvil, find_anvil
from openlora_chain.outbox import Outbox
from openlora_chain.policy import Rules
from openlora_chain.rpc import Rpc
from openlora_chain.store import IntentState, NewIntent
from openlora_chain.transaction import UnsignedTransaction
from openlora_chain.wallet import Wallet
from openlora_node.journal import Binding, EscrowSnapshot, Journal, LedgerKey, ReceiptDraft, ReceiptSlot, VoucherEntry
from openlora_node.journal.outbox import JournalOutbox, submit_intent
from openlora_node.journal.vouchers import advance_voucher
from openlora_node.protocol.crypto import Address
from openlora_node.protocol.eip712 import Domain, Signed
from openlora_node.protocol.ids import ZERO32, Digest
from openlora_node.protocol.pipeline import Adapter, Pipeline
from openlora_node.protocol.pricing import ComputeRates, RoyaltySchedule, charge
from openlora_node.protocol.structs import (
    NodeKeyProof,
    Receipt,
    ReceiptStatus,
    Request,
    Voucher,
    body_hash,
    output_hash,
)

pytestmark = pytest.mark.slow
CHAIN_ID = 31337
ETHER = 10**18
BASE, ADAPTER = b"\xba" * 32, b"\xad" * 32
BASE_RATE, ADAPTER_RATE = 4_000_000_000_007, 10_000_000_000_003
RATES = ComputeRates(20_000_000_000_011, 60_000_000_000_013)
KIND_BASE, KIND_ADAPTER = 1, 2
PROTOCOL_BPS = 500
WEIGHT = 7_500
BUNDLED = Path(__file__).parents[2] / "contracts/node_modules/@foundry-rs"


def wallet(number: int) -> Wallet:
    return Wallet(number.to_bytes(32, "big"))


DEPLOYER, OWNER, NODE_KEY, PAYER, BASE_OWNER, ADAPTER_OWNER = (wallet(number) for number in range(1001, 1007))
PAYOUT, TREASURY = b"\x0f" * 20, b"\x7e" * 20


async def send(rpc: Rpc, sender: Wallet, call: Calldata) -> None:
    """A wallet's own transaction, mined with success."""
    nonce = await rpc.nonce(sender.address)
    tx = UnsignedTransaction(CHAIN_ID, nonce, call.to, call.value, call.data, 3_000_000, 10 * 10**9, 10**9)
    signed = await sender.sign_transaction(tx)
    await rpc.send_raw(signed.raw)
    assert (await rpc.mined(signed.hash)).succeeded


async def register_artifact(
    rpc: Rpc, registry: ArtifactRegistry, owner: Wallet, artifact: bytes, kind: int, rate: int
) -> None:
    salt = b"\x5a" * 32
    await send(rpc, owner, registry.commit(await registry.commitment_of(owner.address, artifact, salt)))
    await rpc.request("evm_increaseTime", hex(await registry.min_commit_age() + 1))
    await send(rpc, owner, registry.register(artifact, kind, ZERO32, "", (rate, 0, []), salt))


def stub_engine(prompt: str) -> tuple[int, list[int]]:
    """Prompt tokens and generated token ids: as an engine reports them."""
    return len(prompt), [(7 * number + len(prompt)) % 50_000 for number in range(3 * len(prompt) + 1)]


async def test_a_response_is_paid_to_everyone_who_took_part(tmp_path: Path) -> None:
    binary = find_anvil() or next(iter(sorted(BUNDLED.glob("anvil-*/bin/anvil"))), None)
    assert binary, "anvil is missing: run `make setup`"
    anvil = await Anvil.start(binary, chain_id=CHAIN_ID)
    try:
        async with Rpc(anvil.url) as rpc:
            await _thread(rpc, tmp_path)
    finally:
        await anvil.stop()


async def _thread(rpc: Rpc, tmp_path: Path) -> None:
    for account in (DEPLOYER, OWNER, NODE_KEY, PAYER, BASE_OWNER, ADAPTER_OWNER):
        await rpc.request("anvil_setBalance", f"0x{account.address.hex()}", hex(100 * ETHER))
    parameters = Parameters(TREASURY, DEPLOYER.address, DEPLOYER.address, protocol_bps=PROTOCOL_BPS)
    deployment = await deploy(rpc, DEPLOYER, parameters, "test")
    await check_deployment(rpc, deployment)
    nodes, artifacts = NodeRegistry(rpc, deployment), ArtifactRegistry(rpc, deployment)
    settlement = Settlement(rpc, deployment)
    domain = Domain(chain_id=CHAIN_ID, verifying_contract=Address(deployment.settlement))

    # Owners register what will be used; the operator registers the node; the payer funds an escrow with it.
    await register_artifact(rpc, artifacts, BASE_OWNER, BASE, KIND_BASE, BASE_RATE)
    await register_artifact(rpc, artifacts, ADAPTER_OWNER, ADAPTER, KIND_ADAPTER, ADAPTER_RATE)
    node = await nodes.next_node_id(OWNER.address)
    deadline = (await rpc.head()).timestamp + 3_600
    proof = NodeKeyProof(node=node, owner=OWNER.address, deadline=deadline).sign(domain, NODE_KEY)  # type: ignore[arg-type]
    point = PrivateKey(NODE_KEY.reveal()).public_key.format(compressed=False)[1:]
    stake = await nodes.min_stake()
    await send(rpc, OWNER, nodes.register(point[:32], point[32:], PAYOUT, "", deadline, proof.signature, stake))
    assert (await nodes.node_of(node)).key == NODE_KEY.address
    await send(rpc, PAYER, settlement.deposit(node, 10 * ETHER))

    pipeline = Pipeline.of(BASE, Adapter(id=ADAPTER, terms_version=1, weight=WEIGHT), base_terms_version=1)
    as_tuple = (BASE, 1, [(ADAPTER, 1, WEIGHT)], int(pipeline.method))
    assert await settlement.pipeline_id_of(as_tuple) == pipeline.id
    schedule = RoyaltySchedule.of(pipeline, BASE_RATE, (ADAPTER_RATE,))

    now = int(time.time())
    binding = Binding.to_node(domain, node)
    async with Journal.open(tmp_path / "node.sqlite", binding, lambda: now) as journal:
        voucher = None
        redeemed_compute: list[int] = []
        for number, prompt in enumerate(["a first question", "and another, somewhat longer one"], 1):
            prompt_tokens, generated = stub_engine(prompt)
            signed = _request(node, pipeline, prompt, number, now).sign(domain, PAYER)  # type: ignore[arg-type]
            escrow = await settlement.account_of(PAYER.address, node)
            await journal.admit(signed, Address(PAYER.address), EscrowSnapshot(escrow.balance - escrow.thawing))
            digest = Digest(signed.value.digest(domain))

            def build(slot: ReceiptSlot, tokens: int = prompt_tokens, output: list[int] = generated) -> ReceiptDraft:
                cost = charge(slot.before, schedule, RATES, tokens, len(output))
                return ReceiptDraft(
                    _receipt(slot, tokens, output, cost.compute, cost.royalties, now, domain), b"\x5a" * 32, cost.after
                )

            await journal.commit_receipt(digest, build)
            # The payer answers the receipt with a voucher for all so far; it and the wish to redeem it commit together.
            ledger = await journal.ledger(LedgerKey(PAYER.address, node, PAYER.address, pipeline.id))
            voucher = Voucher(
                payer=PAYER.address,
                node=node,
                pipeline_id=pipeline.id,
                cumulative_tokens=ledger.tally.tokens,
                cumulative_compute=ledger.tally.compute,
                reference_digest=digest,
            ).sign(domain, PAYER)  # type: ignore[arg-type]
            redeemed_compute.append(voucher.value.cumulative_compute)
            entry = VoucherEntry(voucher, Address(PAYER.address), ledger.tally.value(schedule))
            redeem = _redeem(settlement, as_tuple, voucher)
            intent = NewIntent(
                "redeem", voucher.value.digest(domain), CHAIN_ID, NODE_KEY.address, redeem.to, redeem.data
            )

            def keep_both(tx, entry=entry, intent=intent):  # type: ignore[no-untyped-def]
                advance_voucher(tx, entry)
                return submit_intent(tx, intent, now)

            await journal.transact(keep_both)
            assert await journal.owed(PAYER.address, node) == 0

        before = (await settlement.account_of(PAYER.address, node)).balance
        outbox = Outbox(
            rpc,
            JournalOutbox(journal),
            NODE_KEY,
            CHAIN_ID,
            error_table().explain,
            Rules(confirmations=1),
            clock=lambda: now,
        )
        while await JournalOutbox(journal).open_intents(NODE_KEY.address, CHAIN_ID):
            await outbox.step()
        states = {intent.state for intent in await JournalOutbox(journal).recent(10)}
        assert states == {IntentState.FINAL}
        await journal.check_integrity()

    assert voucher is not None
    tokens, compute = voucher.value.cumulative_tokens, voucher.value.cumulative_compute
    # The base earns its rate, the adapter the fraction that its weight is of 1.
    parts = {BASE_OWNER: BASE_RATE * 10_000, ADAPTER_OWNER: ADAPTER_RATE * WEIGHT}
    royalties = tokens * sum(parts.values()) // (10_000 * 1_000_000)
    assert before - (await settlement.account_of(PAYER.address, node)).balance == compute + royalties

    # Anyone may claim; the money goes to the beneficiaries. The stranger here is the deployer.
    await send(rpc, DEPLOYER, settlement.harvest_many([(node, pipeline.id)]))
    # Each redeem rounds the protocol's part of what it adds.
    protocol = sum((after - earlier) * PROTOCOL_BPS // 10_000 for earlier, after in pairwise((0, *redeemed_compute)))
    shares = {owner: royalties * part // sum(parts.values()) for owner, part in parts.items()}
    held = {owner: await rpc.balance(owner.address) for owner in shares}
    await send(rpc, DEPLOYER, settlement.claim_operator(node))
    await send(rpc, DEPLOYER, settlement.claim_protocol([node]))
    for owner in shares:
        await send(rpc, DEPLOYER, settlement.claim_owner(owner.address))
    assert await rpc.balance(TREASURY) == protocol
    assert await rpc.balance(PAYOUT) == compute - protocol
    for owner, share in shares.items():
        assert await rpc.balance(owner.address) - held[owner] == share
    dust = royalties - sum(shares.values())
    assert 0 <= dust < 2
    assert await rpc.balance(deployment.settlement) == before - compute - royalties + dust


def _request(node: bytes, pipeline: Pipeline, prompt: str, number: int, now: int) -> Request:
    return Request(
        payer=PAYER.address,
        node=node,
        pipeline_id=pipeline.id,
        quote_digest=b"\x01" * 32,
        body_hash=body_hash(prompt.encode()),
        max_fee=ETHER,
        max_tokens=1_000,
        nonce=number.to_bytes(32, "big"),
        issued_at=now,
        expires_at=now + 300,
    )


def _receipt(
    slot: ReceiptSlot, tokens: int, output: list[int], compute: int, royalties: int, now: int, domain: Domain
) -> Signed[Receipt]:
    return Receipt(
        request_digest=slot.request_digest,
        payer=slot.request.value.payer,
        node=slot.request.value.node,
        pipeline_id=slot.request.value.pipeline_id,
        status=ReceiptStatus.COMPLETE,
        engine_digest=b"\x0e" * 32,
        prompt_tokens=tokens,
        completion_tokens=len(output),
        output_hash=output_hash(output),
        attribution_root=ZERO32,
        commitment_root=ZERO32,
        compute=compute,
        royalties=royalties,
        started_at=now,
        finished_at=now,
        seq=slot.seq,
        previous=slot.previous,
    ).sign(domain, NODE_KEY)  # type: ignore[arg-type]


def _redeem(settlement: Settlement, pipeline: object, voucher: Signed[Voucher]) -> Calldata:
    value = voucher.value
    fields = (
        value.payer,
        value.node,
        value.pipeline_id,
        value.cumulative_tokens,
        value.cumulative_compute,
        value.reference_digest,
    )
    return settlement.redeem_many([pipeline], [fields], [voucher.signature])  # type: ignore[list-item]
