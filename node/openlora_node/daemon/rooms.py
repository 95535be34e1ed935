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
from ..attribution.tracer import FOLDER as INDEXES
from ..attribution.tracer import Tracer
from ..chainview import ChainParts, open_chain
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
from ..serving.ports import Tracing, only_declared
from ..settlement import SettlementService, make_outbox
from .base import CACHE_NAME, Base, find_base
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
    engine: EngineKeeper | None = None
    base: Base | None = None
    network: Network | None = None
    shelf: Shelf | None = None
    serving: Serving | None = None
    doors: Doors | None = None
    signed: SignedDoor | None = None
    settlement: SettlementService | None = None
    waits_for: str = "starting"
    """What opening the next room waits for."""


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
        """The engine with its base, and the doors. What serves is looked up by base, so several could stand here."""
        rooms, config = self._rooms, self._rooms.config
        assert rooms.chain is not None
        assert rooms.node is not None
        assert rooms.store is not None
        assert rooms.network is not None
        assert rooms.journal is not None
        rooms.engine = await self._stack.enter_async_context(open_engine(config, self._changed))
        fetching = Shelf(rooms.store, rooms.chain.view, rooms.network, rooms.node, None, config.artifacts.max_adapter)
        rooms.base = await self._base(fetching)
        base = rooms.base.artifact
        rooms.shelf = Shelf(
            rooms.store, rooms.chain.view, rooms.network, rooms.node, base, config.artifacts.max_adapter
        )
        self._stack.push_async_callback(rooms.shelf.fetcher.close)
        await rooms.network.follow(base)
        if config.engine.spawn:
            assert rooms.base.folder is not None
            rooms.engine.spawn(rooms.base.folder, base)
        self._start("engine", rooms.engine.run, restart=BackOff())
        self._stack.push_async_callback(rooms.engine.stop)  # on the way down it has ended before its task is cancelled
        rooms.serving = await self._serving(base)
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

    async def _serving(self, base: bytes) -> Serving:
        rooms, pricing = self._rooms, self._rooms.config.pricing
        assert rooms.chain is not None
        assert rooms.node is not None
        assert rooms.journal is not None
        assert rooms.engine is not None
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
            engine=rooms.engine.client,
            base=base,
            artifacts=rooms.shelf,
            prices=lambda: prices,
            options=ServingOptions.of(rooms.config),
            clock=now,
            alternatives=lambda pipeline: candidates.alternatives(
                pipeline.base, [adapter.id for adapter in pipeline.adapters]
            ),
            trace=self._tracing(),
        )
        await serving.start()
        return serving

    def _tracing(self) -> Tracing:
        """What finds datasets in responses; nothing where only the engine sees the base's tokenizer."""
        rooms = self._rooms
        if rooms.base is None or rooms.base.folder is None:
            return only_declared
        tracer = Tracer(rooms.config.state_dir / INDEXES, rooms.base.folder)
        self._stack.callback(tracer.close)
        return tracer

    async def _base(self, shelf: Shelf) -> Base:
        """The base model. Where only the engine knows it, wait for the engine to say."""
        rooms, config = self._rooms, self._rooms.config
        assert rooms.store is not None
        cache = config.state_dir / CACHE_NAME
        if config.engine.model is not None:
            self._wait_for("the base model is being read")
            fetch = shelf.fetch if config.engine.spawn else None
            return await find_base(config.engine.model, rooms.store, cache, fetch)
        raise OpenLoraError(
            ErrorCode.CONFIG_INVALID, "engine.model names no base model: set it to a folder or an artifact id"
        )

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
            rooms.journal, rooms.chain, rooms.outbox, rooms.node, config.settlement, now, epochs
        )
        self._start("settlement", rooms.settlement.run, restart=BackOff())

    def _start(self, name: str, work: Callable[[], object], *, restart: BackOff | None = None) -> None:
        """A task that ends before the rooms opened later do: it stands on the same stack."""
        self._supervisor.start(name, work, restart=restart)  # type: ignore[arg-type]
        self._stack.push_async_callback(self._supervisor.end, name)

    def _wait_for(self, what: str) -> None:
        if self._rooms.waits_for != what:
            logger.info("waiting: %s", what)
        self._rooms.waits_for = what
        self._changed()
