"""The outbox behind a node that refuses, hangs or lies: it waits, and every payment still arrives once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from openlora_chain.errors import ChainErrorCode, RpcError
from openlora_chain.rpc import Rpc
from openlora_chain.store import IntentState
from openlora_node.journal.outbox import JournalOutbox
from support.anvil import CONFIRMATIONS, Bench, payment
from support.journal import open_journal
from support.rpcproxy import RpcProxy
from support.simchain import HOT

pytestmark = pytest.mark.slow


@pytest.fixture
async def proxy(anvil) -> AsyncIterator[RpcProxy]:  # type: ignore[no-untyped-def]
    async with RpcProxy(anvil.url) as proxy:
        yield proxy


@pytest.fixture
async def bench(rpc: Rpc, proxy: RpcProxy, tmp_path: Path) -> AsyncIterator[Bench]:
    seen = Rpc(proxy.url, timeout_s=0.3, tries=3, first_pause_s=0.01)
    async with open_journal(tmp_path / "node.sqlite") as journal, seen:
        yield Bench(rpc, JournalOutbox(journal), seen)


async def pay_three(bench: Bench) -> None:
    for number in range(3):
        await bench.outbox.submit(payment(number))


async def test_429_is_waited_out(bench: Bench, proxy: RpcProxy) -> None:
    await pay_three(bench)
    proxy.statuses = [429, 429]
    await bench.outbox.step()
    proxy.statuses = [429] * 3
    with pytest.raises(RpcError) as error:
        await bench.outbox.step()
    assert error.value.code is ChainErrorCode.RPC_RATE_LIMITED
    await bench.settle()
    await bench.check_paid_once(3)


async def test_a_node_that_hangs_is_left_after_the_time_out(bench: Bench, proxy: RpcProxy) -> None:
    await pay_three(bench)
    proxy.hang = True
    with pytest.raises(RpcError) as error:
        await bench.outbox.step()
    assert error.value.code is ChainErrorCode.RPC_UNREACHABLE
    proxy.hang = False
    await bench.settle()
    await bench.check_paid_once(3)


async def test_an_answer_lost_after_the_send_does_not_pay_twice(bench: Bench, proxy: RpcProxy) -> None:
    await pay_three(bench)

    def lose(method: str, _params: list[Any], result: Any) -> Any:
        if method == "eth_sendRawTransaction":
            proxy.statuses = [502] * 2  # the retries within one call fail too
            raise web.HTTPBadGateway
        return result

    proxy.lie = lose
    with pytest.raises(RpcError):
        await bench.outbox.step()
    proxy.lie = None
    await bench.settle()
    await bench.check_paid_once(3)
    assert await bench.rpc.nonce(HOT.address) == 3


async def test_an_overstated_nonce_makes_a_gap_that_is_filled(bench: Bench, proxy: RpcProxy) -> None:
    await pay_three(bench)
    proxy.lie = lambda method, _params, result: (
        hex(int(result, 16) + 2) if method == "eth_getTransactionCount" else result
    )
    await bench.outbox.step()
    proxy.lie = None
    bench.now += 61
    await bench.settle()
    await bench.check_paid_once(3)
    assert await bench.rpc.nonce(HOT.address) == 5


async def test_an_understated_nonce_loses_and_doubles_nothing(bench: Bench, proxy: RpcProxy) -> None:
    await pay_three(bench)
    await bench.settle()
    proxy.lie = lambda method, _params, _result: "0x0" if method == "eth_getTransactionCount" else _result
    for number in range(3, 6):
        await bench.outbox.submit(payment(number))
    await bench.outbox.step()
    proxy.lie = None
    bench.now += 61
    await bench.settle()
    await bench.check_paid_once(6)
    assert await bench.rpc.nonce(HOT.address) == 6


async def test_the_pending_count_is_never_asked_for(bench: Bench, proxy: RpcProxy) -> None:
    asked: list[Any] = []

    def watch(method: str, params: list[Any], result: Any) -> Any:
        if method == "eth_getTransactionCount":
            asked.append(params[1])
        return result

    proxy.lie = watch
    await pay_three(bench)
    await bench.settle()
    assert asked
    assert "pending" not in asked


async def test_a_hidden_receipt_never_leads_to_a_second_payment(bench: Bench, proxy: RpcProxy) -> None:
    await pay_three(bench)
    await bench.outbox.step()
    await bench.mine(CONFIRMATIONS + 2)
    proxy.lie = lambda method, _params, result: None if method == "eth_getTransactionReceipt" else result
    for _ in range(5):
        bench.now += 61
        await bench.outbox.step()
    assert await bench.rpc.nonce(HOT.address) == 3
    assert await bench.states() == {IntentState.SENT: 3}
    assert bench.outbox.status.foreign_nonces == 0
    proxy.lie = None
    await bench.settle()
    await bench.check_paid_once(3)


@pytest.mark.parametrize("answer", ["", 7, [], {}, "0xzz", None, {"number": "0x1"}])
async def test_answers_of_the_wrong_shape_are_errors_of_ours(bench: Bench, proxy: RpcProxy, answer: Any) -> None:
    await pay_three(bench)
    proxy.lie = lambda method, _params, result: answer if method == "eth_getBlockByNumber" else result
    with pytest.raises(RpcError):
        await bench.outbox.step()
    proxy.lie = None
    await bench.settle()
    await bench.check_paid_once(3)
