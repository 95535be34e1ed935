"""What the credits contract tells."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CreditsPosted:
    """Credits: a root was posted or replaced. `leaves` names its table; from `activates_at` on it can be activated."""

    node: bytes
    dataset: bytes
    epoch: int
    root: bytes
    leaves: bytes
    total_credited: int
    accrued_through: int
    activates_at: int


@dataclass(frozen=True, slots=True)
class CreditsVetoed:
    """Credits: the dataset's owner refused a post; what it would have decided went by shares."""

    node: bytes
    dataset: bytes
    epoch: int
    to_shares: int


@dataclass(frozen=True, slots=True)
class CreditsActivated:
    """Credits: a root came into force; what it left over went by shares."""

    node: bytes
    dataset: bytes
    epoch: int
    credited: int
    to_shares: int


@dataclass(frozen=True, slots=True)
class CreditsLapsed:
    """Credits: nobody posted in time; the pool went by shares."""

    node: bytes
    dataset: bytes
    to_shares: int


EVENTS = (
    CreditsPosted,
    CreditsVetoed,
    CreditsActivated,
    CreditsLapsed,
)
