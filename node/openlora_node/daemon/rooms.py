"""Opens a node's rooms in their order, each as soon as it can be; what is not open yet is None."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from openlora_chain.errors import ChainError
from openlora_chain.outbox import Outbox
from openlora_chain.wallet import Wallet

from ..api.meters import Meters
from ..api.signed import SignedDoor
from ..artifacts import ArtifactStore
from ..attribution import Epochs
from ..attribution.periods import Periods
from ..attribution.tracer import FOLDER as INDEXES
from ..chainview import ChainParts, open_chain
from ..config.engines import ONLY, NamedEngine
from ..config.schema import Config
from ..datadir import JOURNAL_NAME
from ..journal import Binding, Journal, Reader
from ..journal.logs import JournalLogs
from ..network.advertising import AdvertOptions
from ..network.candidates import Candidates
from ..network.directory import DirectoryOptions
from ..network.host import HostOptions
from ..network.inference import serve_session
from ..network.reach import ReachOptions
from ..network.service import Network
from ..network.transfer import Sender, SenderOptions
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import format_bytes
from ..protocol.messages import ARTIFACT, INFER, VOUCHER
from ..serving import Prices, Serving, ServingOptions
from ..settlement import Decisions, Leaves, Rules, Sending, SettlementService, make_outbox
from . import fleet
from .doors import Doors, SessionHandler, serve_vouchers
from .engine import EngineKeeper, open_engine
from .identity import registered, remembered
from .shelf import Shelf
from .supervisor import BackOff, Supervisor

SNAPSHOT_NAME = "nodes.snapshot"
PEERS_NAME = "peers.json"

logger = logging.getLogger(__name__)


@dataclass
class Rooms:
    """What is open of a node. Filled in the order of the fields."""

    config: Config
    wallet: Wallet
    node: bytes | None = None
    chain: ChainParts | None = None
    synced: asyncio.Task[None] | None = None
    """Done once the view has reached the newest block: before that it knows no escrow, whatever it remembers."""
    journal: Journal | None = None
    store: ArtifactStore | None = None
    outbox: Outbox | None = None
    engines: tuple[EngineKeeper, ...] = ()
    network: Network | None = None
    shelf: Shelf | None = None
    serving: Serving | None = None
    doors: Doors | None = None
    signed: SignedDoor | None = None
    settlement: SettlementService | None = None
    waits_for: str = "starting"
    """What opening the next room waits for."""

    @property
    def bases(self) -> tuple[bytes, ...]:
        """The artifact ids of the base models, as far as they are known."""
        return fleet.bases(self.engines)


def now() -> int:
    """Unix seconds."""
    return int(time.time())


class Opener:
    """Opens the rooms onto one exit stack, so that they close in reverse, and starts each room's tasks."""

    def __init__(
        self, rooms: Rooms, stack: AsyncExitStack, supervisor: Supervisor, meters: Meters, changed: Callable[[], None]
    ) -> None:
        """`changed` is called in the loop when something changed that others should hear of."""
        self._rooms = rooms
        self._stack = stack
        self._supervisor = supervisor
        self._meters = meters
        self._changed = changed

    async def open(self) -> None:
        """All of them. Raises OpenLoraError for what no waiting mends; waits for what may come."""
        try:
            await self._open_chain()
            await self._open_store()
            await self._open_network()
            await self._open_serving()
            self._open_settlement()
        except ChainError as error:
            raise OpenLoraError(ErrorCode.CHAIN_FAILED, error.message) from None
        self._rooms.waits_for = ""
        self._changed()

    async def _open_chain(self) -> None:
        """The chain and the journal: each needs something of the other when a node starts for the first time."""
        rooms, config = self._rooms, self._rooms.config
        path, snapshot = config.state_dir / JOURNAL_NAME, config.state_dir / SNAPSHOT_NAME
        async with open_chain(config.chain, config.deployment_file) as first:
            rooms.node = await asyncio.to_thread(remembered, path, first.view.domain)
            if rooms.node is None:
                rooms.node = await registered(first.nodes, rooms.wallet.address, self._wait_for)
            binding = Binding.to_node(first.view.domain, rooms.node)
        logger.info("this is node %s", format_bytes(rooms.node))
        rooms.journal = await asyncio.to_thread(
            partial(Journal.open, path, binding, now, max_live_nonces=config.limits.max_live_nonces)
        )
        self._stack.push_async_callback(rooms.journal.close)
        rooms.chain = await self._stack.enter_async_context(
            open_chain(config.chain, config.deployment_file, JournalLogs(rooms.journal), snapshot=snapshot)
        )
        self._start("chain", rooms.chain.view.run, restart=BackOff())
        rooms.synced = asyncio.create_task(rooms.chain.view.wait_synced(), name="chain synced")
        rooms.synced.add_done_callback(lambda _: self._changed())
        self._stack.callback(rooms.synced.cancel)
        rooms.outbox = make_outbox(rooms.journal, rooms.chain, rooms.wallet, config.chain, now)
        self._start("outbox", rooms.outbox.run, restart=BackOff())
        self._changed()

    async def _open_store(self) -> None:
        rooms, config = self._rooms, self._rooms.config
        rooms.store = await asyncio.to_thread(ArtifactStore.open, config.adapters_dir, config.artifacts.cache_size)
        self._stack.callback(rooms.store.close)
        self._start("artifacts", rooms.store.tend, restart=BackOff())

    async def _open_network(self) -> None:
        """The host, and what fetches artifacts through it."""
        rooms, config = self._rooms, self._rooms.config
        assert rooms.chain is not None
        assert rooms.node is not None
        assert rooms.store is not None
        view, options = rooms.chain.view, config.network
        rooms.network = Network(
            rooms.wallet.reveal(),
            HostOptions(listen=options.listen, announce=options.announce, max_connections=options.max_connections),
            view,
            adverts=AdvertOptions(
                domain=view.domain,
                interval=options.advert_interval.total_seconds(),
                node=rooms.node,
                key=rooms.wallet,
            ),
            directory=DirectoryOptions(
                domain=view.domain, bootstrap=options.bootstrap, peers_file=config.state_dir / PEERS_NAME
            ),
            serves=(INFER, VOUCHER, ARTIFACT),
            reach=ReachOptions(relay=options.relay, announce=options.announce),
        )
        await rooms.network.start()
        self._stack.push_async_callback(rooms.network.stop)
        self._changed()

    async def _open_serving(self) -> None:
        """The engines with their bases, and the doors."""
        rooms, config = self._rooms, self._rooms.config
        assert rooms.chain is not None
        assert rooms.node is not None
        assert rooms.store is not None
        assert rooms.network is not None
        assert rooms.journal is not None
        rooms.engines = tuple([await self._engine(each) for each in config.all_engines])
        limit = config.artifacts.max_adapter
        self._wait_for("the base model is being read")
        fetching = Shelf(rooms.store, rooms.chain.view, rooms.network, rooms.node, (), limit)
        await fleet.find_bases(rooms.engines, rooms.store, config.state_dir, fetching.fetch)
        rooms.shelf = Shelf(rooms.store, rooms.chain.view, rooms.network, rooms.node, rooms.bases, limit)
        self._stack.push_async_callback(rooms.shelf.fetcher.close)
        for base in rooms.bases:
            await rooms.network.follow(base)
        for keeper in rooms.engines:
            self._start("engine" if keeper.name == ONLY else f"engine {keeper.name}", keeper.run, restart=BackOff())
        self._stack.push_async_callback(self._stop_engines)  # they have ended before their tasks are cancelled
        rooms.serving = await self._serving()
        handle = self._meters.watch(rooms.serving.handle)
        if rooms.signed is not None:
            rooms.signed.handle, rooms.signed.accounts = handle, rooms.serving
        sender = Sender(rooms.store, rooms.shelf.may_send, SenderOptions(upload_rate=config.artifacts.upload_rate))
        handlers: dict[str, SessionHandler] = {
            INFER.id: partial(serve_session, handle=handle),
            VOUCHER.id: partial(serve_vouchers, accounts=rooms.serving),
            ARTIFACT.id: sender.serve,
        }
        rooms.doors = Doors(rooms.network, handlers)
        self._start("doors", rooms.doors.run)
        self._changed()

    async def _engine(self, engine: NamedEngine) -> EngineKeeper:
        on_load = self._meters.adapter_load.labels(engine.name).observe
        opening = open_engine(self._rooms.config, engine, self._changed, on_load)
        return await self._stack.enter_async_context(opening)

    async def _stop_engines(self) -> None:
        """All at once: they share one grace."""
        await asyncio.gather(*(keeper.stop() for keeper in self._rooms.engines))

    async def _serving(self) -> Serving:
        rooms, config = self._rooms, self._rooms.config
        pricing = config.pricing
        assert rooms.chain is not None
        assert rooms.node is not None
        assert rooms.journal is not None
        assert rooms.shelf is not None
        assert rooms.network is not None
        candidates = Candidates(rooms.network, own=rooms.node)
        self._stack.push_async_callback(candidates.close)
        prices = Prices(pricing.input, pricing.output, pricing.settlement_charge)
        serving = Serving(
            node=rooms.node,
            key=rooms.wallet,
            chain=rooms.chain.view,
            journal=rooms.journal,
            engines=fleet.choices(rooms.engines),
            artifacts=rooms.shelf,
            prices=lambda: prices,
            options=ServingOptions.of(rooms.config),
            clock=now,
            alternatives=lambda pipeline: candidates.alternatives(
                pipeline.base, [adapter.id for adapter in pipeline.adapters]
            ),
            trace=fleet.tracing(rooms.engines, config.state_dir / INDEXES, self._stack.callback),
        )
        await serving.start()
        return serving

    def _open_settlement(self) -> None:
        rooms, config = self._rooms, self._rooms.config
        assert rooms.chain is not None
        assert rooms.node is not None
        assert rooms.journal is not None
        assert rooms.outbox is not None
        reader = Reader(rooms.journal.path)
        self._stack.callback(reader.close)
        epochs = Epochs(reader, rooms.node, int(config.settlement.epoch.total_seconds()))
        rooms.settlement = SettlementService(
            rooms.journal,
            rooms.chain,
            rooms.outbox,
            rooms.node,
            config.settlement,
            now,
            epochs,
            self._decisions(epochs),
        )
        self._start("settlement", rooms.settlement.run, restart=BackOff())

    def _decisions(self, epochs: Epochs) -> Decisions | None:
        """Who decides datasets' pools. A reader of its own: it reads for long at a start."""
        rooms, options = self._rooms, self._rooms.config.settlement
        if rooms.store is None or rooms.outbox is None or rooms.node is None:
            return None
        assert rooms.journal is not None
        assert rooms.chain is not None
        reader = Reader(rooms.journal.path)
        self._stack.callback(reader.close)
        return Decisions(
            rooms.journal,
            rooms.chain,
            Sending(rooms.outbox.address, rooms.outbox.chain_id, rooms.node),
            Rules(options.redeem_gas_multiple, int(options.redeem_max_age.total_seconds())),
            Periods(reader, Epochs(reader, rooms.node, epochs.length_s)),
            Leaves(rooms.store),
        )

    def _start(self, name: str, work: Callable[[], object], *, restart: BackOff | None = None) -> None:
        """A task that ends before the rooms opened later do: it stands on the same stack."""
        self._supervisor.start(name, work, restart=restart)  # type: ignore[arg-type]
        self._stack.push_async_callback(self._supervisor.end, name)

    def _wait_for(self, what: str) -> None:
        if self._rooms.waits_for != what:
            logger.info("waiting: %s", what)
        self._rooms.waits_for = what
        self._changed()
