"""Every error that the chain package raises: a stable code and a message that says what to do. Knows no other package.

The daemon maps these codes to the protocol's own; nothing outside compares message text. Messages never carry a key, a
password or a path's contents.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class ChainErrorCode(StrEnum):
    """A stable code. The member's value is what other packages see; `remedy` is the default message."""

    remedy: str

    def __new__(cls, code: str, remedy: str) -> Self:
        """Build one row of the table."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.remedy = remedy
        return member

    # Keys and passwords.
    KEY_NOT_FOUND = "KEY_NOT_FOUND", "name an existing key file, or make one with `openlora keys new`"
    KEY_EXISTS = "KEY_EXISTS", "a file of that name exists: choose another name; key files are never overwritten"
    KEY_UNSAFE = "KEY_UNSAFE", "give the file to this user with mode 0600"
    KEY_MALFORMED = "KEY_MALFORMED", "this is no keystore v3 file, or its key derivation is out of bounds"
    PASSWORD_MISSING = "PASSWORD_MISSING", "give a password file, a systemd credential, or a terminal to ask on"
    PASSWORD_WRONG = "PASSWORD_WRONG", "the password does not open this key file"
    CRYPTO_BACKEND = (
        "CRYPTO_BACKEND",
        "install coincurve and unset ECC_BACKEND_CLASS: the pure-Python backend is 40x slower",
    )
    SIGNER_REFUSED = "SIGNER_REFUSED", "the external signer gave no transaction, or not the one that was asked for"

    # The node that answers JSON-RPC.
    RPC_UNREACHABLE = "RPC_UNREACHABLE", "check chain.rpc_urls and the network; nothing is lost meanwhile"
    RPC_RATE_LIMITED = "RPC_RATE_LIMITED", "the RPC asks to slow down: raise chain.poll_interval or use a larger plan"
    RPC_FAILED = "RPC_FAILED", "the RPC answered with an error: see its message"
    RPC_INCONSISTENT = "RPC_INCONSISTENT", "the RPC contradicts itself: use another, or wait until it has caught up"
    WRONG_CHAIN = "WRONG_CHAIN", "point chain.rpc_urls at the chain that the deployment names"

    # Contracts.
    CONTRACT_MISMATCH = "CONTRACT_MISMATCH", "use the deployment file that fits this version and chain"
    DEPLOYMENT_UNSET = (
        "DEPLOYMENT_UNSET",
        "no contracts are known on this network: deploy them, or name a deployment file",
    )
    DEPLOYMENT_MALFORMED = (
        "DEPLOYMENT_MALFORMED",
        "this is no deployment file: write one with `openlora contracts deploy`",
    )
    REVERTED = "REVERTED", "the contract refused the call: see the error it names"

    # Transactions.
    INTENT_CONFLICT = "INTENT_CONFLICT", "this kind and subject is already taken by a transaction with other contents"
    INTENT_UNKNOWN = "INTENT_UNKNOWN", "no transaction has that id: `openlora tx list` shows them"
    INTENT_STATE = "INTENT_STATE", "the transaction is no longer in a state that allows this"
    OUTBOX_FULL = "OUTBOX_FULL", "too many transactions wait: look at `openlora tx list` for what blocks them"
    INSUFFICIENT_FUNDS = "INSUFFICIENT_FUNDS", "send the missing wei to the sending key"
    FEE_CAP = "FEE_CAP", "the chain's base fee is above chain.max_fee: wait, or raise it"

    # The development chain.
    DEVNET_RUNNING = "DEVNET_RUNNING", "a devnet already uses this directory or port: stop it, or choose others"
    DEVNET_FAILED = "DEVNET_FAILED", "the development chain did not start: see the message"


class ChainError(Exception):
    """An error with a stable code and one sentence that says what to do."""

    def __init__(self, code: ChainErrorCode, message: str | None = None) -> None:
        self.code = code
        self.message = message or code.remedy
        super().__init__(f"{code.value}: {self.message}")


class RpcError(ChainError):
    """The node answered with an error object or not at all; `rpc_code` is the JSON-RPC code, None without an answer."""

    def __init__(self, code: ChainErrorCode, message: str, *, rpc_code: int | None = None) -> None:
        super().__init__(code, message)
        self.rpc_code = rpc_code


class Reverted(ChainError):
    """A call or transaction that the EVM reverted. `data` is the raw revert data, empty when the node gave none."""

    def __init__(self, data: bytes, message: str | None = None) -> None:
        super().__init__(ChainErrorCode.REVERTED, message or f"reverted with data 0x{data.hex()}")
        self.data = data
