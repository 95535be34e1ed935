"""Every key of the configuration: its section, kind, bounds, default and meaning. Knows no file and no variable.

The daemon and the gateway read one `Config`, whole and frozen; docs/configuration.md and configs/operator.yaml follow
this file (tests hold them equal). A key exists when a room reads it; what follows from other keys is a property.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from ..protocol.crypto import Address
from .endpoints import HostPort, HttpUrl, Listen, Multiaddr
from .engines import MAX_ENGINES, EachEngine, Engine, EngineName, NamedEngine, named_engines
from .kinds import (
    Amount,
    Count,
    Duration,
    RateLimit,
    Size,
    WalletAddress,
)
from .rules import RULE_ERROR, broken_rules
from .section import Bytes, File, Section, Wei, key, keys, section
from .units import Rate

ADVERT_TTL_INTERVALS = 3


class Node(Section):
    """Who this node is and where it keeps its state."""

    data_dir: File = key("~/.openlora", "Directory of all state, mode 0700; each network has its own below it.")
    network: Literal["devnet", "openledger", "openledger-testnet"] = key("devnet", "Network to join.")
    owner: Annotated[Address, WalletAddress()] | None = key(
        None, "Owner wallet that registered this node; its key need not be on this machine."
    )


class Keys(Section):
    """The hot key of this process: the node key under `run`, the payer's signer under `gateway`."""

    keystore_file: File | None = key(
        None, "Keystore v3 file. null: `keys/node.json` or `keys/payer.json` in the network's directory."
    )
    password_file: File | None = key(
        None, "File of mode 0600 with the keystore's password. null: the systemd credential, else a prompt."
    )


class Chain(Section):
    """The settlement chain."""

    rpc_urls: tuple[Annotated[str, HttpUrl()], ...] = keys(
        ("http://127.0.0.1:8545",), 8, "JSON-RPC endpoints, tried in order. URLs with access keys go to rpc_url_file."
    )
    rpc_url_file: File | None = key(
        None, "File of mode 0600 with JSON-RPC URLs, one a line, tried before rpc_urls: for URLs that hold access keys."
    )
    chain_id: Annotated[int, Count(1, (1 << 53) - 1)] | None = key(
        None, "Chain id that the endpoints must have. null: the deployment file's."
    )
    deployment_file: File | None = key(
        None, "Contract addresses and code hashes. null: `deployment.json` in the network's directory."
    )
    confirmations: Annotated[int, Count(0, 10_000)] = key(50, "Blocks on top of a transaction before it is final.")
    poll_interval: Annotated[timedelta, Duration("100ms", "1m")] = key("2s", "Time between looks for a new block.")
    log_block_range: Annotated[int, Count(1, 10_000)] = key(500, "Most blocks asked for in one log query.")
    max_fee_per_gas: Annotated[Wei, Amount("1 wei", "0.0001 OPEN")] = key(
        "100 gwei", "No transaction offers more for a unit of gas; dearer ones wait."
    )


class Network(Section):
    """The libp2p host."""

    listen: tuple[Annotated[str, Multiaddr("listen")], ...] = keys(
        ("/ip4/0.0.0.0/tcp/4001",), 16, "Addresses to listen on."
    )
    announce: tuple[Annotated[str, Multiaddr("announce")], ...] = keys(
        (), 16, "Addresses to advertise. Empty: those that peers confirm."
    )
    bootstrap: tuple[Annotated[str, Multiaddr("dial")], ...] = keys(
        (), 64, "Peers to join the network through, beside those remembered."
    )
    advert_interval: Annotated[timedelta, Duration("5s", "1m")] = key(
        "1m", "Time between signed adverts; an advert lives three times as long."
    )
    max_connections: Annotated[int, Count(8, 10_000)] = key(256, "Most connections open at once.")
    relay: Literal["off", "use", "serve"] = key(
        "use", "off: direct connections only; use: through a relay when unreachable; serve: also relay for others."
    )


