"""The leaves behind a receipt: an honest node's hold whatever was rounded, and nothing else is taken. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.attribution import Behind, Evidence, Output, Part, Sampling, leaves
from openlora_node.attribution.evidence import MAX_LEAVES
from openlora_node.attribution.indexed import MAX_CREDITED, credits_root
from openlora_node.attribution.parts import Indexed
from openlora_node.gateway.evidence import Ordered, check_evidence
from openlora_node.gateway.offers import Offer
from openlora_node.openai import parse_body
from openlora_node.protocol import messages
from openlora_node.protocol.crypto import LocalSigner
from openlora_node.protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from openlora_node.protocol.manifest import MAX_DATASETS
from openlora_node.protocol.merkle import NamedLeaf, named_root
from openlora_node.protocol.pipeline import Adapter, Pipeline
from openlora_node.protocol.pricing import ComputeRates, RoyaltySchedule, Tally, charge
from openlora_node.protocol.structs import Quote, Receipt, ReceiptStatus, Royalty, output_hash
from openlora_node.serving.sampler import sampler_hash, seed_of
from support.gateway_world import DOMAIN

KEY, SIGNER, SALT = LocalSigner(b"\x07" * 32), b"\x51" * 20, b"\x5a" * 32
BASE, ADAPTER, DATASET, DECLARED = (bytes([place]) * 32 for place in (0xB0, 0xA1, 0xD0, 0xD1))
PIPELINE = Pipeline.of(BASE, Adapter(id=ADAPTER, terms_version=1, weight=-5_000), base_terms_version=2)
RATES = (3_000_000_001, 7_000_000_001)
OWNERS = (b"\x01" * 20, b"\x02" * 20)
COMPONENTS = (((DATASET, 1_000),), ((DATASET, 3_333), (BASE, 1_000)))
WHO = tuple(bytes([0xC0, place]) * 10 for place in range(MAX_CREDITED))
FOUND = Indexed(b"\x1d" * 32, 1, 400_000, ((WHO[0], 250_000), (WHO[1], 600_000)))
BODY = parse_body(b'{"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "seed": 4}', 1 << 20)
CHOICES = ((1, 2, 3), (4, 5))
PARTS = (
    Part(BASE, 2, 10_000, OWNERS[0], (Behind(DATASET, 1_000, b"\x05" * 32),)),
    Part(
        ADAPTER, 1, -5_000, OWNERS[1],
        (Behind(DATASET, 3_333, b"\x05" * 32, credits_bps=5_000, indexed=FOUND), Behind(BASE, 1_000, kind="base"),
         Behind(DECLARED, 0)),
    ),
)  # fmt: skip


def offer() -> Offer:
    quote = Quote(
        payer=b"\x50" * 20,
        node=b"\x4e" * 32,
        pipeline_id=PIPELINE.id,
        input_rate=1_500_000,
        output_rate=2_500_003,
        royalties=tuple(
            Royalty(artifact=part.artifact, terms_version=part.terms_version, rate=rate, owner=part.owner)
            for part, rate in zip(PARTS, RATES, strict=True)
        ),
        settlement_charge=11,
        issued_at=1,
        expires_at=100,
    ).sign(DOMAIN, KEY)
    schedule = RoyaltySchedule.quoted(PIPELINE, quote.value)
    rates = ComputeRates(quote.value.input_rate, quote.value.output_rate)
    return Offer(quote, quote.value.digest(DOMAIN), PIPELINE, schedule, rates, COMPONENTS)


OFFER = offer()
ORDERED = Ordered(OFFER, SIGNER, CHOICES, BODY)
LEAST_WEIGHT = -(((1 << 31) - 1) // 500 * 500)
Facts = dict[str, bytes]


def facts_of(before: Tally, prompt: int = 7) -> tuple[Facts, Facts, tuple[int, int]]:
    """Both groups as an honest node has them, and the receipt's compute and royalties."""
    tokens = sum(map(len, CHOICES))
    charged = charge(before, OFFER.schedule, OFFER.rates, prompt, tokens, OFFER.quote.settlement_charge)
    attribution = leaves.attribution(PARTS, OFFER.schedule, before, charged, SIGNER, SALT)
    sampling = Sampling(sampler_hash(BODY), seed_of(BODY))
    commitment = leaves.commitment(sampling, Output(CHOICES, ("stop", "length")), SALT)
    named = ({leaf.name: leaf.value for leaf in group} for group in (attribution, commitment))
    return (*named, (charged.compute, charged.royalties))  # type: ignore[return-value]


