"""A receipt's leaves: who took part, the fee to the wei, what decided the output; small on disk and whole again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openlora_node.attribution import Evidence
from openlora_node.attribution.leaves import number, salt_of
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.ids import ZERO32
from openlora_node.protocol.merkle import NamedLeaf, named_root
from openlora_node.protocol.pricing import Tally, charge
from openlora_node.protocol.structs import ReceiptStatus, output_hash
from support.attribution_receipts import ADAPTER, BASE, COMPUTE, DATASET, SCHEDULE, draft
from support.journal import DOMAIN, NODE_KEY, signer


def facts(evidence: bytes, group: str = "attribution") -> dict[str, bytes]:
    leaves: tuple[NamedLeaf, ...] = getattr(Evidence.unpack(evidence, b"\x08" * 32), group)
    return {leaf.name: leaf.value for leaf in leaves}


def test_leaves_name_artifacts_weights_datasets_shares_and_signer() -> None:
    made = draft()
    assert made.receipt.signer(DOMAIN) == NODE_KEY.address
    found = facts(made.evidence)
    assert (found["base"], found["adapter/0"]) == (BASE, ADAPTER)
    assert number(found["adapter/0/weight"]) == -5_000
    assert found["adapter/0/owner"] == bytes(12) + b"\x02" * 20
    assert (found["adapter/0/dataset/0"], number(found["adapter/0/dataset/0/bps"])) == (DATASET, 3_333)
    assert found["adapter/0/dataset/0/shares"] == b"\x05" * 32
    assert (found["adapter/0/base/0"], number(found["adapter/0/base/0/bps"])) == (BASE, 1_000)
    assert found["signer"] == bytes(12) + signer(0).address


def test_roots_are_those_of_the_leaves_that_the_journal_keeps() -> None:
    made = draft()
    evidence = Evidence.unpack(made.evidence, made.salt)
    assert named_root(evidence.attribution) == made.receipt.value.attribution_root
    assert named_root(evidence.commitment) == made.receipt.value.commitment_root
    assert all(leaf.salt == salt_of(made.salt, leaf.name) for leaf in evidence.attribution)
    assert len(made.evidence) < 1_100


def test_commitment_names_sampler_seed_and_each_choice() -> None:
    made = draft(choices=((1, 2), (), (3,)))
    found = facts(made.evidence, "commitment")
    assert found["sampler"] == b"\x06" * 32
    assert number(found["seed"]) == 42
    assert [number(found[f"choice/{index}/tokens"]) for index in range(3)] == [2, 0, 1]
    assert found["choice/2/output"] == output_hash((3,))
    assert found["choice/0/finish"].rstrip(b"\0") == b"stop"
    assert made.receipt.value.output_hash == output_hash((1, 2, 3))


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 20)), min_size=1, max_size=6),
    st.integers(0, 10**12),
)
def test_a_ledgers_receipts_divide_what_its_voucher_is_worth_to_the_wei(
    responses: list[tuple[int, int]], start: int
) -> None:
    before = first = Tally(start, start * 10**6)
    totals: dict[str, int] = {}
    compute = royalties = 0
    for prompt, generated in responses:
        made = draft(before, prompt=prompt, choices=(tuple(range(generated)),))
        receipt, found = made.receipt.value, facts(made.evidence)
        for name in ("base/royalty", "adapter/0/royalty", "royalties/undivided", "adapter/0/dataset/0/royalty"):
            totals[name] = totals.get(name, 0) + number(found[name])
        assert number(found["operator/compute"]) == receipt.compute
        parts = ("base/royalty", "adapter/0/royalty", "royalties/undivided")
        assert sum(number(found[name]) for name in parts) == receipt.royalties
        compute, royalties, before = compute + receipt.compute, royalties + receipt.royalties, made.after
    old, new = SCHEDULE.royalties(first.tokens), SCHEDULE.royalties(before.tokens)
    assert (compute, royalties) == (before.compute - first.compute, new - old)
    shares = [late - early for early, late in zip(SCHEDULE.shares(old), SCHEDULE.shares(new), strict=True)]
    assert [totals["base/royalty"], totals["adapter/0/royalty"]] == shares
    late, early = SCHEDULE.shares(new)[1], SCHEDULE.shares(old)[1]
    assert totals["adapter/0/dataset/0/royalty"] == late * 3_333 // 10_000 - early * 3_333 // 10_000


def test_the_charge_is_that_of_the_protocol() -> None:
    before = Tally(10, 10**7)
    made = draft(before, prompt=7)
    charged = charge(before, SCHEDULE, COMPUTE, 7, 3, 11)
    assert made.after == charged.after
    assert charged.is_stated_by(made.receipt.value)


def test_a_failed_response_costs_nothing_and_names_its_signer_alone() -> None:
    before = Tally(10, 10**7)
    made = draft(before, status=ReceiptStatus.FAILED)
    assert made.after == before
    assert made.receipt.value.fee == 0
    assert list(facts(made.evidence)) == ["signer"]
    assert made.receipt.value.commitment_root == ZERO32


@pytest.mark.parametrize("data", [b"\x00", b"\x91", b"\x92\x90\x91\x92\xa1x\xc4\x21" + bytes(33), b"\xff" * 9])
def test_evidence_that_does_not_parse_is_corrupt(data: bytes) -> None:
    with pytest.raises(OpenLoraError) as caught:
        Evidence.unpack(data, ZERO32)
    assert caught.value.code is ErrorCode.JOURNAL_CORRUPT


def test_no_evidence_is_no_leaves() -> None:
    assert Evidence.unpack(b"", ZERO32) == Evidence()