class Artifacts(Section):
    """The store of adapters, models and datasets."""

    cache_size: Annotated[Bytes, Size("64MiB", "1024TiB")] = key(
        "64GiB", "Disk space for fetched artifacts; the least recently used that is not pinned goes first."
    )
    max_adapter: Annotated[Bytes, Size("1MiB", "1TiB")] = key("2GiB", "Largest adapter fetched for a request.")
    upload_rate: Annotated[Bytes, Size("64KiB", "100GiB")] = key(
        "16MiB", "Bytes a second sent to other nodes that fetch artifacts, all together."
    )


class Pricing(Section):
    """What this node asks for compute; royalties of artifacts come on top."""

    input: Annotated[Wei, Amount("0 OPEN", "1000000 OPEN")] = key("0.2 OPEN", "Price of 1,000,000 prompt tokens.")
    output: Annotated[Wei, Amount("0 OPEN", "1000000 OPEN")] = key("0.6 OPEN", "Price of 1,000,000 generated tokens.")
    settlement_charge: Annotated[Wei, Amount("0 OPEN", "1000 OPEN")] = key(
        "0.001 OPEN",
        "Charged once for a payer, signer and pipeline, in the first receipt: covers the gas of redeeming.",
    )


class Limits(Section):
    """What one requester can ask of the door."""

    max_body: Annotated[Bytes, Size("4KiB", "64MiB")] = key("1MiB", "Largest request body.")
    body_timeout: Annotated[timedelta, Duration("1s", "5m")] = key("10s", "Time for a request body to arrive.")
    signer_rate: Annotated[Rate, RateLimit("1/h", "1000/s")] = key("60/min", "Requests of one signer.")
    peer_rate: Annotated[Rate, RateLimit("1/h", "1000/s")] = key("120/min", "Requests from one peer.")
    ip_rate: Annotated[Rate, RateLimit("1/h", "10000/s")] = key("300/min", "Requests from one IP address.")
    queue: Annotated[int, Count(1, 100_000)] = key(64, "Admitted requests that may wait for the engines of one base.")
    in_flight_per_payer: Annotated[int, Count(1, 10_000)] = key(4, "Requests of one payer that may wait or run.")
    max_live_nonces: Annotated[int, Count(1, 1_000_000)] = key(10_000, "Unexpired nonces remembered for one signer.")
    unpaid_tokens: Annotated[int, Count(1, 65_536)] = key(
        1024, "Tokens generated beyond the newest voucher before output pauses: the most a payer can leave unpaid."
    )


class Settlement(Section):
    """When vouchers and receipts go to the chain. Money goes to the recipient set on chain, never to one set here."""

    redeem_gas_multiple: Annotated[int, Count(1, 10_000)] = key(
        20, "Redeem once vouchers are worth this many times the gas."
    )
    redeem_max_age: Annotated[timedelta, Duration("1h", "13d")] = key(
        "7d", "Redeem at this age whatever the worth; superseded terms are honoured for 14 days only."
    )
    epoch: Annotated[timedelta, Duration("10s", "1d")] = key("1h", "Receipts of one epoch are anchored by one root.")
    low_gas_transactions: Annotated[int, Count(1, 10_000)] = key(
        20, "Warn when the node key's balance pays for fewer transactions."
    )


class Api(Section):
    """Local and HTTP doors of the node. Nothing unsigned is served off loopback, save metrics by consent."""

    control_socket: File | None = key(
        None, "Unix socket, mode 0600, that the CLI talks to. null: `control.sock` in the network's directory."
    )
    health_listen: Annotated[HostPort, Listen()] | None = key(
        "127.0.0.1:9470", "Health and dashboard, on loopback. null: off."
    )
    metrics_listen: Annotated[HostPort, Listen()] | None = key(None, "Prometheus metrics. null: off.")
    metrics_public: bool = key(False, "Allow metrics_listen off loopback, where anyone may read them.")
    signed_listen: Annotated[HostPort, Listen()] | None = key(
        None, "Wallet-signed requests by HTTP, beside libp2p. null: off. Off loopback it needs both tls files."
    )
    tls_certificate_file: File | None = key(None, "PEM certificate chain for signed_listen.")
    tls_key_file: File | None = key(None, "PEM key, mode 0600, for signed_listen.")