def salted(facts: Facts) -> tuple[NamedLeaf, ...]:
    return tuple(NamedLeaf(name, value, leaves.salt_of(SALT, name)) for name, value in sorted(facts.items()))


def signed_for(
    attribution: Facts, commitment: Facts, fee: tuple[int, int], prompt: int = 7, **changes: Any
) -> tuple[Receipt, Evidence]:
    """A receipt over these leaves."""
    evidence = Evidence(salted(attribution), salted(commitment))
    receipt = Receipt(
        request_digest=b"\x0e" * 32,
        payer=OFFER.quote.payer,
        node=OFFER.node,
        pipeline_id=PIPELINE.id,
        status=ReceiptStatus.COMPLETE,
        engine_digest=bytes(32),
        prompt_tokens=prompt,
        completion_tokens=sum(map(len, CHOICES)),
        output_hash=bytes(32),
        attribution_root=named_root(evidence.attribution),
        commitment_root=named_root(evidence.commitment),
        compute=fee[0],
        royalties=fee[1],
        started_at=1,
        finished_at=2,
        seq=1,
        previous=bytes(32),
    )
    return msgspec.structs.replace(receipt, **changes), evidence


@given(
    tokens=st.integers(0, 1 << 40),
    micro=st.integers(0, 1 << 80),
    prompt=st.integers(0, 100_000),
)
def test_what_an_honest_node_states_holds_wherever_its_ledger_stands(tokens: int, micro: int, prompt: int) -> None:
    attribution, commitment, fee = facts_of(Tally(tokens, micro), prompt)
    receipt, evidence = signed_for(attribution, commitment, fee, prompt)
    check_evidence(receipt, evidence, ORDERED)
    check_evidence(receipt, Evidence.read(evidence.pack(), SALT), ORDERED)
    check_evidence(receipt, evidence, Ordered(OFFER, SIGNER))


def amount(name: str, by: int) -> Callable[[Facts, Facts], None]:
    """A leaf's number, changed."""

    def change(attribution: Facts, _: Facts) -> None:
        attribution[name] = leaves.word(leaves.number(attribution[name]) + by)

    return change


def shifted(giver: str, taker: str, wei: int) -> Callable[[Facts, Facts], None]:
    def change(attribution: Facts, commitment: Facts) -> None:
        amount(giver, -wei)(attribution, commitment)
        amount(taker, wei)(attribution, commitment)

    return change


def stated(name: str, value: bytes) -> Callable[[Facts, Facts], None]:
    def change(attribution: Facts, commitment: Facts) -> None:
        (commitment if name in commitment or name.startswith(("choice", "seed")) else attribution)[name] = value

    return change


def without(*names: str) -> Callable[[Facts, Facts], None]:
    """Leaves, and what stands below them, left out."""

    def change(attribution: Facts, commitment: Facts) -> None:
        for facts in (attribution, commitment):
            for name in [name for name in facts if any(name == one or name.startswith(f"{one}/") for one in names)]:
                del facts[name]

    return change


def renumbered(attribution: Facts, commitment: Facts) -> None:
    """The registered dataset is gone, and the declared one has its place."""
    for name in sorted(attribution):
        if name.startswith("adapter/0/dataset/0"):
            del attribution[name]
    for name in sorted(attribution):
        if name.startswith("adapter/0/dataset/1"):
            attribution[name.replace("dataset/1", "dataset/0")] = attribution.pop(name)


def credited(*parts: tuple[bytes, int]) -> Callable[[Facts, Facts], None]:
    def change(attribution: Facts, _: Facts) -> None:
        inner = "adapter/0/dataset/0"
        attribution[f"{inner}/credits"] = credits_root(parts)
        for place, (owner, part) in enumerate(parts):
            attribution[f"{inner}/credit/{place}"] = part.to_bytes(12, "big") + owner

    return change


def stray_dataset(attribution: Facts, _: Facts) -> None:
    """A dataset under a name that nothing else judges: it would be credited when an epoch is added up."""
    for name, value in list(attribution.items()):
        if name.startswith("adapter/0/dataset/0"):
            attribution[name.replace("adapter/0", "extra")] = value


