"""A hot key in memory: signs 32-byte digests and transactions. Its repr, errors and logs never show the key."""

from __future__ import annotations

from typing import NoReturn

from coincurve import PrivateKey
from eth_account import Account
from eth_keys.backends import get_backend
from eth_keys.backends.coincurve import CoinCurveECCBackend
from eth_utils.crypto import keccak

from .errors import ChainError, ChainErrorCode
from .transaction import SignedTransaction, UnsignedTransaction

CURVE_ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141


def require_native_crypto() -> None:
    """Refuse eth-keys' pure-Python backend: 40 times slower and not constant-time. Raises ChainError CRYPTO_BACKEND."""
    if not isinstance(get_backend(), CoinCurveECCBackend):
        raise ChainError(ChainErrorCode.CRYPTO_BACKEND)


class Wallet:
    """One secp256k1 key. `address` is 20 bytes. Serves wherever the protocol asks for a Signer."""

    __slots__ = ("_key", "address")

    def __init__(self, secret: bytes) -> None:
        require_native_crypto()
        if len(secret) != 32 or not 0 < int.from_bytes(secret, "big") < CURVE_ORDER:
            raise ChainError(ChainErrorCode.KEY_MALFORMED, "a private key is 32 bytes in the range 1..n-1")
        self._key = PrivateKey(secret)
        self.address = bytes(keccak(self._key.public_key.format(compressed=False)[1:])[12:])

    def __repr__(self) -> str:
        return f"Wallet(0x{self.address.hex()})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a wallet is not pickled: load the key file where it is needed")

    def sign_digest(self, digest: bytes) -> bytes:
        """Sign 32 bytes (RFC 6979); 65 bytes r ‖ s ‖ v, s low, v 27 or 28."""
        if len(digest) != 32:
            raise ChainError(ChainErrorCode.KEY_MALFORMED, "a digest is 32 bytes")
        signature = self._key.sign_recoverable(digest, hasher=None)
        return signature[:64] + bytes((signature[64] + 27,))

    async def sign_transaction(self, transaction: UnsignedTransaction) -> SignedTransaction:
        """Sign an EIP-1559 transaction; the same transaction gives the same bytes."""
        fields = {
            "type": 2,
            "chainId": transaction.chain_id,
            "nonce": transaction.nonce,
            "to": b"" if transaction.to is None else transaction.to,
            "value": transaction.value,
            "data": transaction.data,
            "gas": transaction.gas,
            "maxFeePerGas": transaction.max_fee,
            "maxPriorityFeePerGas": transaction.priority_fee,
        }
        signed = Account.sign_transaction(fields, self._key.secret)
        return SignedTransaction(bytes(signed.raw_transaction), bytes(signed.hash))

    def reveal(self) -> bytes:
        """The 32-byte private key, for `keystore` alone."""
        return self._key.secret
