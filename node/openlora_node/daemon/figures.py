"""The numbers behind the metrics, read off the rooms when somebody scrapes. Never waits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..api.metrics import Figure
from ..protocol.health import Level
from ..protocol.structs import Reach

if TYPE_CHECKING:
    from .node import Node
    from .rooms import Rooms

LEVELS = {Level.UP: 1.0, Level.DEGRADED: 0.5, Level.INITIALIZING: 0.0, Level.DOWN: 0.0}


def figures(node: Node) -> Iterator[Figure]:
    """Everything that is open."""
    rooms = node.rooms
    for service in node.board.services():
        yield Figure("service_up", "1 up, 0.5 impaired, 0 down.", LEVELS[service.level], {"service": service.name})
    yield Figure("start_time_seconds", "Unix time of the start.", node.started_at)
    yield from _serving(rooms)
    yield from _engines(rooms)
    yield from _machine(node, rooms)
    yield from _network(node)
    yield from _settlement(rooms)


def _serving(rooms: Rooms) -> Iterator[Figure]:
    if rooms.serving is None:
        return
    load = rooms.serving.load()
    yield Figure("queue_depth", "Admitted requests without a first token.", load.queue)
    yield Figure("running", "Requests that generate.", load.running)
    yield Figure("closing", "Responses that await their closing voucher.", load.closing)
    yield Figure("tokens_per_second", "Tokens generated a second, of late.", load.tokens_per_second)
    yield Figure("receipts_total", "Receipts since the start.", load.responses, counts=True)


def _engines(rooms: Rooms) -> Iterator[Figure]:
    """Each engine under its own name, `main` where the configuration has one only."""
    for each in rooms.engines:
        label = {"engine": each.name}
        yield Figure("engine_up", "1 while the engine serves.", LEVELS[each.health().level], label)
        yield Figure("engine_running", "Requests that generate in the engine.", each.lane.running, label)
        yield Figure("engine_starts_total", "Times that the engine was started.", each.starts, label, counts=True)


def _machine(node: Node, rooms: Rooms) -> Iterator[Figure]:
    if rooms.store is not None:
        yield Figure("adapters_cached", "Adapters in the store.", len(rooms.store.ids("adapter")))
    yield Figure("memory_free_bytes", "Free memory of the device.", node.hardware.memory_free << 20)
    yield Figure("memory_total_bytes", "Memory of the device.", node.hardware.memory_total << 20)


def _network(node: Node) -> Iterator[Figure]:
    seen = node.seen
    if seen.peers is not None:
        yield Figure("peers", "Connected peers.", seen.peers)
    if node.rooms.network is not None:
        yield Figure(
            "network_restarts_total", "Times that the host came back.", node.rooms.network.restarts, counts=True
        )
    yield Figure("reachable", "1 direct, 0.5 through a relay, 0 not known.",
                 {Reach.DIRECT: 1.0, Reach.RELAYED: 0.5}.get(seen.reach, 0.0))  # fmt: skip
    if seen.announced_at:
        yield Figure("announce_age_seconds", "Age of this node's newest advert.", time.time() - seen.announced_at)
    if seen.skew_s is not None:
        yield Figure("clock_skew_seconds", "This clock less the newest block's time.", seen.skew_s)


def _settlement(rooms: Rooms) -> Iterator[Figure]:
    if rooms.outbox is not None:
        status = rooms.outbox.status
        pending = {"queued": status.queued, "in_flight": status.in_flight, "mined": status.mined}
        for state, count in pending.items():
            yield Figure("outbox_pending", "Transactions that are not final.", count, {"state": state})
        yield Figure("oldest_pending_tx_seconds", "Age of the oldest sent and not mined.", status.oldest_pending_s)
        yield Figure("tx_bumps_total", "Replacements with a higher fee.", status.replacements, counts=True)
        yield Figure(
            "nonce_mismatch_total", "Nonces of this key spent from outside.", status.foreign_nonces, counts=True
        )
    if rooms.settlement is not None and (found := rooms.settlement.status()).last_round:
        yield Figure("due_wei", "What newest vouchers are worth beyond what was redeemed.", found.due)
        yield Figure("due_ledgers", "Ledgers behind that.", found.due_ledgers)
        yield Figure("owed_wei", "What channels owe beyond their escrow.", found.owed)
        yield Figure("receipts_unbatched", "Receipts without a root queued or on chain.", found.unbatched)
        if found.totals.last_claim:
            yield Figure("last_claim_timestamp_seconds", "Unix time of the newest claim.", found.totals.last_claim)
        yield Figure("claimable_wei", "Earned and not claimed.", found.operator_balance)
        yield Figure("gas_balance_wei", "Balance of the node key.", found.gas_balance)
        yield Figure("gas_transactions", "Typical transactions that it pays for.", found.gas_transactions)
        yield Figure("settlement_round_age_seconds", "Since the last round.", time.time() - found.last_round)