LIES: dict[str, tuple[Callable[[Facts, Facts], None], str]] = {
    "a wei more for the base": (amount("base/royalty", 1), "add up"),
    "a wei less undivided": (amount("royalties/undivided", -1), "add up"),
    "a wei more for the operator": (amount("operator/compute", 1), "add up"),
    "royalties moved from one owner to another": (shifted("base/royalty", "adapter/0/royalty", 3), "quote's rate"),
    "a negative royalty": (shifted("base/royalty", "royalties/undivided", 10**6), "quote's rate"),
    "another weight": (stated("adapter/0/weight", leaves.word(5_000)), "adapter/0/weight"),
    "other terms": (stated("base/terms", leaves.word(3)), "base/terms"),
    "another owner": (stated("adapter/0/owner", bytes(12) + b"\x66" * 20), "adapter/0/owner"),
    "another adapter": (stated("adapter/0", b"\x66" * 32), "adapter/0"),
    "another signer": (stated("signer", bytes(12) + b"\x66" * 20), "signer"),
    "no signer": (without("signer"), "signer is missing"),
    "no base": (without("base"), "base is missing"),
    "an adapter more": (stated("adapter/1", b"\x66" * 32), "no place there: adapter/1"),
    "a dataset of the chain missing": (without("base/dataset/0"), "to which base passes royalties on"),
    "the first dataset missing, the others left": (without("adapter/0/dataset/0"), "passes royalties on, is missing"),
    "a dataset missing, another in its place": (renumbered, "passes royalties on, is missing"),
    "a dataset twice": (stated("adapter/0/dataset/1", DATASET), "there twice"),
    "a dataset for another": (stated("base/dataset/0", DECLARED), "not what the chain passes on"),
    "a larger part for a dataset": (stated("base/dataset/0/bps", leaves.word(1_001)), "not what the chain passes on"),
    "a part for one that is only declared": (
        stated("adapter/0/dataset/1/bps", leaves.word(1)), "not what the chain passes on"),
    "two wei more for a dataset": (amount("adapter/0/dataset/0/royalty", 2), "not its part of what adapter/0 earned"),
    "a wei for one that is only declared": (amount("adapter/0/dataset/1/royalty", 1), "not its part"),
    "a dataset out of its row": (stated("adapter/0/dataset/7", b"\x66" * 32), "no place there: adapter/0/dataset/7"),
    "a dataset by a name of its own": (stray_dataset, "no place there: extra/dataset/0/index"),
    "an index alone": (stated("x/index", b"\x66" * 32), "the leaf x/"),
    "no coverage beside an index": (without("adapter/0/dataset/0/coverage"), "adapter/0/dataset/0/coverage is missing"),
    "a coverage beyond the whole": (stated("adapter/0/dataset/0/coverage", leaves.word(10**6 + 1)), "impossible"),
    "credits that do not lead to their root": (
        stated("adapter/0/dataset/0/credit/0", (1).to_bytes(12, "big") + WHO[0]), "root that it states"),
    "credits beyond the whole": (credited((WHO[0], 500_000), (WHO[1], 500_001)), "impossible"),
    "credits out of order": (credited((WHO[1], 1), (WHO[0], 1)), "impossible"),
    "seventeen credits": (
        credited(*((bytes([0xC0, place]) * 10, 1) for place in range(17))), "impossible"),
    "other tokens of a choice": (stated("choice/1/output", output_hash((9,))), "choice/1/output"),
    "more tokens of a choice": (stated("choice/0/tokens", leaves.word(4)), "choice/0/tokens"),
    "a choice more": (stated("choice/2/output", output_hash(())), "a choice that was not asked for"),
    "a choice missing": (without("choice/1"), "choice/1/output is missing"),
    "another sampler": (stated("sampler", b"\x66" * 32), "sampler"),
    "another seed": (stated("seed", leaves.word(5)), "seed"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.replace(" ", "-"))
def test_a_lie_that_was_signed_for_is_found(lie: str) -> None:
    change, told = LIES[lie]
    attribution, commitment, fee = facts_of(Tally(123_457, 10**12 + 1))
    before = dict(attribution), dict(commitment)
    change(attribution, commitment)
    assert (attribution, commitment) != before
    receipt, evidence = signed_for(attribution, commitment, fee)
    with pytest.raises(OpenLoraError, match=told) as caught:
        check_evidence(receipt, evidence, ORDERED)
    assert caught.value.code is ErrorCode.RECEIPT_INVALID


def test_leaves_that_were_not_signed_for_are_found() -> None:
    attribution, commitment, fee = facts_of(Tally())
    receipt, evidence = signed_for(attribution, commitment, fee)
    other = replace(evidence, attribution=evidence.attribution[1:])
    for found, told in ((other, "attributionRoot"), (replace(evidence, commitment=()), "commitmentRoot")):
        with pytest.raises(OpenLoraError, match=told):
            check_evidence(receipt, found, ORDERED)
    with pytest.raises(OpenLoraError, match="attributionRoot"):
        check_evidence(receipt, Evidence.read(evidence.pack(), b"\x01" * 32), ORDERED)  # another salt


def test_a_seed_that_nobody_gave_and_leaves_of_later_versions() -> None:
    attribution, commitment, fee = facts_of(Tally())
    body = parse_body(b'{"messages": [{"role": "user", "content": "hi"}]}', 1 << 20)
    commitment["sampler"] = sampler_hash(body)
    receipt, evidence = signed_for(attribution, commitment, fee)
    with pytest.raises(OpenLoraError, match="seed"):
        check_evidence(receipt, evidence, replace(ORDERED, body=body))
    attribution["quality/judge"], commitment["logits/0"] = b"\x01" * 32, b"\x02" * 32
    del commitment["seed"]
    receipt, evidence = signed_for(attribution, commitment, fee)
    check_evidence(receipt, evidence, replace(ORDERED, body=body))


def test_a_failed_response_names_its_signer_and_nothing_else() -> None:
    free = {"status": ReceiptStatus.FAILED, "prompt_tokens": 0, "completion_tokens": 0}
    signer = {"signer": bytes(12) + SIGNER}
    receipt, evidence = signed_for(signer, {}, (0, 0), **free)
    check_evidence(receipt, evidence, ORDERED)
    for facts in ({}, {"signer": bytes(32)}, signer | {"base": BASE}):
        receipt, evidence = signed_for(facts, {}, (0, 0), **free)
        with pytest.raises(OpenLoraError):
            check_evidence(receipt, evidence, ORDERED)


# what comes over the wire


def packed(*groups: list[tuple[Any, Any]]) -> bytes:
    return msgspec.msgpack.encode(groups)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x90",
        packed([]),
        packed([], [], []),
        packed([("a", b"")], [("a", b"\x01" * 33)]),
        packed([("b", b""), ("a", b"")], []),
        packed([("a", b""), ("a", b"\x01")], []),
        packed([("a" * 65, b"")], []),
        packed([("", b"")], []),
        packed([("ä", b"")], []),
        packed([("a\n", b"")], []),
        packed([("a", "text")], []),
        packed([(f"{place:05}", b"") for place in range(10_000)], []),
        packed([], [(f"{place:05}", b"") for place in range(MAX_LEAVES + 1)]),
        b"\xdd\xff\xff\xff\xff",
        b"\x92" * 200_000,
    ],
)
def test_what_is_no_list_of_leaves_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        Evidence.read(data, SALT)
    assert caught.value.code is ErrorCode.MALFORMED