class Log(Section):
    """Logs go to standard output; prompts and outputs are never in them."""

    level: Literal["debug", "info", "warning", "error"] = key("info", "Least severity that is logged.")
    format: Literal["json", "text"] = key("json", "json for collectors, text for eyes.")


class Gateway(Section):
    """The payer's side: an OpenAI endpoint that picks nodes, signs and pays."""

    listen: Annotated[HostPort, Listen()] = key("127.0.0.1:8470", "OpenAI-compatible endpoint; it can spend.")
    public: bool = key(False, "Allow listen off loopback: whoever has the endpoint's token then spends from afar.")
    payer: Annotated[Address, WalletAddress()] | None = key(
        None, "Wallet whose escrow pays, where the key here is only a signer that it authorised. null: the key's own."
    )
    names_file: File | None = key(
        None,
        "YAML file with names for bases and adapters. null: `names.yaml` in the gateway's directory, if it exists.",
    )
    spend_per_request: Annotated[Wei, Amount("1 wei", "1000000 OPEN")] = key(
        "0.5 OPEN", "Most that one request may cost."
    )
    spend_per_day: Annotated[Wei, Amount("1 wei", "1000000 OPEN")] = key("20 OPEN", "Most that any 24 hours may cost.")
    top_nodes: Annotated[int, Count(1, 64)] = key(4, "Nodes kept funded and routed among.")
    escrow_per_node: Annotated[Wei, Amount("1 wei", "1000000 OPEN")] = key(
        "2 OPEN", "Escrow balance kept with each of these nodes."
    )
    keep_text: bool = key(False, "Keep prompts and outputs in the gateway's directory, mode 0600.")
    text_ttl: Annotated[timedelta, Duration("1m", "365d")] = key("1d", "Time after which kept text is deleted.")


class Config(BaseSettings):
    """The whole configuration. `loader.load` fills it; built directly it reads neither file nor environment."""

    model_config = SettingsConfigDict(strict=True, extra="forbid", frozen=True)

    node: Node = section()
    keys: Keys = section()
    chain: Chain = section()
    network: Network = section()
    engine: Engine = section()
    engines: dict[Annotated[str, EngineName()], EachEngine] = Field(default={}, max_length=MAX_ENGINES)
    artifacts: Artifacts = section()
    pricing: Pricing = section()
    limits: Limits = section()
    settlement: Settlement = section()
    api: Api = section()
    log: Log = section()
    gateway: Gateway = section()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only arguments: no stray variable changes a `Config` behind the loader's back."""
        return (init_settings,)

    @model_validator(mode="after")
    def _keeps_rules(self) -> Config:
        if broken := tuple(broken_rules(self)):
            raise PydanticCustomError(RULE_ERROR, "keys contradict each other", {"broken": broken})
        return self

    @property
    def state_dir(self) -> Path:
        """The network's directory: everything that belongs to one network, so that two never mix."""
        return self.node.data_dir / self.node.network

    @property
    def control_socket(self) -> Path:
        """The node's control socket."""
        return self.api.control_socket or self.state_dir / "control.sock"

    @property
    def all_engines(self) -> tuple[NamedEngine, ...]:
        """The engines of this node, whichever way they are written: at least one."""
        return named_engines(self.engine, self.engines, self.state_dir)

    @property
    def adapters_dir(self) -> Path:
        """Where the engine loads adapters from."""
        return self.engine.adapters_dir or self.state_dir / "artifacts"

    @property
    def deployment_file(self) -> Path:
        """The contracts' addresses and code hashes."""
        return self.chain.deployment_file or self.state_dir / "deployment.json"

    @property
    def node_keystore(self) -> Path:
        """The node key's keystore."""
        return self.keys.keystore_file or self.state_dir / "keys" / "node.json"

    @property
    def payer_keystore(self) -> Path:
        """The keystore of the payer's signer."""
        return self.keys.keystore_file or self.state_dir / "keys" / "payer.json"

    @property
    def gateway_dir(self) -> Path:
        """The gateway's own directory, beside the node's state: journal, token, kept text."""
        return self.state_dir / "gateway"

    @property
    def advert_ttl(self) -> timedelta:
        """How long an advert lives: two may be lost before the node is taken for gone."""
        return self.network.advert_interval * ADVERT_TTL_INTERVALS
