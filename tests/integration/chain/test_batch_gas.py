"""The largest batch of vouchers, on anvil under Osaka's rules: it fits the gas cap of a transaction (EIP-7825)."""

from __future__ import annotations

from pathlib import Path

import pytest
from coincurve import PrivateKey

from openlora_chain.bindings import Calldata, NodeRegistry, Settlement
from openlora_chain.deploy import Parameters, deploy
from openlora_chain.devnet.anvil import Anvil, find_anvil
from openlora_chain.errors import ChainError
from openlora_chain.rpc import Rpc
from openlora_chain.transaction import UnsignedTransaction
from openlora_chain.wallet import Wallet
from openlora_node.protocol.crypto import Address, LocalSigner
from openlora_node.protocol.eip712 import Domain
from openlora_node.protocol.pipeline import Pipeline
from openlora_node.protocol.structs import NodeKeyProof, Voucher

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
CHAIN_ID = 31337
TRANSACTION_CAP = 16_777_216
MAX_BATCH = 256
OSAKA = ("--hardfork", "osaka", "--enable-tx-gas-limit", "--gas-limit", "60000000")
BUNDLED = Path(__file__).parents[3] / "contracts/node_modules/@foundry-rs"
OWNER, NODE_KEY = (Wallet((number).to_bytes(32, "big")) for number in (2001, 2002))
PIPELINE = Pipeline.of(b"\xba" * 32)
TREASURY = b"\x7e" * 20


async def send(rpc: Rpc, call: Calldata, nonce: int, gas: int = 3_000_000) -> bytes:
    tx = UnsignedTransaction(CHAIN_ID, nonce, call.to, call.value, call.data, gas, 10 * 10**9, 10**9)
    signed = await OWNER.sign_transaction(tx)
    await rpc.send_raw(signed.raw)
    return signed.hash


async def redeem_batch(
    rpc: Rpc, settlement: Settlement, node: bytes, domain: Domain, count: int
) -> tuple[Calldata, int]:
    """Funds `count` new payers; returns the call that redeems a voucher of each, and the owner's next nonce."""
    nonce = await rpc.nonce(OWNER.address)
    payers = [LocalSigner((10_000 + number).to_bytes(32, "big")) for number in range(count)]
    for payer in payers:
        last = await send(rpc, settlement.deposit_for(payer.address, node, 10**15), nonce, 200_000)
        nonce += 1
    assert (await rpc.mined(last)).succeeded
    vouchers = [
        Voucher(
            payer=payer.address,
            node=node,
            pipeline_id=PIPELINE.id,
            cumulative_tokens=1_000,
            cumulative_compute=10**12,
            reference_digest=bytes(32),
        ).sign(domain, payer)
        for payer in payers
    ]
    fields = [tuple(getattr(one.value, name) for name in one.value.__struct_fields__) for one in vouchers]
    parts = (PIPELINE.base, 0, [], 0)
    return settlement.redeem_many([parts], fields, [one.signature for one in vouchers]), nonce


async def test_the_largest_batch_fits_a_transaction_and_a_greedier_limit_is_refused() -> None:
    binary = find_anvil() or next(iter(sorted(BUNDLED.glob("anvil-*/bin/anvil"))), None)
    assert binary, "anvil is missing: run `make setup`"
    anvil = await Anvil.start(binary, chain_id=CHAIN_ID, arguments=OSAKA)
    try:
        async with Rpc(anvil.url) as rpc:
            await rpc.request("anvil_setBalance", f"0x{OWNER.address.hex()}", hex(10**24))
            deployment = await deploy(rpc, OWNER, Parameters(TREASURY, OWNER.address, OWNER.address), "test")
            nodes, settlement = NodeRegistry(rpc, deployment), Settlement(rpc, deployment)
            domain = Domain(chain_id=CHAIN_ID, verifying_contract=Address(deployment.settlement))
            node = await nodes.next_node_id(OWNER.address)
            deadline = (await rpc.head()).timestamp + 3_600
            proof = NodeKeyProof(node=node, owner=OWNER.address, deadline=deadline).sign(domain, NODE_KEY)  # type: ignore[arg-type]
            point = PrivateKey(NODE_KEY.reveal()).public_key.format(compressed=False)[1:]
            register = nodes.register(
                point[:32], point[32:], TREASURY, "", deadline, proof.signature, await nodes.min_stake()
            )
            assert (await rpc.mined(await send(rpc, register, await rpc.nonce(OWNER.address)))).succeeded

            redeem, nonce = await redeem_batch(rpc, settlement, node, domain, MAX_BATCH)
            with pytest.raises(ChainError):
                await send(rpc, redeem, nonce, TRANSACTION_CAP + 1)
            assert (await rpc.mined(await send(rpc, redeem, nonce, TRANSACTION_CAP))).succeeded
            assert await settlement.operator_balance(node) > 0
            for number in (0, MAX_BATCH - 1):
                payer = LocalSigner((10_000 + number).to_bytes(32, "big")).address
                assert (await settlement.account_of(payer, node)).balance == 10**15 - 10**12
    finally:
        await anvil.stop()
