"""How every command writes to the chain: plan, simulate, show what it costs, and send only when told to.

A command gives steps; `carry_out` prints the plan with gas and cost, the bare calldata for a wallet elsewhere, or sends
one transaction after the other and waits for each.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import format_address, format_bytes
from .chaindesk import ChainDesk, Reading, address
from .nodewrite import runs_with, send_through
from .output import print_json, print_text

if TYPE_CHECKING:
    from openlora_chain.bindings import Calldata
    from openlora_chain.fees import Fees
    from openlora_chain.rpc import TxReceipt
    from openlora_chain.transaction import TransactionSigner

GAS_MARGIN_PERCENT = 20
MINED_TIMEOUT_S = 300.0

KeyFile = Annotated[Path | None, typer.Option("--key", metavar="FILE", help="Keystore of the sender.")]
PasswordFile = Annotated[
    Path | None, typer.Option("--password-file", metavar="FILE", help="File of mode 0600 for --key. Default: ask.")
]
From = Annotated[
    str | None,
    typer.Option("--from", metavar="ADDRESS", help="The sender, where its key is elsewhere: for plan and calldata."),
]
SignWith = Annotated[
    str | None,
    typer.Option(
        "--sign-with", metavar="COMMAND", help="Program that signs for --from: JSON in, the raw transaction out."
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Send; without it the plan is printed.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Simulate and print the plan, never send.")]
CalldataOnly = Annotated[
    bool, typer.Option("--calldata", help="Print to, value and data for a wallet elsewhere; never send.")
]


@dataclass(frozen=True)
class Writing(Reading):
    """The options of every command that writes to the chain."""

    key: KeyFile = None
    password_file: PasswordFile = None
    sender: From = None
    sign_with: SignWith = None
    yes: Yes = False
    dry_run: DryRun = False
    calldata: CalldataOnly = False

    @property
    def account(self) -> bytes:
        """The sender's address. Raises a usage error where nothing names it."""
        from openlora_chain import keystore

        if self.key is not None:
            of_key = keystore.address_of(self.key)
            if self.sender is not None and address(self.sender) != of_key:
                raise typer.BadParameter("--key and --from name different accounts")
            return of_key
        if self.sender is None:
            raise typer.BadParameter("name the sender: --key FILE, or --from ADDRESS with --calldata or --sign-with")
        return address(self.sender)


@dataclass(frozen=True)
class Step:
    """One transaction of a plan. `follows` says that it passes only once those before it are mined.

    `ready` is awaited before it is sent: the chain may want some time between two steps.
    """

    label: str
    call: Calldata
    follows: bool = False
    ready: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True)
class Estimate:
    """A step with its gas, None where that shows only once the steps before it are mined."""

    step: Step
    gas: int | None


async def carry_out(
    options: Writing, desk: ChainDesk, steps: Sequence[Step], facts: Mapping[str, str]
) -> list[TxReceipt]:
    """Print the plan, the calldata, or send. `facts` are printed with the plan. Returns the receipts of what was sent.

    Where the sender is the key of the node that runs here, that node sends.

    Raises OpenLoraError CHAIN_FAILED where the chain refuses a step, before anything is sent.
    """
    if options.calldata:
        _print_calldata(options, desk, steps, facts)
        return []
    sender = options.account
    estimates = [await _estimate(desk, sender, step) for step in steps]
    fees = await _fees(desk)
    if options.dry_run or not options.yes:
        _print_plan(options, desk, sender, estimates, fees, facts)
        return []
    if options.sign_with is None and await runs_with(desk.config, sender):
        with _waiting("the node that runs here is sending"):
            sent = await send_through(desk.config.control_socket, steps)
        _print_handed_over(options, sent, facts)
        return []
    signer = await _signer(options, sender)
    receipts = []
    for number, estimate in enumerate(estimates, 1):
        with _waiting(f"{estimate.step.label} ({number} of {len(estimates)})"):
            if estimate.step.ready is not None:
                await estimate.step.ready()
            receipts.append(await _send(desk, signer, estimate))
    _print_sent(options, estimates, receipts, facts)
    return receipts


