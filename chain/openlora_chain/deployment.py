"""Where the contracts are: the deployment file, the presets of known networks, and the check against a live chain.

On the public networks nothing of ours is deployed: their presets carry a chain id and no address, and say so when used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from eth_utils.crypto import keccak

from .compiled import DEPLOYED, compiled
from .errors import ChainError, ChainErrorCode, Reverted
from .files import replace
from .rpc import Call, Rpc

FORMAT = "openlora-deployment-1"
NETWORKS = {"openledger": 1612, "openledger-testnet": 161_201}
MAX_FILE_BYTES = 1 << 20
DOMAIN_NAME, DOMAIN_VERSION = "OpenLoRA", "1"

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}", re.ASCII)
_HASH = re.compile(r"0x[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Deployed:
    """A contract on a chain: 20-byte address, keccak-256 of its runtime code."""

    address: bytes
    code_hash: bytes


@dataclass(frozen=True, slots=True)
class Deployment:
    """All contracts of one chain. `block` is where log followers start. `accounts` are set on a devnet only."""

    network: str
    chain_id: int
    block: int
    contracts: Mapping[str, Deployed]
    accounts: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def settlement(self) -> bytes:
        """The verifying contract of every signature."""
        return self.contracts["Settlement"].address

    def to_json(self) -> str:
        """The deployment file."""
        contracts = {
            name: {"address": _hex(item.address), "codeHash": _hex(item.code_hash)}
            for name, item in self.contracts.items()
        }
        domain = {
            "name": DOMAIN_NAME,
            "version": DOMAIN_VERSION,
            "chainId": self.chain_id,
            "verifyingContract": _hex(self.settlement),
        }
        body: dict[str, Any] = {
            "format": FORMAT,
            "network": self.network,
            "chainId": self.chain_id,
            "block": self.block,
            "domain": domain,
            "contracts": contracts,
        }
        if self.accounts:
            body["devnetOnlyAccounts"] = {name: _hex(address) for name, address in self.accounts.items()}
        return json.dumps(body, indent=2) + "\n"

    def write(self, path: Path) -> None:
        """Put the file in place in one step."""
        replace(path, self.to_json().encode())


def load_deployment(path: Path) -> Deployment:
    """Read a deployment file. Raises ChainError DEPLOYMENT_UNSET, DEPLOYMENT_MALFORMED."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES)
    except OSError:
        raise ChainError(ChainErrorCode.DEPLOYMENT_UNSET, f"there is no deployment file {path.name}") from None
    return parse_deployment(content)


def preset(network: str) -> Deployment:
    """The deployment on a known network. Raises ChainError DEPLOYMENT_UNSET while there is none."""
    if network not in NETWORKS:
        known = ", ".join(NETWORKS)
        raise ChainError(
            ChainErrorCode.DEPLOYMENT_UNSET, f"the networks known are {known}; else name a deployment file"
        )
    return parse_deployment(resources.files(__package__).joinpath("deployments", f"{network}.json").read_bytes())


def parse_deployment(content: bytes) -> Deployment:
    """Parse the file's bytes."""
    try:
        document = json.loads(content)
        network, chain_id, contracts = str(document["network"]), document["chainId"], document["contracts"]
        known, block = document["format"] == FORMAT, document["block"]
        accounts = {name: _address(text) for name, text in document.get("devnetOnlyAccounts", {}).items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ChainError(ChainErrorCode.DEPLOYMENT_MALFORMED) from None
    if not known or type(chain_id) is not int or chain_id <= 0:
        raise ChainError(ChainErrorCode.DEPLOYMENT_MALFORMED)
    if contracts is None:
        raise ChainError(
            ChainErrorCode.DEPLOYMENT_UNSET,
            f"no contracts are deployed on {network} (chain {chain_id}) yet: run `openlora contracts deploy`"
            " or name the deployment file of somebody who did",
        )
    try:
        found = {
            name: Deployed(_address(contracts[name]["address"]), _hash(contracts[name]["codeHash"]))
            for name in DEPLOYED
        }
    except (KeyError, TypeError):
        raise ChainError(ChainErrorCode.DEPLOYMENT_MALFORMED, "the deployment file lacks a contract") from None
    if type(block) is not int or block < 0:
        raise ChainError(ChainErrorCode.DEPLOYMENT_MALFORMED)
    return Deployment(network, chain_id, block, found, accounts)


async def check_deployment(rpc: Rpc, deployment: Deployment) -> None:
    """Chain id, code and EIP-712 domain as the file says. Raises ChainError WRONG_CHAIN or CONTRACT_MISMATCH."""
    chain_id = await rpc.chain_id()
    if chain_id != deployment.chain_id:
        raise ChainError(
            ChainErrorCode.WRONG_CHAIN,
            f"the RPC serves chain {chain_id}, the deployment is on {deployment.chain_id}: correct chain.rpc_urls",
        )
    for name, item in deployment.contracts.items():
        await _check_code(rpc, name, item)
    await _check_domain(rpc, deployment)


async def _check_code(rpc: Rpc, name: str, item: Deployed) -> None:
    code = await rpc.code(item.address)
    if not code:
        difference = "no code"
    elif keccak(code) != item.code_hash:
        difference = "other code than the deployment file says"
    elif not compiled(name).matches(code):
        difference = "another version than this package was built for"
    else:
        return
    raise ChainError(
        ChainErrorCode.CONTRACT_MISMATCH,
        f"{name} at {_hex(item.address)} has {difference}: use the right deployment file",
    )


async def _check_domain(rpc: Rpc, deployment: Deployment) -> None:
    contract = rpc.web3.eth.contract(address=_checksum(deployment.settlement), abi=compiled("Settlement").abi)
    function = contract.functions.eip712Domain()
    try:
        output = await rpc.call(Call(bytes(20), deployment.settlement, _data(function)))
        _, name, version, chain_id, verifying, _, _ = rpc.web3.codec.decode(
            ["bytes1", "string", "string", "uint256", "address", "bytes32", "uint256[]"], output
        )
    except (Reverted, ValueError):
        raise ChainError(ChainErrorCode.CONTRACT_MISMATCH, "Settlement publishes no EIP-712 domain") from None
    pairs = {
        "name": (name, DOMAIN_NAME),
        "version": (version, DOMAIN_VERSION),
        "chainId": (chain_id, deployment.chain_id),
        "verifyingContract": (str(verifying).lower(), _hex(deployment.settlement)),
    }
    for label, (have, want) in pairs.items():
        if have != want:
            raise ChainError(
                ChainErrorCode.CONTRACT_MISMATCH,
                f"the EIP-712 domain's {label} is {have}, not {want}: do not sign for it",
            )


def _data(function: Any) -> bytes:
    return bytes.fromhex(str(function._encode_transaction_data()).removeprefix("0x"))


def _checksum(address: bytes) -> Any:
    from eth_utils.address import to_checksum_address

    return to_checksum_address(address)


def _hex(value: bytes) -> str:
    return f"0x{value.hex()}"


def _address(text: object) -> bytes:
    if isinstance(text, str) and _ADDRESS.fullmatch(text):
        return bytes.fromhex(text[2:])
    raise ChainError(ChainErrorCode.DEPLOYMENT_MALFORMED, "a contract address in the deployment file is no address")


def _hash(text: object) -> bytes:
    if isinstance(text, str) and _HASH.fullmatch(text):
        return bytes.fromhex(text[2:])
    raise ChainError(ChainErrorCode.DEPLOYMENT_MALFORMED, "a code hash in the deployment file is no hash")
