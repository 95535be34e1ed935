"""Helpers around a real chain: an outbox with a clock that a test moves, blocks on demand, transfers as intents."""

from __future__ import annotations

from dataclasses import dataclass

from openlora_chain.access import ChainAccess
from openlora_chain.outbox import Outbox
from openlora_chain.policy import Rules
from openlora_chain.reverts import ErrorTable
from openlora_chain.rpc import Rpc
from openlora_chain.store import IntentState, NewIntent, OutboxStore
from openlora_chain.wallet import Wallet

from .simchain import HOT

CHAIN_ID = 31337
ETHER = 10**18
CONFIRMATIONS = 6
RULES = Rules(confirmations=CONFIRMATIONS)


def recipient(number: int) -> bytes:
    """An address of its own for each intent, so that its balance tells how often it was paid."""
    return (0xABC0000 + number).to_bytes(20, "big")


def payment(number: int, value: int = ETHER // 1000, sender: Wallet = HOT) -> NewIntent:
    """A transfer to `recipient(number)`."""
    return NewIntent("pay", number.to_bytes(4, "big"), CHAIN_ID, sender.address, recipient(number), value=value)


@dataclass
class Bench:
    """One outbox on one store; `chain` is what the outbox sees, `rpc` the node as it is."""

    rpc: Rpc
    store: OutboxStore
    chain: ChainAccess | None = None
    rules: Rules = RULES
    wallet: Wallet = HOT
    now: int = 1_000

    def __post_init__(self) -> None:
        self.outbox = Outbox(
            self.chain or self.rpc,
            self.store,
            self.wallet,
            CHAIN_ID,
            ErrorTable(()).explain,
            self.rules,
            clock=lambda: self.now,
        )

    async def mine(self, blocks: int = 1) -> None:
        """Blocks on demand."""
        await self.rpc.request("anvil_mine", hex(blocks))

    async def settle(self, rounds: int = 60) -> None:
        """Step and mine until nothing is open."""
        for _ in range(rounds):
            self.now += 2
            await self.outbox.step()
            await self.mine()
            if not await self.store.open_intents(self.wallet.address, CHAIN_ID):
                return
        raise AssertionError(await self.store.open_intents(self.wallet.address, CHAIN_ID))

    async def states(self) -> dict[IntentState, int]:
        """How many intents are in each state."""
        counts: dict[IntentState, int] = {}
        for intent in await self.store.recent(1_000):
            counts[intent.state] = counts.get(intent.state, 0) + 1
        return counts

    async def check_paid_once(self, count: int, value: int = ETHER // 1000, first: int = 0) -> None:
        """Every recipient got its payment once, and the key's nonces have no gap."""
        paid = [await self.rpc.balance(recipient(number)) for number in range(first, first + count)]
        assert paid == [value] * count
