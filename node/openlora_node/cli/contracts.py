"""`openlora contracts`: deploy the contracts, check a deployment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import format_address, format_bytes, parse_address
from .chain_errors import run
from .options import NOUN, AsJson
from .output import print_json, print_table

if TYPE_CHECKING:
    from openlora_chain.deploy import Parameters

app = typer.Typer(help="Deploy the contracts and check a deployment.", no_args_is_help=True, **NOUN)

RpcUrl = Annotated[str, typer.Option("--rpc", metavar="URL", help="JSON-RPC endpoint.")]


@app.command()
def deploy(
    network: Annotated[str, typer.Option("--network", help="openledger, openledger-testnet, or a name of your own.")],
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="Keystore of the deployer.")],
    output: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the deployment file goes.")],
    treasury: Annotated[str, typer.Option("--treasury", metavar="ADDRESS", help="Receives the protocol's part.")],
    guardian: Annotated[str, typer.Option("--guardian", metavar="ADDRESS", help="May pause deposits.")],
    governor: Annotated[str, typer.Option("--governor", metavar="ADDRESS", help="Acts through the timelock.")],
    rpc: RpcUrl = "http://127.0.0.1:8545",
    password_file: Annotated[Path | None, typer.Option("--password-file", metavar="FILE")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Send the transactions; without it the plan is printed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Deploy all contracts; print the plan first."""
    from openlora_chain.deploy import Parameters

    parameters = Parameters(
        treasury=parse_address(treasury), guardian=parse_address(guardian), governor=parse_address(governor)
    )
    run(_deploy(network, key, output, rpc, password_file, parameters, yes, as_json))


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Deployment file.")],
    rpc: RpcUrl = "http://127.0.0.1:8545",
    as_json: AsJson = False,
) -> None:
    """Compare chain id, code and EIP-712 domain with a deployment file."""
    run(_check(file, rpc))
    print_json({"ok": True}) if as_json else print(f"valid: {file}")


@app.command()
def show(
    network: Annotated[str, typer.Argument(metavar="NETWORK|FILE", help="Known network, or a deployment file.")],
    as_json: AsJson = False,
) -> None:
    """Print the addresses of a deployment."""
    from openlora_chain.deployment import NETWORKS, load_deployment, preset
    from openlora_chain.errors import ChainError

    from .chain_errors import translated

    try:
        deployment = preset(network) if network in NETWORKS else load_deployment(Path(network))
    except ChainError as error:
        raise translated(error) from None
    if as_json:
        print(deployment.to_json(), end="")
        return
    items = deployment.contracts.items()
    rows = [(name, format_address(item.address), format_bytes(item.code_hash)) for name, item in items]
    print_table(("contract", "address", "code hash"), rows)


async def _deploy(
    network: str,
    key: Path,
    output: Path,
    url: str,
    password_file: Path | None,
    parameters: Parameters,
    yes: bool,
    as_json: bool,
) -> None:
    from openlora_chain import keystore, password
    from openlora_chain.deploy import deploy as send
    from openlora_chain.deploy import plan
    from openlora_chain.deployment import NETWORKS
    from openlora_chain.rpc import Rpc

    async with Rpc(url) as rpc:
        chain_id = await rpc.chain_id()
        if NETWORKS.get(network, chain_id) != chain_id:
            raise OpenLoraError(
                ErrorCode.WRONG_CHAIN, f"{network} is chain {NETWORKS[network]}, the RPC serves {chain_id}"
            )
        deployer = keystore.address_of(key)
        steps = plan(deployer, await rpc.nonce(deployer), parameters).steps
        if not yes:
            rows = {step.name: format_address(step.address) for step in steps}
            if as_json:
                print_json({"chainId": chain_id, "deployer": format_address(deployer), "plan": rows})
            else:
                print(f"chain {chain_id}, deployer {format_address(deployer)}; add --yes to send")
                print_table(("contract", "address it will have"), rows.items())
            return
        secret = password.from_file(password_file) if password_file else password.from_prompt("Password")
        deployment = await send(rpc, await keystore.load(key, secret), parameters, network)
    deployment.write(output)
    print(deployment.to_json(), end="") if as_json else print(f"deployed on chain {chain_id}: {output}")


async def _check(file: Path, url: str) -> None:
    from openlora_chain.deployment import check_deployment, load_deployment
    from openlora_chain.rpc import Rpc

    async with Rpc(url) as rpc:
        await check_deployment(rpc, load_deployment(file))
