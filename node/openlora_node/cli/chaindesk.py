"""The chain as a command sees it: endpoint, checked deployment, bindings; and the options that name them."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from ..protocol.crypto import Address
from ..protocol.eip712 import Domain
from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import parse_address, parse_bytes32
from .chain_errors import run
from .options import AsJson, ConfigFile, Sets, load_config
from .output import print_json, print_table

if TYPE_CHECKING:
    from openlora_chain.bindings import ArtifactRegistry, Credits, NodeRegistry, Settlement
    from openlora_chain.deployment import Deployment
    from openlora_chain.rpc import Rpc

    from ..config.schema import Config

RpcUrl = Annotated[str | None, typer.Option("--rpc", metavar="URL", help="JSON-RPC endpoint. Default: chain.rpc_urls.")]
DeploymentFile = Annotated[
    Path | None,
    typer.Option("--deployment", metavar="FILE", help="Contract addresses. Default: chain.deployment_file."),
]
C = TypeVar("C", bound=Callable[..., Any])


@dataclass(frozen=True)
class Reading:
    """The options of every command that reads the chain."""

    config_file: ConfigFile = None
    sets: Sets = None
    rpc: RpcUrl = None
    deployment: DeploymentFile = None
    as_json: AsJson = False

    @property
    def config(self) -> Config:
        """The configuration; its defaults where there is no file."""
        return load_config(self.config_file, self.sets).config


@dataclass(frozen=True)
class ChainDesk:
    """One deployment, checked against the chain that answers."""

    config: Config
    rpc: Rpc
    deployment: Deployment
    nodes: NodeRegistry
    artifacts: ArtifactRegistry
    settlement: Settlement
    credits: Credits

    @property
    def domain(self) -> Domain:
        """What signatures are made for."""
        return Domain(chain_id=self.deployment.chain_id, verifying_contract=Address(self.deployment.settlement))


@asynccontextmanager
async def open_desk(options: Reading) -> AsyncIterator[ChainDesk]:
    """Connect and check. Raises OpenLoraError CHAIN_FAILED, CONFIG_*, ChainError."""
    from openlora_chain.bindings import ArtifactRegistry, Credits, NodeRegistry, Settlement
    from openlora_chain.deployment import check_deployment
    from openlora_chain.rpc import Rpc

    from ..chainview import read_deployment, rpc_urls

    config = options.config
    chain_id = None if options.deployment else config.chain.chain_id
    file = options.deployment or config.deployment_file
    if not file.is_file():
        raise OpenLoraError(
            ErrorCode.CHAIN_FAILED,
            f"there is no deployment file {file.name}: name one by --deployment or chain.deployment_file",
        )
    deployment = read_deployment(file, chain_id)
    async with Rpc(options.rpc or rpc_urls(config.chain), tries=2) as rpc:
        await check_deployment(rpc, deployment)
        yield ChainDesk(
            config,
            rpc,
            deployment,
            NodeRegistry(rpc, deployment),
            ArtifactRegistry(rpc, deployment),
            Settlement(rpc, deployment),
            Credits(rpc, deployment),
        )


def with_options(options: type[Any]) -> Callable[[C], C]:
    """Give a command the options of a dataclass such as `Reading`: it gets the filled one as its first argument.

    The command is a coroutine function; its other parameters are its own. What it returns is the exit code.
    """
    shared = get_type_hints(options, include_extras=True)

    def decorate(command: C) -> C:
        own = list(inspect.signature(command).parameters.values())[1:]
        hints = get_type_hints(command, globalns=getattr(command, "__globals__", {}), include_extras=True)

        def called(**given: Any) -> Any:
            filled = options(**{name: given.pop(name) for name in shared if name in given})
            return run(command(filled, **given))

        extra = [
            inspect.Parameter(
                item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=shared[item.name]
            )
            for item in fields(options)
        ]
        mine = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
            for parameter in own
        ]
        called.__signature__ = inspect.Signature([*mine, *extra])  # type: ignore[attr-defined]
        called.__annotations__ = {parameter.name: parameter.annotation for parameter in (*mine, *extra)}
        called.__name__, called.__doc__ = command.__name__, command.__doc__
        return called  # type: ignore[return-value]

    return decorate


def print_facts(facts: Mapping[str, str], amounts: Collection[str], *, as_json: bool) -> None:
    """Names and values: wei as they are for programs, in the unit that reads best for people."""
    from ..config.units import format_amount

    if as_json:
        print_json(dict(facts))
        return
    shown = [(name, format_amount(int(text)) if name in amounts else text) for name, text in facts.items()]
    print_table(("", ""), shown)


def amount(text: str) -> int:
    """`0.5 OPEN`, `0.5OPEN`, `3 gwei`, `100 wei` → wei. A usage error says what to write instead."""
    from ..config.units import parse_amount

    try:
        return parse_amount(text.strip())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def address(text: str) -> bytes:
    """An address, as a usage error where it is none."""
    try:
        return parse_address(text)
    except OpenLoraError as error:
        raise typer.BadParameter(error.message) from None


def node_id(text: str) -> bytes:
    """A node id, as a usage error where it is none."""
    try:
        return parse_bytes32(text)
    except OpenLoraError:
        raise typer.BadParameter("a node id is 0x<64 hex>, as `openlora operator status` prints it") from None
