"""The order of the door's checks: of two things wrong with a request the cheaper is told, and nothing dearer runs."""

from __future__ import annotations

import msgspec
import pytest

from openlora_node.admission import House, Knock, OpenQuote, Rates, Refusal, Visitor, examine
from openlora_node.admission import checks as module
from openlora_node.network.buckets import Allowance
from openlora_node.protocol.crypto import LocalSigner
from openlora_node.protocol.eip712 import Domain
from openlora_node.protocol.errors import ErrorCode
from openlora_node.protocol.ids import Digest
from openlora_node.protocol.pipeline import Pipeline
from openlora_node.protocol.pricing import RoyaltySchedule
from openlora_node.protocol.structs import Quote, Request, Royalty, Voucher, body_hash

DOMAIN = Domain(chain_id=1, verifying_contract=b"\x05" * 20)
NODE, NOW, BODY = b"\x01" * 32, 1_750_000_000, b"{}"
KEY, PAYER, OTHER = (LocalSigner(bytes([seed]) * 32) for seed in (1, 2, 3))
PIPELINE = Pipeline.of(b"\x02" * 32)
QUOTE = Quote(
    payer=PAYER.address, node=NODE, pipeline_id=PIPELINE.id, input_rate=1, output_rate=1,
    royalties=(Royalty(artifact=PIPELINE.base, terms_version=0, rate=0, owner=bytes(20)),), settlement_charge=0,
    issued_at=NOW - 10, expires_at=NOW + 170,
)  # fmt: skip
OPEN = OpenQuote(QUOTE.sign(DOMAIN, KEY), Digest(QUOTE.digest(DOMAIN)), PIPELINE, RoyaltySchedule((0,)))
HOUSE = House(DOMAIN, NODE, max_body_bytes=100)
REQUEST = Request(
    payer=PAYER.address, node=NODE, pipeline_id=PIPELINE.id, quote_digest=OPEN.digest, body_hash=body_hash(BODY),
    max_fee=1, max_tokens=1, nonce=bytes(32), issued_at=NOW, expires_at=NOW + 300,
)  # fmt: skip
VOUCHER = Voucher(
    payer=PAYER.address, node=NODE, pipeline_id=PIPELINE.id, cumulative_tokens=1, cumulative_compute=1,
    reference_digest=bytes(32),
)  # fmt: skip
WIDE = Allowance(1e6, 1e6)
SHUT = Allowance(0.001, 0)

STEPS: list[tuple[ErrorCode, dict, dict]] = [
    (ErrorCode.FRAME_TOO_LARGE, {}, {"body": bytes(101)}),
    (ErrorCode.MALFORMED, {}, {"pipeline": b"\x00"}),
    (ErrorCode.WRONG_NODE, {"node": b"\x09" * 32}, {}),
    (ErrorCode.BAD_PIPELINE, {"pipeline_id": b"\x09" * 32}, {}),
    (ErrorCode.NOT_YET_VALID, {"issued_at": NOW + 61, "expires_at": NOW + 70}, {}),
    (ErrorCode.BODY_MISMATCH, {"body_hash": b"\x09" * 32}, {}),
    (ErrorCode.RATE_LIMITED, {}, {"peer": "shut"}),
    (ErrorCode.QUOTE_UNKNOWN, {"quote_digest": b"\x09" * 32}, {}),
]
"""What is wrong, from the cheapest to the dearest: code, changes of the request, changes of the knock."""


def knock(changes: dict, parts: dict, signer: LocalSigner = PAYER) -> Knock:
    request = msgspec.structs.replace(REQUEST, **changes).sign(DOMAIN, signer)
    fields = {"request": request.pack(), "pipeline": PIPELINE.pack(), "body": BODY}
    return Knock(**(fields | parts))


def look(what: Knock, now: int = NOW, **rates: Allowance) -> Visitor | Refusal:
    shut = Rates(peer=SHUT if what.peer == "shut" else WIDE, ip=rates.get("ip", WIDE), signer=rates.get("signer", WIDE))
    return examine(what, HOUSE, shut, {OPEN.digest: OPEN}.get, now=now, instant=0.0)


def test_a_right_request_enters_with_all_that_is_known_of_it() -> None:
    visitor = look(knock({}, {"voucher": VOUCHER.sign(DOMAIN, PAYER).pack()}))
    assert isinstance(visitor, Visitor)
    assert (visitor.signer, visitor.payer, visitor.digest) == (PAYER.address, PAYER.address, REQUEST.digest(DOMAIN))
    assert (visitor.quote, visitor.pipeline, visitor.body) == (OPEN, PIPELINE, BODY)
    assert visitor.opening is not None


@pytest.mark.parametrize("first", range(len(STEPS)))
@pytest.mark.parametrize("second", range(len(STEPS)))
def test_of_two_faults_the_cheaper_is_told(first: int, second: int) -> None:
    (code, request, parts), (_, later, others) = STEPS[first], STEPS[second]
    if first > second:
        code = STEPS[second][0]
    verdict = look(knock(later | request, others | parts))
    assert isinstance(verdict, Refusal)
    assert verdict.code is code


def test_no_signature_is_recovered_for_what_fails_before(monkeypatch: pytest.MonkeyPatch) -> None:
    knocks = [knock(request, parts) for _, request, parts in STEPS]
    monkeypatch.setattr(module, "_identify", lambda *_: pytest.fail("it was"))
    for one in knocks:
        assert isinstance(look(one), Refusal)


def test_the_signers_allowance_comes_after_the_signature() -> None:
    verdict = look(knock({}, {}, OTHER), signer=SHUT)
    assert isinstance(verdict, Refusal)
    assert verdict.code is ErrorCode.RATE_LIMITED
    assert look(knock({}, {}, OTHER)).signer == OTHER.address  # whose it is, the chain says later


def test_only_lateness_leaves_a_claim() -> None:
    late = look(knock({}, {}), now=NOW + 361)
    assert isinstance(late, Refusal)
    assert late.code is ErrorCode.REQUEST_EXPIRED
    assert late.claim is not None
    assert late.claim.digest == REQUEST.digest(DOMAIN)
    for code, request, parts in STEPS:
        verdict = look(knock(request, parts))
        assert isinstance(verdict, Refusal)
        assert (verdict.claim is not None) == (code is ErrorCode.QUOTE_UNKNOWN)


def test_an_address_is_counted_over_all_its_peers() -> None:
    rates = Rates(peer=WIDE, ip=Allowance(0.5, 2), signer=WIDE)
    codes = []
    for number in range(3):
        verdict = examine(
            knock({}, {"peer": f"peer {number}", "ip": "192.0.2.7"}), HOUSE, rates, {OPEN.digest: OPEN}.get,
            now=NOW, instant=0.0,
        )  # fmt: skip
        codes.append(verdict.code if isinstance(verdict, Refusal) else None)
    assert codes == [None, None, ErrorCode.RATE_LIMITED]
    assert verdict.retry_after_ms == 2_000


def test_a_quote_lives_to_its_last_second() -> None:
    assert isinstance(look(knock({}, {}), now=NOW + 170), Visitor)
    verdict = look(knock({}, {}), now=NOW + 171)
    assert isinstance(verdict, Refusal)
    assert verdict.code is ErrorCode.QUOTE_EXPIRED
