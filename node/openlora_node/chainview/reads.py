"""The cached reads of the chain view: terms, access, escrow, signers, and which event makes which of them untrue."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from openlora_chain import events
from openlora_chain.bindings import ArtifactRegistry, Settlement
from openlora_chain.errors import ChainError, ChainErrorCode
from openlora_chain.events import Event
from openlora_chain.rpc import Rpc

from ..protocol.crypto import Address
from ..protocol.errors import ErrorCode, OpenLoraError
from .cache import Cache
from .values import FOREVER, EscrowState, Scope, Terms

T = TypeVar("T")

READ_TIMEOUT_S = 8.0
FRESH_S = 60.0
"""Age at which an answer that no event touched is read again: a node may have left the event out."""
ACCESS_FRESH_S = 15.0
"""Licences end by time, without an event."""
STALE_S = 600.0
"""Age up to which terms and signers serve while the chain does not answer."""
ESCROW_STALE_S = 120.0
"""The same for escrow, and never more than half its thaw: money cannot leave faster than that."""


class Reads:
    """Read from one event loop. `trusted` are the endpoints found to serve the right chain and contracts."""

    def __init__(
        self,
        rpc: Rpc,
        artifacts: ArtifactRegistry,
        settlement: Settlement,
        clock: Callable[[], float],
        *,
        escrow_fresh_s: float,
        timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        self._artifacts = artifacts
        self._settlement = settlement
        self._timeout_s = timeout_s
        self._rpc = rpc
        self.trusted: set[int] = set()
        self.terms = Cache("terms", self._terms, clock, size=4_096, fresh_s=FRESH_S, stale_s=STALE_S)
        self.terms_at = Cache("terms-at", self._terms_at, clock, size=8_192, fresh_s=FRESH_S, stale_s=STALE_S)
        self.until = Cache("accepted-until", self._until, clock, size=8_192, fresh_s=FRESH_S, stale_s=STALE_S)
        self.access = Cache("access", self._access, clock, size=16_384, fresh_s=ACCESS_FRESH_S, stale_s=STALE_S)
        self.signers = Cache("signers", self._signer, clock, size=8_192, fresh_s=FRESH_S, stale_s=STALE_S)
        self.escrow = Cache("escrow", self._escrow, clock, size=8_192, fresh_s=escrow_fresh_s, stale_s=0.0)

    async def learn_thaw(self) -> None:
        """Read how long escrow thaws. Raises ChainError."""
        self.escrow.stale_s = min(ESCROW_STALE_S, await self._settlement.escrow_thaw() / 2)

    def forget(self, event: Event) -> None:
        """Drop what the event makes untrue, whether it came or was undone."""
        match event:
            case events.ArtifactRegistered(artifact=artifact) | events.OwnerChanged(artifact=artifact):
                self._forget_terms(artifact)
                self.access.drop_where(lambda key: key[0] == artifact)
            case events.TermsChanged(artifact=artifact):
                self._forget_terms(artifact)
            case events.PolicyChanged(artifact=artifact, scope=scope):
                self.access.drop_where(lambda key: key[:2] == (artifact, scope))
            case events.ListingChanged() | events.LicenceBought():
                self.access.drop((event.artifact, Scope(event.scope), event.subject))
            case events.ThawStarted(payer=payer, node=node):
                self.escrow.drop((payer, node))
            case events.SignerAuthorized(payer=payer, signer=signer) | events.SignerThawing(payer=payer, signer=signer):
                self.signers.drop((payer, signer))
            case _:
                pass

    def forget_all(self) -> None:
        """After a reorg: events that nobody follows may be undone too."""
        for cache in (self.terms, self.terms_at, self.until, self.access, self.signers, self.escrow):
            cache.clear()

    def _forget_terms(self, artifact: bytes) -> None:
        self.terms.drop(artifact)
        self.terms_at.drop_where(lambda key: key[0] == artifact)
        self.until.drop_where(lambda key: key[0] == artifact)

    async def _terms(self, artifact: bytes) -> Terms:
        held = await self._ask(self._artifacts.artifact_of(artifact))
        found = await self._version(artifact, held.latest_version)
        assert found is not None
        return found

    async def _terms_at(self, key: tuple[bytes, int]) -> Terms | None:
        return await self._version(*key)

    async def _version(self, artifact: bytes, version: int) -> Terms | None:
        held = await self._ask(self._artifacts.artifact_of(artifact))
        if version > held.latest_version:
            return None
        owner = Address(held.owner)
        if version == 0:
            return Terms(artifact, held.kind, owner, shares_root=held.shares_root)
        terms = await self._ask(self._artifacts.terms_of(artifact, version))
        return Terms(
            artifact=artifact,
            kind=held.kind,
            owner=owner,
            version=version,
            rate=terms.rate,
            shares_root=held.shares_root,
            credits_bps=terms.credits_bps,
            components=terms.components,
        )

    async def _until(self, key: tuple[bytes, int]) -> int:
        try:
            return min(await self._ask(self._artifacts.accepted_until(*key), refusal="UnknownTerms"), FOREVER)
        except _RefusedError:
            return 0

    async def _access(self, key: tuple[bytes, Scope, bytes]) -> bool:
        return await self._ask(self._artifacts.has_access(*key))

    async def _signer(self, key: tuple[bytes, bytes]) -> bool:
        return await self._ask(self._settlement.may_sign(*key))

    async def _escrow(self, key: tuple[bytes, bytes]) -> EscrowState:
        account = await self._ask(self._settlement.account_of(*key))
        return EscrowState(account.balance, account.thawing, account.thaw_end)

    async def _ask(self, read: Awaitable[T], refusal: str | None = None) -> T:
        """The answer, in time. Raises OpenLoraError CHAIN_FAILED, _RefusedError for the contract error expected."""
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await read
        except TimeoutError:
            raise OpenLoraError(
                ErrorCode.CHAIN_FAILED, "the chain's endpoint does not answer in time: check chain.rpc_urls"
            ) from None
        except ChainError as error:
            if refusal is not None and error.code is ChainErrorCode.REVERTED and refusal in error.message:
                raise _RefusedError from None
            raise failed(error) from None
        if self._rpc.endpoint not in self.trusted:
            raise OpenLoraError(ErrorCode.CHAIN_FAILED, "the chain's endpoint is being checked: try again in a moment")
        return answer


class _RefusedError(Exception):
    """The contract refused a read in the way that was expected."""


def failed(error: ChainError) -> OpenLoraError:
    """An error of the chain package as one of ours."""
    return OpenLoraError(ErrorCode.CHAIN_FAILED, f"{error.code.value}: {error.message}")
