"""`openlora escrow signer`: keys that sign for a payer's wallet: authorize one, revoke it, see whom it signs for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import format_address
from .chaindesk import ChainDesk, Reading, address, open_desk, print_facts, with_options
from .chainwrite import Step, Writing, carry_out
from .options import NOUN

if TYPE_CHECKING:
    from openlora_chain.wallet import Wallet

signer = typer.Typer(help="Let a key sign for a wallet whose escrow pays, and revoke it.", no_args_is_help=True, **NOUN)

PROOF_S = 86_400
"""How long the signer's agreement counts: time for a wallet elsewhere to send it."""

SignerKey = Annotated[
    Path | None,
    typer.Option("--signer-key", metavar="FILE", help="Keystore of the signer. Default: the gateway's key here."),
]
SignerPassword = Annotated[
    Path | None,
    typer.Option("--signer-password-file", metavar="FILE", help="File of mode 0600. Default: as `gateway` does."),
]
Signer = Annotated[str, typer.Argument(metavar="SIGNER", help="The signer's address.")]
SignerHere = Annotated[
    str | None,
    typer.Argument(metavar="[SIGNER]", help="The signer's address. Default: that of the gateway's key here."),
]


@signer.command()
@with_options(Writing)
async def authorize(
    options: Writing, signer_key: SignerKey = None, signer_password_file: SignerPassword = None
) -> None:
    """Let a key sign for the sender, whose escrow pays then. The key belongs to the sender for ever.

    Run it where the signer's key is, for the key has to agree; the wallet may be elsewhere: --from with --calldata.
    Authorizing a revoked key calls its revocation off.
    """
    payer = options.account
    async with open_desk(options) as desk:
        key = await _signer(desk, signer_key, signer_password_file)
        if key.address == payer:
            raise typer.BadParameter("a payer signs for itself: only another key has to be authorized")
        owner, ends_at = await desk.settlement.signer_of(key.address)
        if any(owner) and owner != payer:
            raise OpenLoraError(
                ErrorCode.CHAIN_FAILED,
                f"{format_address(key.address)} belongs to {format_address(owner)} for ever: take another key"
                " (`openlora keys new`)",
            )
        if owner == payer and not ends_at:
            raise OpenLoraError(
                ErrorCode.CHAIN_FAILED, f"{format_address(key.address)} signs for this payer already: nothing to send"
            )
        deadline, proof = await _proof(desk, key, payer)
        facts = {
            "payer": format_address(payer),
            "signer": format_address(key.address),
            "sendBefore": str(deadline),
            "then": f"set gateway.payer to {format_address(payer)} where the signer's key is",
        }
        call = desk.settlement.authorize_signer(key.address, deadline, proof)
        await carry_out(options, desk, [Step("authorize the signer", call)], facts)


@signer.command()
@with_options(Writing)
async def thaw(options: Writing, signer: Signer) -> None:
    """Revoke a key of the sender's. What it signed, and signs meanwhile, redeems until the thaw is over."""
    found, payer = address(signer), options.account
    async with open_desk(options) as desk:
        owner, ends_at = await desk.settlement.signer_of(found)
        if owner != payer:
            whose = f"it signs for {format_address(owner)}" if any(owner) else "nobody authorized it"
            raise OpenLoraError(ErrorCode.CHAIN_FAILED, f"{signer} is no signer of {format_address(payer)}: {whose}")
        if ends_at:
            raise OpenLoraError(ErrorCode.CHAIN_FAILED, f"{signer} is revoked already: it ends at {ends_at} (unix)")
        thaw_s = await desk.settlement.signer_thaw()
        facts = {
            "payer": format_address(payer),
            "signer": format_address(found),
            "thawsFor": f"{thaw_s} s",
            "endsAt": str((await desk.rpc.head()).timestamp + thaw_s),
        }
        await carry_out(options, desk, [Step("revoke the signer", desk.settlement.thaw_signer(found))], facts)


@signer.command()
@with_options(Reading)
async def show(options: Reading, signer: SignerHere = None) -> None:
    """Print whom a key signs for, and until when."""
    async with open_desk(options) as desk:
        found = _gateway_key(desk) if signer is None else address(signer)
        owner, ends_at = await desk.settlement.signer_of(found)
        now = (await desk.rpc.head()).timestamp
    if not any(owner):
        state = "not authorized: signs for itself alone"
    elif not ends_at:
        state = "authorized"
    else:
        state = "thawing" if now < ends_at else "revoked"
    facts = {
        "signer": format_address(found),
        "payer": format_address(owner if any(owner) else found),
        "state": state,
        "endsAt": str(ends_at),
    }
    print_facts(facts, (), as_json=options.as_json)


signer.command("authorise", hidden=True)(authorize)
signer.command("revoke", hidden=True)(thaw)


async def _signer(desk: ChainDesk, file: Path | None, password_file: Path | None) -> Wallet:
    from openlora_chain import keystore, password

    from ..gateway.app import open_payer_key

    if file is None and password_file is None:
        return await open_payer_key(desk.config)
    secret = password.from_file(password_file) if password_file else password.from_prompt("Signer's password")
    return await keystore.load(file or desk.config.payer_keystore, secret)


def _gateway_key(desk: ChainDesk) -> bytes:
    from openlora_chain import keystore
    from openlora_chain.errors import ChainError

    try:
        return keystore.address_of(desk.config.payer_keystore)
    except ChainError:
        raise typer.BadParameter("name the signer's address: this machine has no gateway's key") from None


async def _proof(desk: ChainDesk, key: Wallet, payer: bytes) -> tuple[int, bytes]:
    """Unix second until which it counts, and the key's signature that it agrees to sign for this payer."""
    from ..protocol.structs import SignerProof

    deadline = (await desk.rpc.head()).timestamp + PROOF_S
    return deadline, SignerProof(payer=payer, deadline=deadline).sign(desk.domain, key).signature
