"""The gateway's composition root: the only file that knows all its services; opens them in order, closes in reverse.

Own data directory and lock, own journal, own key, a libp2p identity that is forgotten at the end. Without chain or
peers it starts all the same and says so.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from openlora_chain import keystore, password
from openlora_chain.errors import ChainError
from openlora_chain.outbox import Outbox
from openlora_chain.wallet import Wallet

from ..chainview import ChainParts, open_chain, read_deployment
from ..config import Config
from ..datadir import PAYER_JOURNAL_NAME, DataDir
from ..journal import Binding, Journal
from ..journal.logs import JournalLogs
from ..network.advertising import AdvertOptions
from ..network.candidates import Candidates
from ..network.directory import DirectoryOptions
from ..network.host import HostOptions
from ..network.inference import InferClient
from ..network.reach import ReachOptions
from ..network.service import Network
from ..protocol.crypto import Address
from ..protocol.eip712 import Domain
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.health import Level, ServiceHealth
from ..protocol.ids import format_address
from ..settlement import make_outbox
from .door import listen, write_text
from .endpoint import Endpoint
from .escrow import EscrowRules, Escrows
from .guard import TOKEN_FILE, Guard, open_token
from .links import ChainLink, NodesLink, OutboxLink, SessionsLink, StoredTokenizers, deposit_by
from .names import NAMES_FILE, Names, load_names
from .payer import Payer
from .proofs import Proofs
from .purse import Caps, Purse
from .quotes import Quotes
from .recovery import Recovery
from .tasks import Tasks
from .texts import FOLDER, Texts
from .tokenizer_fetch import FetchedTokenizers
from .tokenizers import NamedFolders, Tokenizers

URL_FILE = "url"
"""Where the endpoint listens while it does: the command line looks here."""
LISTEN_LOCALLY = ("/ip4/127.0.0.1/tcp/0",)
"""A gateway is not dialled: it only dials."""
UPKEEP_S = 60.0
SYNC_WAIT_S = 5.0
CLOSE_GRACE_S = 20.0
PASSWORD_CREDENTIAL = "payer-password"  # noqa: S105 - its name

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gateway:
    """A running gateway."""

    url: str
    token_file: Path
    token: str
    payer: Payer
    endpoint: Endpoint
    recovery: Recovery
    proofs: Proofs
    network: Network
    chain: ChainParts
    requests: Tasks
    """What is being earned, paid and funded; idle when every answer is settled."""

    async def health(self) -> list[ServiceHealth]:
        """How each service is doing."""
        return await self.endpoint.health()


def now() -> int:
    """Unix seconds."""
    return int(time.time())


@asynccontextmanager
async def open_gateway(config: Config, *, wallet: Wallet | None = None, serve: bool = True) -> AsyncIterator[Gateway]:
    """A gateway for as long as the block lasts; with `serve` false without its HTTP port, for one call of the CLI.

    `wallet`: the key, where it is open already. Raises DATADIR_*, KEY_FAILED, JOURNAL_*, CONFIG_INVALID, CHAIN_FAILED
    for what no waiting mends.
    """
    async with AsyncExitStack() as stack:
        folder = config.gateway_dir
        await asyncio.to_thread(_make_private, config.node.data_dir, config.state_dir)
        stack.enter_context(await asyncio.to_thread(DataDir.open, folder))
        names = await asyncio.to_thread(_names, config)
        wallet = wallet or await open_payer_key(config)
        deployment = await asyncio.to_thread(read_deployment, config.deployment_file, config.chain.chain_id)
        domain = Domain(chain_id=deployment.chain_id, verifying_contract=Address(deployment.settlement))
        payer_address = Address(config.gateway.payer or wallet.address)
        binding = Binding.to_payer(domain, payer_address)
        journal = await asyncio.to_thread(Journal.open, folder / PAYER_JOURNAL_NAME, binding, now)
        stack.push_async_callback(journal.close)
        caps = Caps(config.gateway.spend_per_request, config.gateway.spend_per_day)
        purse = Purse(journal, payer_address, wallet, caps, now)
        if interrupted := await purse.interrupted():
            logger.warning("%d requests were open when the gateway ended last time", interrupted)
        parts = await stack.enter_async_context(
            open_chain(config.chain, config.deployment_file, JournalLogs(journal), snapshot=folder / "nodes.snapshot")
        )
        background = Tasks()
        stack.push_async_callback(background.close, 0)
        background.spawn(parts.view.run(), "chain view")
        outbox = make_outbox(journal, parts, wallet, config.chain, now)
        background.spawn(outbox.run(), "outbox")
        try:
            # What peers say is judged by the registry: it should be there before they speak.
            async with asyncio.timeout(SYNC_WAIT_S):
                await parts.view.wait_synced()
        except TimeoutError:
            logger.warning("the chain is not read yet: requests wait for it")
        network = _network(config, parts, domain, folder)
        await network.start()
        stack.push_async_callback(network.stop)
        gateway = await _compose(config, stack, names, purse, parts, network, outbox, wallet, folder, background, serve)
        background.spawn(_upkeep(config, gateway, folder), "upkeep")
        yield gateway


async def _compose(
    config: Config,
    stack: AsyncExitStack,
    names: Names,
    purse: Purse,
    parts: ChainParts,
    network: Network,
    outbox: Outbox,
    wallet: Wallet,
    folder: Path,
    background: Tasks,
    serve: bool,
) -> Gateway:
    chain = ChainLink(parts)
    inference = InferClient(network)
    stack.push_async_callback(inference.close)
    sessions = SessionsLink(network)
    rules = EscrowRules(config.gateway.top_nodes, config.gateway.escrow_per_node, config.gateway.spend_per_day)
    deposit = deposit_by(parts, purse.payer, wallet.address)
    escrows = Escrows(purse.journal, chain, purse.payer, rules, deposit, OutboxLink(outbox), now)
    held = Quotes(purse, chain)
    await held.load()
    candidates = Candidates(
        network, allows=escrows.may_fund, charge=lambda node, ask: held.charge_due(node, ask.pipeline)
    )
    stack.push_async_callback(candidates.close)
    nodes = NodesLink(network, candidates)

    async def serving(base: bytes) -> list[bytes]:
        return [offer.node for offer in await nodes.offers(base)]

    tokenizers = Tokenizers(
        NamedFolders(names),
        StoredTokenizers(config.adapters_dir),
        FetchedTokenizers(folder / "tokenizers", sessions.visit, serving, names.trusts),
    )
    recovery = Recovery(purse, chain, sessions)
    requests = Tasks()
    stack.push_async_callback(requests.close, CLOSE_GRACE_S)
    payer = Payer(
        purse=purse,
        chain=chain,
        nodes=nodes,
        inference=inference,
        escrows=escrows,
        tokenizers=tokenizers,
        names=names,
        held=held,
        recover=recovery.try_look,
        spawn=requests.spawn,
    )
    token_file = folder / TOKEN_FILE
    token = await asyncio.to_thread(open_token, token_file)

    async def health() -> list[ServiceHealth]:
        return [chain.health(), await nodes.health(), await _money(outbox, recovery, purse, parts)]

    texts = None
    if config.gateway.keep_text:
        texts = Texts(folder / FOLDER, config.gateway.text_ttl.total_seconds(), now)
    guard = Guard(token, any_host=not config.gateway.listen.is_loopback)
    proofs = Proofs(purse, sessions, chain.anchored)
    endpoint = Endpoint(payer, guard, health, max_body=config.limits.max_body, proofs=proofs, texts=texts)
    url = ""
    if serve:
        listening = await listen(endpoint.app(), config.gateway.listen)
        stack.push_async_callback(listening.close)
        url = listening.url
        await asyncio.to_thread(write_text, folder / URL_FILE, f"{url}\n")
        stack.callback((folder / URL_FILE).unlink, missing_ok=True)
    for base in names.bases.values():
        background.spawn(nodes.follow(base.id), f"following {base.name}")
    return Gateway(url, token_file, token, payer, endpoint, recovery, proofs, network, parts, requests)


async def open_payer_key(config: Config, environment: Mapping[str, str] = os.environ) -> Wallet:
    """The payer's key, its password from the file named, systemd's credential or a person. Raises KEY_FAILED."""
    path = config.payer_keystore
    if not path.exists():
        raise OpenLoraError(
            ErrorCode.KEY_FAILED, f"there is no payer key {path.name}: make one with `openlora keys new {path.name}`"
        )
    try:
        if config.keys.password_file is not None:
            secret = await asyncio.to_thread(password.from_file, config.keys.password_file)
        elif await asyncio.to_thread(_has_credential, environment):
            secret = password.from_credential(PASSWORD_CREDENTIAL, environment)
        else:
            secret = await asyncio.to_thread(password.from_prompt, "Password of the payer's key")
        return await keystore.load(path, secret)
    except ChainError as error:
        raise OpenLoraError(ErrorCode.KEY_FAILED, f"payer key: {error.message}") from None


def _has_credential(environment: Mapping[str, str]) -> bool:
    directory = environment.get("CREDENTIALS_DIRECTORY")
    return bool(directory) and Path(directory or "", PASSWORD_CREDENTIAL).is_file()


async def _upkeep(config: Config, gateway: Gateway, folder: Path) -> None:
    """What is due from time to time: late vouchers, escrows, kept text whose time is over."""
    texts = Texts(folder / FOLDER, config.gateway.text_ttl.total_seconds(), now)
    while True:
        await asyncio.to_thread(texts.expire)
        try:
            for node in await gateway.recovery.pending():
                await gateway.recovery.try_look(node)
            for node in list(gateway.payer.escrows.funded):
                await gateway.payer.escrows.top_up(node)
        except OpenLoraError as error:
            logger.warning("upkeep: %s", error)
        await asyncio.sleep(UPKEEP_S)


def _network(config: Config, parts: ChainParts, domain: Domain, folder: Path) -> Network:
    return Network(
        _ephemeral_secret(),
        HostOptions(listen=LISTEN_LOCALLY, max_connections=config.network.max_connections),
        parts.view,
        adverts=AdvertOptions(domain, interval=config.network.advert_interval.total_seconds()),
        directory=DirectoryOptions(
            domain, bootstrap=config.network.bootstrap, peers_file=folder / "peers.json", serve=False
        ),
        reach=ReachOptions(relay="off" if config.network.relay == "off" else "use", wanted=False),
    )


def _ephemeral_secret() -> bytes:
    """32 bytes that are a valid secp256k1 key; all but one in 2^127 are."""
    return secrets.token_bytes(31).rjust(32, b"\x01")


def _names(config: Config) -> Names:
    chosen = config.gateway.names_file
    return load_names(chosen or config.gateway_dir / NAMES_FILE, must_exist=chosen is not None)


def _make_private(*folders: Path) -> None:
    """Directories above ours, private as the node's own: whoever comes first makes them."""
    for folder in folders:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            raise OpenLoraError(ErrorCode.STORAGE_READ_ONLY, "node.data_dir cannot be made") from None


async def _money(outbox: Outbox, recovery: Recovery, purse: Purse, parts: ChainParts) -> ServiceHealth:
    reason = ""
    if outbox.status.blocked:
        reason = f"deposits wait: {outbox.status.blocked}"
    elif recovery.disputed:
        reason = f"{sum(recovery.disputed.values())} receipts that cannot be checked are claimed and not paid"
    else:
        try:
            if not await parts.view.may_sign(purse.payer, purse.signer.address):
                wallet = format_address(purse.payer)
                reason = (
                    "gateway.payer has not authorised the key here, so nodes refuse what it signs:"
                    f" `openlora escrow signer authorize --from {wallet} --calldata`, for the wallet to send"
                )
        except OpenLoraError as error:
            reason = error.message
    return ServiceHealth("escrow", Level.DEGRADED if reason else Level.UP, reason)
