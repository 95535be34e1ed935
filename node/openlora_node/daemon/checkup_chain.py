"""What `openlora doctor` asks the chain: endpoints, contracts, time, gas, registration, and where money goes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping

from openlora_chain.bindings import NodeRegistry, Settlement
from openlora_chain.deployment import Deployment, check_deployment
from openlora_chain.errors import ChainError, ChainErrorCode
from openlora_chain.rpc import Rpc

from ..chainview import read_deployment, rpc_urls
from ..config.schema import Config
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.health import Level
from ..protocol.ids import format_address, format_bytes
from .board import clock_health
from .checkup import Check, Verdict, fail, ok, warn
from .keys import node_address

GAS_A_TRANSACTION = 250_000
"""About what redeeming a voucher takes."""
WEI = 10**18


async def chain_checks(config: Config, environment: Mapping[str, str]) -> AsyncIterator[Check]:
    """Endpoints first; what hangs on one that answers follows only then."""
    try:
        urls = rpc_urls(config.chain)
        deployment = read_deployment(config.deployment_file, config.chain.chain_id)
    except OpenLoraError as error:
        yield fail("contracts", error.message, _deployment_fix(config), error.code)
        return
    answering: list[str] = []
    for number, url in enumerate(urls, 1):
        found = await _check_endpoint(url, f"rpc {number}" if len(urls) > 1 else "rpc", deployment)
        if found.verdict is Verdict.OK:
            answering.append(url)
        yield found
    if not answering:
        return
    async with Rpc(answering) as rpc:
        try:
            async for check in _checks_on(rpc, deployment, config, node_address(config, environment)):
                yield check
        except ChainError as error:
            yield fail("chain", error.message, "check chain.rpc_urls, then try again", ErrorCode.CHAIN_FAILED)


async def _check_endpoint(url: str, name: str, deployment: Deployment) -> Check:
    """Whether it answers, and for the right chain. The URL is not printed: it may hold an access key."""
    async with Rpc([url]) as rpc:
        try:
            chain_id, head = await rpc.chain_id(), await rpc.head()
        except ChainError as error:
            return fail(name, error.message, "start it, or correct chain.rpc_urls", ErrorCode.CHAIN_FAILED)
    if chain_id != deployment.chain_id:
        return fail(name, f"it serves chain {chain_id}, the contracts are on {deployment.chain_id}",
                    "name an endpoint of the right chain", ErrorCode.CHAIN_FAILED)  # fmt: skip
    return ok(name, f"chain {chain_id}, block {head.number}")


async def _checks_on(rpc: Rpc, deployment: Deployment, config: Config, key: bytes | None) -> AsyncIterator[Check]:
    head = await rpc.head()
    clock = clock_health(time.time(), head.timestamp)
    if clock.level is Level.UP:
        yield ok("clock", f"{int(time.time()) - head.timestamp} s after the newest block")
    elif clock.level is Level.DOWN:
        yield fail("clock", clock.reason, "timedatectl set-ntp true", ErrorCode.CLOCK_WRONG)
    else:
        yield warn("clock", clock.reason, "timedatectl shows whether the clock is kept; else wait for a block")
    try:
        await check_deployment(rpc, deployment)
        yield ok("contracts", f"{len(deployment.contracts)} with the code expected")
    except ChainError as error:
        if error.code not in (ChainErrorCode.WRONG_CHAIN, ChainErrorCode.CONTRACT_MISMATCH):
            raise
        yield fail("contracts", error.message, _deployment_fix(config), ErrorCode.WRONG_CHAIN)
        return
    if key is None:
        return
    yield await _check_gas(rpc, config, head.base_fee, key)
    async for check in _registration(rpc, deployment, config, key):
        yield check


async def _check_gas(rpc: Rpc, config: Config, base_fee: int, key: bytes) -> Check:
    balance, priority = await rpc.balance(key), await rpc.priority_fee()
    each = GAS_A_TRANSACTION * min(2 * base_fee + priority, config.chain.max_fee_per_gas)
    count, wanted = balance // max(each, 1), config.settlement.low_gas_transactions
    found = f"{balance / WEI:.6f} OPEN pay for {min(count, 10**6):,} transactions"
    if count < 1:
        return fail(
            "gas", found, f"send {each * wanted / WEI:.6f} OPEN to {format_address(key)}", ErrorCode.CHAIN_FAILED
        )
    if count < wanted:
        return warn("gas", found, f"send {(each * wanted - balance) / WEI:.6f} OPEN to {format_address(key)}")
    return ok("gas", found)


async def _registration(rpc: Rpc, deployment: Deployment, config: Config, key: bytes) -> AsyncIterator[Check]:
    """Whether this key is a node's, whose, and where its earnings go."""
    nodes = NodeRegistry(rpc, deployment)
    held = await nodes.key_of(key)
    if held.node == bytes(32):
        yield fail("registered", "no node has this key", "openlora operator register", ErrorCode.CHAIN_FAILED)
        return
    if held.valid_until:
        yield fail("registered", "this key was replaced by another", "run with the node's current key, or"
                   " openlora operator rotate-key to this one", ErrorCode.KEY_FAILED)  # fmt: skip
        return
    node = await nodes.node_of(held.node)
    if config.node.owner is not None and node.owner != config.node.owner:
        yield fail("registered", f"{format_bytes(held.node)} is of {format_address(node.owner)}",
                   "correct node.owner, or register with its wallet")  # fmt: skip
    elif not await nodes.is_active(held.node):
        yield fail("registered", f"{format_bytes(held.node)} is not active", "openlora stake add, or register again",
                   ErrorCode.CHAIN_FAILED)  # fmt: skip
    else:
        yield ok("registered", f"{format_bytes(held.node)}, {node.staked / WEI:.3f} OPEN staked")
    if node.recipient == key:
        yield warn("recipient", "earnings go to the node key on this machine", "openlora operator set-recipient")
    elif node.recipient in (bytes(20), node.owner):
        yield ok("recipient", f"the owner, {format_address(node.owner)}")
    else:
        yield ok("recipient", format_address(node.recipient))
    earned = await Settlement(rpc, deployment).operator_balance(held.node)
    if earned:
        yield ok("earned", f"{earned / WEI:.6f} OPEN wait to be claimed")


def _deployment_fix(config: Config) -> str:
    return f"put the network's deployment file at {config.deployment_file}, or name it in chain.deployment_file"
