"""The leaves behind a receipt's roots, held against what was ordered: who earns what of a response, to the wei. Pure.

A receipt's signature covers two roots. Which artifacts stand below them, with which weights and at which rates, and
what the chain says that each passes on, is known here: a node that states anything else is not paid. What a trace found
in a dataset is only held to be possible: whoever has the text finds it again (`attribution.replay`). Leaves of other
names than those of docs/serving.md are not judged; they lead to the roots as all others do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..attribution import Evidence
from ..attribution.indexed import MAX_CREDITED, read_datasets
from ..attribution.leaves import BPS, number, word
from ..openai import Body
from ..protocol.merkle import NamedLeaf, named_root
from ..protocol.pipeline import WEIGHT_ONE
from ..protocol.pricing import TOKENS_PER_RATE
from ..protocol.structs import Receipt, ReceiptStatus, output_hash
from ..serving.sampler import sampler_hash, seed_of
from .checking import refused
from .offers import Components, Offer

JUDGED = frozenset({"base", "adapter", "royalties", "operator", "signer"})
"""First words of the names that only the leaves of docs/serving.md may have."""
TRACED = ("index", "algorithm", "assigned", "coverage", "credits")


@dataclass(frozen=True)
class Ordered:
    """What the leaves must tell of."""

    offer: Offer
    signer: bytes
    """Who signed the request."""
    choices: Sequence[Sequence[int]] | None = None
    """Token ids by choice; None where they are not known any more."""
    body: Body | None = None
    """What was asked, as the node got it; None where it is not known any more."""


def check_evidence(receipt: Receipt, evidence: Evidence, ordered: Ordered) -> None:
    """Everything that a receipt's leaves claim. Raises RECEIPT_INVALID naming what does not hold."""
    if named_root(evidence.attribution) != receipt.attribution_root:
        raise refused("its attribution leaves do not lead to attributionRoot")
    if named_root(evidence.commitment) != receipt.commitment_root:
        raise refused("its commitment leaves do not lead to commitmentRoot")
    facts = _Facts(evidence.attribution)
    facts.expect("signer", bytes(12) + ordered.signer)
    if receipt.status != ReceiptStatus.FAILED:
        _check_split(facts, receipt, ordered.offer)
        _check_output(_Facts(evidence.commitment), ordered)
    if left := facts.left():
        raise refused(f"it has a leaf that has no place there: {left}")


class _Facts:
    """Leaves by name, and which of them were looked at."""

    def __init__(self, leaves: Sequence[NamedLeaf]) -> None:
        self.values = {leaf.name: leaf.value for leaf in leaves}
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def take(self, name: str) -> bytes:
        """A leaf's value, 32 bytes."""
        if name not in self.values:
            raise refused(f"the leaf {name} is missing")
        self._taken.add(name)
        return self.values[name]

    def amount(self, name: str) -> int:
        """A leaf's value as a number."""
        return number(self.take(name))

    def expect(self, name: str, value: bytes) -> None:
        """A leaf that can say one thing only."""
        if self.take(name) != value:
            raise refused(f"the leaf {name} states something else than was ordered")

    def left(self) -> str | None:
        """The first leaf that nobody looked at among those that are judged."""
        return next((name for name in self.values if name not in self._taken and _is_judged(name)), None)


def _is_judged(name: str) -> bool:
    """Whatever has an index counts as a dataset when credits are added up."""
    return name.partition("/")[0] in JUDGED or name.endswith("/index")


def _check_split(facts: _Facts, receipt: Receipt, offer: Offer) -> None:
    """Each artifact of the pipeline under its terms, its part of the royalties, and what it passes on."""
    weights = (None, *(adapter.weight for adapter in offer.pipeline.adapters))
    parts = zip(offer.quote.royalties, weights, offer.schedule.numerators, offer.components, strict=True)
    split = 0
    for place, (quoted, weight, numerator, components) in enumerate(parts):
        name = f"adapter/{place - 1}" if place else "base"
        facts.expect(name, quoted.artifact)
        facts.expect(f"{name}/terms", word(quoted.terms_version))
        facts.expect(f"{name}/owner", bytes(12) + quoted.owner)
        if weight is not None:
            facts.expect(f"{name}/weight", word(weight))
        share = facts.amount(f"{name}/royalty")
        # A difference of two amounts that were each rounded down twice: less than two wei from its exact value.
        whole = WEIGHT_ONE * TOKENS_PER_RATE
        if abs(share * whole - receipt.tokens * numerator) >= 2 * whole:
            raise refused(f"the leaf {name}/royalty is not what the quote's rate comes to")
        _check_behind(facts, name, share, components)
        split += share
    split += facts.amount("royalties/undivided")
    if (facts.amount("operator/compute"), split) != (receipt.compute, receipt.royalties):
        raise refused("its leaves do not add up to its fee")
    try:
        tuple(read_datasets(facts.values))
    except KeyError as missing:
        raise refused(f"the leaf {missing.args[0]} is missing") from None


def _check_behind(facts: _Facts, name: str, share: int, components: Components) -> None:
    """What an artifact passes royalties on to, by the chain; and what it says that it was trained on, for nothing."""
    registered, seen = dict(components), set()
    for kind in ("dataset", "base"):
        place = 0
        while (inner := f"{name}/{kind}/{place}") in facts:
            place += 1
            artifact, bps, wei = facts.take(inner), facts.amount(f"{inner}/bps"), facts.amount(f"{inner}/royalty")
            if artifact in seen:
                raise refused(f"{inner} stands there twice")
            seen.add(artifact)
            if bps != registered.get(artifact, 0):
                raise refused(f"the leaf {inner}/bps is not what the chain passes on")
            if abs(wei * BPS - share * bps) >= BPS:
                raise refused(f"the leaf {inner}/royalty is not its part of what {name} earned")
            _take_traced(facts, inner)
    if missing := registered.keys() - seen:
        raise refused(f"{min(missing).hex()[:16]}…, to which {name} passes royalties on, is missing")


def _take_traced(facts: _Facts, inner: str) -> None:
    """The leaves that a dataset may have beyond its royalty; `read_datasets` judges them."""
    if f"{inner}/shares" in facts:
        facts.take(f"{inner}/shares")
    if f"{inner}/index" in facts:
        for what in TRACED:
            facts.take(f"{inner}/{what}")
        for place in range(MAX_CREDITED):
            if f"{inner}/credit/{place}" in facts:
                facts.take(f"{inner}/credit/{place}")


def _check_output(facts: _Facts, ordered: Ordered) -> None:
    """What the node commits to is what was asked and what came."""
    if ordered.body is not None:
        facts.expect("sampler", sampler_hash(ordered.body))
        seed = seed_of(ordered.body)
        if seed is not None:
            facts.expect("seed", word(seed))
        elif "seed" in facts:
            raise refused("it states a seed that was not asked for")
    if ordered.choices is None:
        return
    for place, tokens in enumerate(ordered.choices):
        facts.expect(f"choice/{place}/output", output_hash(tuple(tokens)))
        facts.expect(f"choice/{place}/tokens", word(len(tokens)))
    if f"choice/{len(ordered.choices)}/output" in facts:
        raise refused("it commits to a choice that was not asked for")
