"""The named leaves of a receipt: facts about one response under its attributionRoot and its commitmentRoot. Pure.

A leaf's value is the fact itself in 32 bytes: an id, an amount in wei, a weight or a difference as int256. So who is
shown a leaf reads it without another table. Its salt comes out of the receipt's own salt and its name: who holds the
receipt's salt can open every leaf, who is shown one leaf learns nothing of the others.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..protocol.crypto import keccak256
from ..protocol.merkle import NamedLeaf, name_hash, named_root
from ..protocol.pricing import Charge, RoyaltySchedule, Tally
from ..protocol.structs import output_hash
from .indexed import credits_root
from .parts import Behind, Output, Part, Sampling

BPS = 10_000


def salt_of(receipt_salt: bytes, name: str) -> bytes:
    """The salt of one leaf."""
    return keccak256(receipt_salt + name_hash(name))


def attribution(
    parts: tuple[Part, ...], schedule: RoyaltySchedule, before: Tally, charged: Charge, signer: bytes, salt: bytes
) -> tuple[NamedLeaf, ...]:
    """Who took part and what each gets of this response, to the wei.

    Amounts are differences of the ledger's cumulative values before and after the response, so that a ledger's
    receipts add up to what its vouchers are worth. What is left undivided by rounding may be negative in one response.
    """
    return _salted({**dict(_facts(parts, schedule, before, charged)), "signer": bytes(12) + signer}, salt)


def signer_alone(signer: bytes, salt: bytes) -> tuple[NamedLeaf, ...]:
    """The attribution of a response that failed: nobody earned anything."""
    return _salted({"signer": bytes(12) + signer}, salt)


def commitment(sampling: Sampling, output: Output, salt: bytes) -> tuple[NamedLeaf, ...]:
    """What decided the output: sampler, seeds, and what each choice came to."""
    facts = {"sampler": sampling.sampler, "mix/seed": word(sampling.mix_seed)}
    if sampling.seed is not None:
        facts["seed"] = word(sampling.seed)
    for index, tokens in enumerate(output.choices):
        facts[f"choice/{index}/output"] = output_hash(tokens)
        facts[f"choice/{index}/tokens"] = word(len(tokens))
        if index < len(output.finish_reasons):
            facts[f"choice/{index}/finish"] = text_word(output.finish_reasons[index])
    return _salted(facts, salt)


def root(leaves: tuple[NamedLeaf, ...]) -> bytes:
    """The root over leaves, 32 zero bytes when there are none."""
    return named_root(leaves)


def word(number: int) -> bytes:
    """An int256."""
    return number.to_bytes(32, "big", signed=True)


def number(value: bytes) -> int:
    """The int256 in a leaf's value."""
    return int.from_bytes(value, "big", signed=True)


def text_word(text: str) -> bytes:
    """Up to 32 bytes of text, padded with zero bytes."""
    return text.encode()[:32].ljust(32, b"\0")


def _salted(facts: dict[str, bytes], salt: bytes) -> tuple[NamedLeaf, ...]:
    return tuple(NamedLeaf(name, value, salt_of(salt, name)) for name, value in sorted(facts.items()))


def _facts(
    parts: tuple[Part, ...], schedule: RoyaltySchedule, before: Tally, charged: Charge
) -> Iterator[tuple[str, bytes]]:
    old, new = schedule.royalties(before.tokens), schedule.royalties(charged.after.tokens)
    shares = list(zip(schedule.shares(old), schedule.shares(new), strict=True))
    yield "operator/compute", word(charged.compute)
    yield "royalties/undivided", word((new - old) - sum(late - early for early, late in shares))
    for index, (part, (early, late)) in enumerate(zip(parts, shares, strict=True)):
        name = f"adapter/{index - 1}" if index else "base"
        yield name, part.artifact
        yield f"{name}/terms", word(part.terms_version)
        yield f"{name}/owner", bytes(12) + part.owner
        yield f"{name}/royalty", word(late - early)
        if index:
            yield f"{name}/weight", word(part.weight)
        counts: dict[str, int] = {}
        for behind in part.behind:
            place = counts.get(behind.kind, 0)
            counts[behind.kind] = place + 1
            inner = f"{name}/{behind.kind}/{place}"
            yield inner, behind.artifact
            yield f"{inner}/bps", word(behind.bps)
            yield f"{inner}/royalty", word(late * behind.bps // BPS - early * behind.bps // BPS)
            if any(behind.shares_root):
                yield f"{inner}/shares", behind.shares_root
            yield from _indexed(inner, behind)


def _indexed(inner: str, behind: Behind) -> Iterator[tuple[str, bytes]]:
    """What tracing found of a dataset; nothing for one that is only declared."""
    found = behind.indexed
    if found is None:
        return
    yield f"{inner}/algorithm", word(found.algorithm)
    yield f"{inner}/assigned", word(behind.credits_bps)
    yield f"{inner}/coverage", word(found.coverage)
    yield f"{inner}/credits", credits_root(found.credits)
    yield f"{inner}/index", found.index
    for place, (owner, part) in enumerate(found.credits):
        yield f"{inner}/credit/{place}", part.to_bytes(12, "big") + owner
