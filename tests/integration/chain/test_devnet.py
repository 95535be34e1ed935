"""The development chain: like a node to its clients, the same after a restart, and deaf to the web."""

from __future__ import annotations

import json
from pathlib import Path

import aiohttp
import pytest
from eth_utils.crypto import keccak

from openlora_chain.bindings import NodeRegistry, Settlement
from openlora_chain.compiled import error_table
from openlora_chain.deployment import Deployed, check_deployment, load_deployment, preset
from openlora_chain.devnet.accounts import dev_wallet
from openlora_chain.devnet.bridge import is_loopback_host
from openlora_chain.devnet.devnet import Devnet, devnet
from openlora_chain.errors import ChainError, ChainErrorCode, Reverted
from openlora_chain.rpc import Call, Rpc
from openlora_node.protocol.eip712 import Domain
from openlora_node.protocol.structs import Voucher
from support.anvil import recipient

pytestmark = pytest.mark.slow
PAYER = dev_wallet("payer")


async def transfer(rpc: Rpc, running: Devnet, number: int) -> None:
    from openlora_chain.transaction import UnsignedTransaction

    nonce = await rpc.nonce(PAYER.address)
    tx = UnsignedTransaction(running.deployment.chain_id, nonce, recipient(number), 5, b"", 21_000, 10**10, 10**8)
    signed = await PAYER.sign_transaction(tx)
    await rpc.send_raw(signed.raw)
    receipt = await rpc.receipt(signed.hash)
    assert receipt is not None
    assert receipt.succeeded


async def test_it_starts_deploys_funds_and_survives_a_restart(tmp_path: Path) -> None:
    async with devnet(tmp_path, port=0, engine="embedded", block_time_s=60) as first, Rpc(first.url) as rpc:
        await check_deployment(rpc, first.deployment)
        assert await rpc.balance(PAYER.address) == 10**24
        await transfer(rpc, first, 0)
        await rpc.request("evm_mine")
        head = await rpc.head()
        genesis = await rpc.block(0)
    async with devnet(tmp_path, port=0, engine="embedded", block_time_s=60) as second, Rpc(second.url) as rpc:
        assert second.deployment == first.deployment == load_deployment(second.deployment_file)
        assert await rpc.block(0) == genesis
        assert await rpc.block(head.number) == head  # the same blocks, hashes included
        assert await rpc.balance(recipient(0)) == 5
        await transfer(rpc, second, 1)


async def test_a_record_cut_short_by_a_crash_is_continued(tmp_path: Path) -> None:
    async with devnet(tmp_path, port=0, engine="embedded", block_time_s=60) as first, Rpc(first.url) as rpc:
        head = await rpc.head()
    with (tmp_path / "blocks.jsonl").open("ab") as file:
        file.write(b'[17954, "02f8')
    async with devnet(tmp_path, port=0, engine="embedded", block_time_s=60) as second, Rpc(second.url) as rpc:
        assert await rpc.block(head.number) == head
        await transfer(rpc, second, 0)


async def test_a_second_devnet_in_one_directory_is_refused(tmp_path: Path) -> None:
    async with devnet(tmp_path, port=0, engine="embedded"):
        with pytest.raises(ChainError) as error:
            async with devnet(tmp_path, port=0, engine="embedded"):
                pass
        assert error.value.code is ChainErrorCode.DEVNET_RUNNING


async def test_custom_errors_keep_their_data(tmp_path: Path) -> None:
    async with devnet(tmp_path, port=0, engine="embedded") as running, Rpc(running.url) as rpc:
        registry = NodeRegistry(rpc, running.deployment)
        call = registry.withdraw_stake(b"\x01" * 32)
        with pytest.raises(Reverted) as error:
            await rpc.call(Call(PAYER.address, call.to, call.data))
        assert error.value.data[:4] == keccak(text="NotNodeOwner(bytes32,address)")[:4]
        assert error_table().explain(error.value.data).name == "NotNodeOwner"
        with pytest.raises(Reverted):
            await rpc.estimate_gas(Call(PAYER.address, call.to, call.data))


