"""What the artifact registry tells."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ArtifactRegistered:
    """ArtifactRegistry: a new artifact."""

    artifact: bytes
    kind: int
    owner: bytes
    shares_root: bytes
    metadata: str


@dataclass(frozen=True, slots=True)
class TermsChanged:
    """ArtifactRegistry: new terms; those before redeem for the grace period."""

    artifact: bytes
    version: int
    rate: int
    credits_bps: int
    components: tuple[tuple[bytes, int], ...]


@dataclass(frozen=True, slots=True)
class OwnerChanged:
    """ArtifactRegistry: the artifact has another owner."""

    artifact: bytes
    old_owner: bytes
    new_owner: bytes


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """ArtifactRegistry: a door (scope 0 use, 1 host) has another rule."""

    artifact: bytes
    scope: int
    mode: int
    price: int
    duration: int


@dataclass(frozen=True, slots=True)
class ListingChanged:
    """ArtifactRegistry: a subject was put on a door's list or taken off."""

    artifact: bytes
    scope: int
    subject: bytes
    listed: bool


@dataclass(frozen=True, slots=True)
class LicenceBought:
    """ArtifactRegistry: a licence was bought or prolonged."""

    artifact: bytes
    scope: int
    subject: bytes
    buyer: bytes
    owner: bytes
    price: int
    until: int


EVENTS = (
    ArtifactRegistered,
    TermsChanged,
    OwnerChanged,
    PolicyChanged,
    ListingChanged,
    LicenceBought,
)