async def _estimate(desk: ChainDesk, sender: bytes, step: Step) -> Estimate:
    from openlora_chain.compiled import error_table
    from openlora_chain.errors import Reverted
    from openlora_chain.rpc import Call

    if step.follows:
        return Estimate(step, None)
    call = Call(sender, step.call.to, step.call.data, step.call.value)
    if (missing := step.call.value - await desk.rpc.balance(sender)) > 0:
        raise OpenLoraError(
            ErrorCode.CHAIN_FAILED, f"{format_address(sender)} lacks {missing} wei to {step.label}: send it that much"
        )
    try:
        await desk.rpc.call(call)
        gas = await desk.rpc.estimate_gas(call)
    except Reverted as error:
        raise OpenLoraError(
            ErrorCode.CHAIN_FAILED, f"the chain refuses to {step.label}: {error_table().explain(error.data)}"
        ) from None
    return Estimate(step, gas * (100 + GAS_MARGIN_PERCENT) // 100)


async def _fees(desk: ChainDesk) -> Fees:
    from openlora_chain.errors import ChainError, ChainErrorCode
    from openlora_chain.fees import first_fees

    fees = first_fees(
        (await desk.rpc.head()).base_fee, await desk.rpc.priority_fee(), desk.config.chain.max_fee_per_gas
    )
    if fees is None:
        raise ChainError(
            ChainErrorCode.FEE_CAP, "the chain's base fee is above chain.max_fee_per_gas: wait or raise it"
        )
    return fees


async def _signer(options: Writing, sender: bytes) -> TransactionSigner:
    from openlora_chain import keystore, password
    from openlora_chain.external import ExternalSigner, command_exchange

    if options.sign_with is not None:
        return ExternalSigner(sender, command_exchange(shlex.split(options.sign_with)))
    if options.key is None:
        raise typer.BadParameter("sending needs --key FILE or --sign-with COMMAND")
    secret = password.from_file(options.password_file) if options.password_file else password.from_prompt("Password")
    return await keystore.load(options.key, secret)


async def _send(desk: ChainDesk, signer: TransactionSigner, estimate: Estimate) -> TxReceipt:
    from openlora_chain.errors import ChainError, ChainErrorCode
    from openlora_chain.transaction import UnsignedTransaction

    step, gas = estimate.step, estimate.gas
    if gas is None:
        gas = (await _estimate(desk, signer.address, Step(step.label, step.call))).gas
        assert gas is not None
    fees = await _fees(desk)
    nonce = await desk.rpc.nonce(signer.address)
    call = step.call
    transaction = UnsignedTransaction(
        desk.deployment.chain_id, nonce, call.to, call.value, call.data, gas, fees.max_fee, fees.priority
    )
    if (missing := transaction.most - await desk.rpc.balance(signer.address)) > 0:
        raise ChainError(
            ChainErrorCode.INSUFFICIENT_FUNDS,
            f"{format_address(signer.address)} lacks up to {missing} wei for gas to {step.label}",
        )
    signed = await signer.sign_transaction(transaction)
    await desk.rpc.send_raw(signed.raw)
    receipt = await desk.rpc.mined(signed.hash, MINED_TIMEOUT_S)
    if not receipt.succeeded:
        raise ChainError(
            ChainErrorCode.REVERTED, f"{format_bytes(signed.hash)} reverted: run the command again without --yes"
        )
    return receipt


def _print_calldata(options: Writing, desk: ChainDesk, steps: Sequence[Step], facts: Mapping[str, str]) -> None:
    rows = [_call_json(step) for step in steps]
    if options.as_json:
        print_json({"chainId": desk.deployment.chain_id, **facts, "calls": rows})
        return
    lines = [f"chain: {desk.deployment.chain_id}", *(f"{name}: {value}" for name, value in facts.items())]
    for row in rows:
        lines += ["", f"step: {row['step']}", f"to: {row['to']}", f"value: {row['value']}", f"data: {row['data']}"]
    print_text("\n".join(lines))


def _print_plan(
    options: Writing,
    desk: ChainDesk,
    sender: bytes,
    estimates: Sequence[Estimate],
    fees: Fees,
    facts: Mapping[str, str],
) -> None:
    from ..config.units import format_amount

    known = sum(estimate.gas or 0 for estimate in estimates)
    open_ended = any(estimate.gas is None for estimate in estimates)
    value = sum(estimate.step.call.value for estimate in estimates)
    if options.as_json:
        rows = [{**_call_json(one.step), "gas": one.gas} for one in estimates]
        plan = {"chainId": desk.deployment.chain_id, "from": format_address(sender), **facts, "steps": rows}
        print_json({"sent": False, "plan": plan, "value": str(value), "mostForGas": str(known * fees.max_fee)})
        return
    print_text(f"chain {desk.deployment.chain_id}, from {format_address(sender)}")
    for name, text in facts.items():
        print_text(f"  {name}: {text}")
    for number, one in enumerate(estimates, 1):
        sends = f", sends {format_amount(one.step.call.value)}" if one.step.call.value else ""
        gas = "gas shows after the step before" if one.gas is None else f"gas {one.gas:,}"
        print_text(f"  {number}. {one.step.label}: {gas}{sends}")
    more = " and what the later steps take" if open_ended else ""
    print_text(f"  cost: at most {format_amount(known * fees.max_fee)} for gas{more}")
    print_text("a dry run: nothing was sent" if options.dry_run else "nothing was sent: add --yes to send")


def _print_sent(
    options: Writing, estimates: Sequence[Estimate], receipts: Sequence[TxReceipt], facts: Mapping[str, str]
) -> None:
    from ..config.units import format_amount

    if options.as_json:
        rows = [
            {
                "step": estimate.step.label,
                "transaction": format_bytes(receipt.tx_hash),
                "block": receipt.block.number,
                "gas": receipt.gas_used,
                "cost": str(receipt.gas_used * receipt.gas_price),
            }
            for estimate, receipt in zip(estimates, receipts, strict=True)
        ]
        print_json({"sent": True, **facts, "transactions": rows})
        return
    for name, text in facts.items():
        print_text(f"{name}: {text}")
    for estimate, receipt in zip(estimates, receipts, strict=True):
        cost = format_amount(receipt.gas_used * receipt.gas_price)
        print_text(
            f"done: {estimate.step.label}; {format_bytes(receipt.tx_hash)} in block {receipt.block.number}, {cost}"
        )


def _print_handed_over(options: Writing, sent: Sequence[Mapping[str, Any]], facts: Mapping[str, str]) -> None:
    if options.as_json:
        print_json({"sent": True, "byNode": True, **facts, "transactions": list(sent)})
        return
    for name, value in facts.items():
        print_text(f"{name}: {value}")
    for row in sent:
        print_text(f"done by the running node: {row['step']}; `openlora tx show {row['id'][2:14]}`")


def _call_json(step: Step) -> dict[str, Any]:
    call = step.call
    return {
        "step": step.label,
        "to": format_address(call.to),
        "value": str(call.value),
        "data": format_bytes(call.data),
    }


@contextmanager
def _waiting(what: str) -> Iterator[None]:
    """Show on a terminal that something is under way; blocks may take their time."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield
