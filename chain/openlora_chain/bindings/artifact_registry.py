"""The artifact registry: owners, terms and access of bases, adapters and datasets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from .contract import Calldata, Contract

TermsTuple: TypeAlias = tuple[int, int, Sequence[tuple[bytes, int]]]
"""(rate, creditsBps, [(component id, bps)])"""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A registered artifact; kind 0 (None), 1 (Base), 2 (Adapter), 3 (Dataset)."""

    owner: bytes
    kind: int
    latest_version: int
    pending_owner: bytes
    shares_root: bytes


@dataclass(frozen=True, slots=True)
class TermsVersion:
    """One version of an artifact's terms: wei per 1,000,000 tokens, unix seconds, basis points."""

    rate: int
    created_at: int
    credits_bps: int
    components: tuple[tuple[bytes, int], ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """A door's rule: mode 0 (public), 1 (allow-list), 2 (licence); what a licence lasts in seconds and costs in wei."""

    mode: int
    duration: int
    price: int


class ArtifactRegistry(Contract):
    """Artifacts, their owners, terms and access policies."""

    name = "ArtifactRegistry"

    async def owner_of(self, artifact: bytes) -> bytes:
        """The owner, 20 zero bytes while unregistered."""
        return bytes((await self._read("ownerOf", artifact))[0])

    async def artifact_of(self, artifact: bytes) -> Artifact:
        """Everything known of an artifact, all zero while unregistered."""
        return Artifact(*(await self._read("artifactOf", artifact))[0])

    async def terms_of(self, artifact: bytes, version: int) -> TermsVersion:
        """One version of its terms, from 1. Raises ChainError REVERTED where there is none."""
        (rate, created_at, credits_bps, _count), components = await self._read("termsOf", artifact, version)
        return TermsVersion(rate, created_at, credits_bps, tuple((part, bps) for part, bps in components))

    async def terms_grace(self) -> int:
        """Seconds that superseded terms still redeem."""
        return int((await self._read("TERMS_GRACE"))[0])

    async def rate_of(self, artifact: bytes, version: int) -> int | None:
        """Wei per 1,000,000 tokens under these terms, None if they do not exist."""
        _, rate, exists = await self._read("rateOf", artifact, version)
        return int(rate) if exists else None

    async def accepted_until(self, artifact: bytes, version: int) -> int:
        """Until when these terms redeem, unix seconds."""
        return int((await self._read("acceptedUntil", artifact, version))[0])

    async def has_access(self, artifact: bytes, scope: int, subject: bytes) -> bool:
        """Whether a payer (scope use) or node (scope host), as 32 bytes, may."""
        return bool((await self._read("hasAccess", artifact, scope, subject))[0])

    async def policy_of(self, artifact: bytes, scope: int) -> Policy:
        """Who passes a door, and what a licence costs; public while the artifact is unregistered."""
        return Policy(*(await self._read("policyOf", artifact, scope))[0])

    async def licensed_until(self, artifact: bytes, scope: int, subject: bytes) -> int:
        """Last second of a subject's (32 bytes) licence, unix; 0 without one."""
        return int((await self._read("licensedUntil", artifact, scope, subject))[0])

    async def is_listed(self, artifact: bytes, scope: int, subject: bytes) -> bool:
        """Whether a subject (32 bytes) stands on a door's list."""
        return bool((await self._read("isListed", artifact, scope, subject))[0])

    async def commitment_of(self, owner: bytes, artifact: bytes, salt: bytes) -> bytes:
        """What `commit` takes."""
        return bytes((await self._read("commitmentOf", owner, artifact, salt))[0])

    async def min_commit_age(self) -> int:
        """Seconds between commit and register."""
        return int((await self._read("MIN_COMMIT_AGE"))[0])

    async def max_commit_age(self) -> int:
        """Seconds after which a commitment is void."""
        return int((await self._read("MAX_COMMIT_AGE"))[0])

    async def committed_at(self, account: bytes, commitment: bytes) -> int:
        """When a commitment was made, unix seconds; 0 without one, and once it was used."""
        return int((await self._read("committedAt", account, commitment))[0])

    async def claimable(self, account: bytes) -> int:
        """Wei of licences sold, and change of licences bought, that `claim` pays."""
        return int((await self._read("claimable", account))[0])

    def claim(self, account: bytes) -> Calldata:
        """Pay an account what its licences brought."""
        return self._write("claim", account)

    def commit(self, commitment: bytes) -> Calldata:
        """First step of a registration: nobody sees what."""
        return self._write("commit", commitment)

    def register(
        self, artifact: bytes, kind: int, shares_root: bytes, metadata: str, terms: TermsTuple, salt: bytes
    ) -> Calldata:
        """Second step."""
        return self._write("register", artifact, kind, shares_root, metadata, terms, salt)

    def set_terms(self, artifact: bytes, terms: TermsTuple) -> Calldata:
        """A new version of the terms."""
        return self._write("setTerms", artifact, terms)

    def set_policy(self, artifact: bytes, scope: int, mode: int, price: int, duration: int) -> Calldata:
        """Who may use or host."""
        return self._write("setPolicy", artifact, scope, mode, price, duration)

    def set_listed(self, artifact: bytes, scope: int, subjects: Sequence[bytes], *, listed: bool) -> Calldata:
        """Put on or take off the allow-list."""
        return self._write("setListed", artifact, scope, list(subjects), listed)

    def buy(
        self, artifact: bytes, scope: int, subject: bytes, max_price: int, min_duration: int, price: int
    ) -> Calldata:
        """Buy a licence."""
        return self._write("buy", artifact, scope, subject, max_price, min_duration, value=price)

    def transfer_ownership(self, artifact: bytes, new_owner: bytes) -> Calldata:
        """Offer the artifact to another owner, who accepts."""
        return self._write("transferOwnership", artifact, new_owner)

    def accept_ownership(self, artifact: bytes) -> Calldata:
        """Take over an artifact."""
        return self._write("acceptOwnership", artifact)
