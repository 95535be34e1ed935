"""Who a response was made with: the artifacts of its pipeline and the artifacts behind them, as the chain had them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Indexed:
    """What one dataset has in a response, as anyone with its text and the dataset's index finds again."""

    index: bytes
    """Digest of the index."""
    algorithm: int
    coverage: int
    """How much of the response the dataset covers, of 1,000,000."""
    credits: tuple[tuple[bytes, int], ...] = ()
    """(contributor, part of that, of 1,000,000), ascending by address, each once."""


@dataclass(frozen=True)
class Behind:
    """An artifact that another passes royalties on to, or was trained on: a dataset, or an adapter's base."""

    artifact: bytes
    bps: int
    """Its registered part of the other's royalties, in basis points; 0 where it is only declared."""
    shares_root: bytes = bytes(32)
    """Of its contributors' share table; 32 zero bytes without one."""
    kind: str = "dataset"
    credits_bps: int = 0
    """Part of a dataset's income that its owner assigned to credits by use, in basis points."""
    indexed: Indexed | None = None
    """None while the dataset is only declared."""


@dataclass(frozen=True)
class Part:
    """One artifact of a pipeline under one version of its terms. Weights are ten-thousandths, a base's is 10,000."""

    artifact: bytes
    terms_version: int
    weight: int
    owner: bytes
    behind: tuple[Behind, ...] = ()


@dataclass(frozen=True)
class Sampling:
    """What decided the output beside the weights: hashes and numbers only, never the prompt."""

    sampler: bytes
    """Keccak-256 of the sampling settings in canonical form: they may quote the prompt, so only the hash is kept."""
    seed: int | None = None
    """The seed that the body gave; None where it gave none."""
    mix_seed: int = 0


@dataclass(frozen=True)
class Output:
    """The generated tokens of every choice, in order of the choices, and how each ended."""

    choices: tuple[tuple[int, ...], ...]
    finish_reasons: tuple[str, ...] = ()

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All choices in order of their index: what outputHash is over."""
        return tuple(token for choice in self.choices for token in choice)

    @property
    def count(self) -> int:
        """Generated tokens of all choices."""
        return sum(map(len, self.choices))
