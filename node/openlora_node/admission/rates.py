"""How often one peer, one address and one signer may knock. Bounded tables; the caller brings the time."""

from __future__ import annotations

import math

from ..network.buckets import Allowance, Buckets
from ..protocol.errors import ErrorCode
from .values import Refusal

MAX_WAIT_MS = 3_600_000


class Rates:
    """The three allowances of the door. `now` is in seconds and only grows."""

    def __init__(self, *, peer: Allowance, ip: Allowance, signer: Allowance, max_keys: int = 16_384) -> None:
        self._peer, self._ip, self._signer = peer, ip, signer
        self._peers: Buckets[str] = Buckets(peer, max_keys)
        self._ips: Buckets[str] = Buckets(ip, max_keys)
        self._signers: Buckets[bytes] = Buckets(signer, max_keys)

    def peer(self, peer: str, ip: str | None, now: float) -> Refusal | None:
        """Count one knock of a peer and of its address; a peer without an address is counted as a peer only."""
        if not self._peers.take(peer, now):
            return _wait("this peer sends", self._peer, self._peers.level(peer, now))
        if ip is not None and not self._ips.take(ip, now):
            return _wait("this address sends", self._ip, self._ips.level(ip, now))
        return None

    def signer(self, signer: bytes, now: float) -> Refusal | None:
        """Count one request of whoever signed it: a forged one counts for the forger's key, not for the payer's."""
        if not self._signers.take(signer, now):
            return _wait("this signer sends", self._signer, self._signers.level(signer, now))
        return None


def _wait(who: str, allowance: Allowance, level: float) -> Refusal:
    wait = MAX_WAIT_MS if allowance.rate <= 0 else min(MAX_WAIT_MS, math.ceil(1000 * (1 - level) / allowance.rate))
    return Refusal(
        ErrorCode.RATE_LIMITED, f"{who} more than the door allows: wait {max(1, wait)} ms", retry_after_ms=max(1, wait)
    )
