"""Deploys the contracts: six transactions in a fixed order, because the first name addresses of later ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from eth_utils.crypto import keccak

from .compiled import DEPLOYED, compiled, create_address, error_table
from .deployment import Deployed, Deployment
from .errors import ChainError, ChainErrorCode, Reverted
from .fees import first_fees
from .policy import DEFAULT_FEE_CAP
from .rpc import Call, Rpc, TxReceipt
from .transaction import TransactionSigner, UnsignedTransaction

DAY = 86_400
GAS_MARGIN_PERCENT = 10


@dataclass(frozen=True, slots=True)
class Parameters:
    """Constructor parameters. Periods in seconds, stake in wei. The addresses are 20 bytes each."""

    treasury: bytes
    guardian: bytes
    governor: bytes
    """Proposes and executes through the timelock, which owns the Settlement."""
    governance_delay: int = 2 * DAY
    min_stake: int = 10**18
    stake_thaw: int = 14 * DAY
    slash_bps: int = 5_000
    bounty_bps: int = 2_000
    terms_grace: int = 14 * DAY
    min_commit_age: int = 60
    max_commit_age: int = DAY
    escrow_thaw: int = 7 * DAY
    signer_thaw: int = 2 * DAY
    protocol_bps: int = 500
    credits_timelock: int = 3 * DAY
    credits_window: int = 14 * DAY


@dataclass(frozen=True, slots=True)
class Step:
    """One creation: contract, constructor arguments, the address that it must get."""

    name: str
    arguments: tuple[object, ...]
    address: bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """What a deployment by this account from this nonce on creates."""

    steps: tuple[Step, ...]
    addresses: Mapping[str, bytes] = field(default_factory=dict)


def plan(deployer: bytes, nonce: int, parameters: Parameters) -> Plan:
    """The six creations, with addresses computed ahead."""
    at = {name: create_address(deployer, nonce + index) for index, name in enumerate(DEPLOYED)}
    p = parameters
    arguments: dict[str, tuple[object, ...]] = {
        "TimelockController": (p.governance_delay, [p.governor], [p.governor], bytes(20)),
        "NodeRegistry": (
            at["Settlement"], at["ReceiptAnchor"], p.min_stake, p.stake_thaw, p.slash_bps, p.bounty_bps,
        ),
        "ArtifactRegistry": (p.terms_grace, p.min_commit_age, p.max_commit_age),
        "Settlement": (
            at["TimelockController"], p.treasury, p.guardian, at["NodeRegistry"], at["ArtifactRegistry"],
            at["Credits"], p.escrow_thaw, p.signer_thaw, p.protocol_bps,
        ),
        "Credits": (
            at["Settlement"], at["NodeRegistry"], at["ArtifactRegistry"], p.credits_timelock, p.credits_window,
        ),
        "ReceiptAnchor": (at["Settlement"], at["NodeRegistry"]),
    }  # fmt: skip
    return Plan(tuple(Step(name, arguments[name], at[name]) for name in DEPLOYED), at)


async def deploy(
    rpc: Rpc, signer: TransactionSigner, parameters: Parameters, network: str, *, fee_cap: int = DEFAULT_FEE_CAP
) -> Deployment:
    """Create all contracts and wait for each. Raises ChainError; a deployment that broke off is begun anew."""
    chain_id = await rpc.chain_id()
    nonce = await rpc.nonce(signer.address)
    steps = plan(signer.address, nonce, parameters).steps
    blocks, contracts = [], {}
    for index, step in enumerate(steps):
        data = compiled(step.name).creation_data(*step.arguments)
        receipt = await _create(rpc, signer, chain_id, nonce + index, data, step.name, fee_cap)
        if receipt.contract != step.address:
            raise ChainError(ChainErrorCode.CONTRACT_MISMATCH, f"{step.name} got another address: is the key in use?")
        blocks.append(receipt.block.number)
        contracts[step.name] = Deployed(step.address, bytes(keccak(await rpc.code(step.address))))
    return Deployment(network, chain_id, min(blocks), contracts)


async def _create(
    rpc: Rpc, signer: TransactionSigner, chain_id: int, nonce: int, data: bytes, name: str, fee_cap: int
) -> TxReceipt:
    try:
        gas = await rpc.estimate_gas(Call(signer.address, None, data))
    except Reverted as error:
        raise ChainError(ChainErrorCode.REVERTED, f"{name} refuses: {error_table().explain(error.data)}") from None
    fees = first_fees((await rpc.head()).base_fee, await rpc.priority_fee(), fee_cap)
    if fees is None:
        raise ChainError(ChainErrorCode.FEE_CAP)
    gas = gas * (100 + GAS_MARGIN_PERCENT) // 100
    transaction = UnsignedTransaction(chain_id, nonce, None, 0, data, gas, fees.max_fee, fees.priority)
    if (missing := transaction.most - await rpc.balance(signer.address)) > 0:
        raise ChainError(ChainErrorCode.INSUFFICIENT_FUNDS, f"the deployer lacks {missing} wei for {name}")
    signed = await signer.sign_transaction(transaction)
    await rpc.send_raw(signed.raw)
    receipt = await rpc.mined(signed.hash)
    if not receipt.succeeded:
        raise ChainError(ChainErrorCode.REVERTED, f"the creation of {name} reverted")
    return receipt