async def test_the_contract_and_the_protocol_compute_one_digest(tmp_path: Path) -> None:
    async with devnet(tmp_path, port=0, engine="embedded") as running, Rpc(running.url) as rpc:
        settlement = Settlement(rpc, running.deployment)
        voucher = Voucher(
            payer=PAYER.address,
            node=b"\x11" * 32,
            pipeline_id=b"\x22" * 32,
            cumulative_tokens=7,
            cumulative_compute=9,
            reference_digest=b"\x33" * 32,
        )
        fields = (PAYER.address, b"\x11" * 32, b"\x22" * 32, 7, 9, b"\x33" * 32)
        domain = Domain(chain_id=running.deployment.chain_id, verifying_contract=running.deployment.settlement)
        assert await settlement.voucher_digest(fields) == voucher.digest(domain)
        assert await settlement.protocol_bps() == 500


async def test_the_web_is_refused(tmp_path: Path) -> None:
    call = {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []}
    async with devnet(tmp_path, port=0, engine="embedded") as running, aiohttp.ClientSession() as session:

        async def status(headers: dict[str, str], body: object = call) -> int:
            async with session.post(running.url, data=json.dumps(body), headers=headers) as response:
                return response.status

        plain = {"Content-Type": "application/json"}
        assert await status(plain) == 200
        assert await status(plain | {"Host": "evil.example:8545"}) == 403
        assert await status(plain | {"Host": "127.0.0.1.evil.example"}) == 403
        assert await status(plain | {"Origin": "http://localhost:3000"}) == 403
        assert await status({"Content-Type": "text/plain"}) == 415
        for body in (1, [], "x", {"method": 3}, {"method": "eth_call", "params": [[]]}, [call] * 101, None):
            assert await status(plain, body) == 200  # a JSON-RPC error, never a fault of ours


@pytest.mark.parametrize(
    ("header", "loopback"),
    [
        ("localhost", True),
        ("localhost:8545", True),
        ("127.0.0.1:8545", True),
        ("[::1]:8545", True),
        ("[::1]", True),
        ("", False),
        ("10.0.0.1:8545", False),
        ("localhost.evil.example:8545", False),
        ("0.0.0.0:8545", False),
    ],
)
def test_hosts(header: str, loopback: bool) -> None:
    assert is_loopback_host(header) is loopback


async def test_the_start_up_check_names_what_differs(tmp_path: Path) -> None:
    from dataclasses import replace

    async with devnet(tmp_path, port=0, engine="embedded") as running, Rpc(running.url) as rpc:
        good = running.deployment
        nothing = Deployed(b"\x99" * 20, b"\x00" * 32)
        swapped = replace(good.contracts["Settlement"], address=good.contracts["Credits"].address)
        cases = [
            (replace(good, chain_id=1612), ChainErrorCode.WRONG_CHAIN, "1612"),
            (
                replace(good, contracts={**good.contracts, "Credits": nothing}),
                ChainErrorCode.CONTRACT_MISMATCH,
                "no code",
            ),
            (
                replace(good, contracts={**good.contracts, "Settlement": swapped}),
                ChainErrorCode.CONTRACT_MISMATCH,
                "other code",
            ),
        ]
        for wrong, code, words in cases:
            with pytest.raises(ChainError) as error:
                await check_deployment(rpc, wrong)
            assert error.value.code is code
            assert words in error.value.message


@pytest.mark.parametrize("network", ["openledger", "openledger-testnet", "elsewhere"])
def test_public_networks_have_no_contracts_and_say_so(network: str) -> None:
    with pytest.raises(ChainError) as error:
        preset(network)
    assert error.value.code is ChainErrorCode.DEPLOYMENT_UNSET


async def test_transactions_sent_out_of_order_wait_for_their_turn(tmp_path: Path) -> None:
    from openlora_chain.transaction import UnsignedTransaction

    async with devnet(tmp_path, port=0, engine="embedded") as running, Rpc(running.url) as rpc:
        raws = []
        for nonce in (2, 1, 0):
            tx = UnsignedTransaction(running.deployment.chain_id, nonce, recipient(0), 5, b"", 21_000, 10**10, 10**8)
            raws.append((await PAYER.sign_transaction(tx)).raw)
        for raw in raws:
            await rpc.send_raw(raw)
        assert await rpc.nonce(PAYER.address) == 3
        assert await rpc.balance(recipient(0)) == 15