@given(st.binary(max_size=300))
def test_any_bytes_are_leaves_or_malformed(data: bytes) -> None:
    try:
        found = Evidence.read(data, SALT)
    except ProtocolError as error:
        assert error.code is ErrorCode.MALFORMED
    else:
        assert Evidence.read(found.pack(), SALT) == found


def test_the_largest_pipeline_fits_a_message() -> None:
    traced = Indexed(b"\xff" * 32, 1, 10**6, tuple((who, 62_500) for who in WHO))
    many = tuple(
        Behind(bytes([1, place]) * 16, 1_000, b"\xff" * 32, credits_bps=10_000, indexed=traced)
        for place in range(8 + MAX_DATASETS)
    )
    adapters = [Adapter(id=bytes([2, place]) * 16, terms_version=1 << 31, weight=LEAST_WEIGHT) for place in range(4)]
    pipeline = Pipeline.of(BASE, *adapters, base_terms_version=1 << 31)
    rate = (1 << 96) - 1
    schedule = RoyaltySchedule.of(pipeline, rate, (rate,) * 4)
    parts = (
        Part(BASE, 1 << 31, 10_000, b"\xff" * 20, many[:8]),
        *(Part(adapter.id, adapter.terms_version, adapter.weight, b"\xff" * 20, many) for adapter in adapters),
    )
    charged = charge(Tally(), schedule, ComputeRates(1 << 60, 1 << 60), 1 << 20, 1 << 20, 0)
    output = Output(((1,),) * 128, ("length",) * 128)
    evidence = Evidence(
        leaves.attribution(parts, schedule, Tally(), charged, b"\xff" * 20, SALT),
        leaves.commitment(Sampling(b"\xff" * 32, 1 << 62, 1 << 62), output, SALT),
    )
    assert len(evidence.attribution) > 2_000
    data = evidence.pack()
    assert Evidence.read(data, SALT) == evidence
    assert len(data) < 170 << 10
    done = messages.Done(id=1, receipt=bytes(700), finish_reason="stop", salt=SALT, evidence=data)
    messages.INFER.encode(done)
    proof = messages.Proof(salt=SALT, evidence=data, epoch=1, closed=True, path=(bytes(32),) * 64)
    messages.VOUCHER.encode(proof)
