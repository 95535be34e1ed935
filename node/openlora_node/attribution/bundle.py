"""A receipt with everything that proves it, as one file that anyone checks offline.

A bundle is JSON in one canonical form, byte for byte: request and receipt with their signatures, the pipeline that the
id stands for, the salt and the proof that lead to the anchored root, and the leaves behind the receipt's two roots.
`verify` needs three things from elsewhere: the root that the chain holds for the epoch, the domain, and the node's key.
Nothing in a bundle is outside of what it checks, so that no byte can be changed unnoticed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..protocol.crypto import Address
from ..protocol.eip712 import Domain, Signed
from ..protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from ..protocol.ids import format_bytes, parse_bytes32
from ..protocol.merkle import NamedLeaf, named_root, receipt_leaf, root_by, verify_proof
from ..protocol.pipeline import Pipeline
from ..protocol.structs import Receipt, ReceiptStatus, Request
from .evidence import Evidence
from .indexed import read_datasets
from .leaves import number, salt_of

FORMAT = "openlora-receipt/1"
MAX_BUNDLE_BYTES = 1 << 20
_KEYS = ("attribution", "commitment", "format", "pipeline", "proof", "receipt", "request", "salt")


@dataclass(frozen=True)
class Bundle:
    """A receipt and its proof."""

    request: Signed[Request]
    pipeline: Pipeline
    receipt: Signed[Receipt]
    salt: bytes
    proof: tuple[bytes, ...]
    evidence: Evidence

    def root(self, domain: Domain) -> bytes:
        """The root of the epoch that its proof leads to: what the chain must hold."""
        return root_by(receipt_leaf(self.salt, self.receipt.value.digest(domain)), self.proof)

    def encode(self) -> bytes:
        """The one form of this bundle: keys sorted, no spaces, ASCII."""
        return _canonical(
            {
                "format": FORMAT,
                "request": self.request.to_json(),
                "pipeline": self.pipeline.to_json(),
                "receipt": self.receipt.to_json(),
                "salt": format_bytes(self.salt),
                "proof": [format_bytes(sibling) for sibling in self.proof],
                "attribution": _leaves_to_json(self.evidence.attribution),
                "commitment": _leaves_to_json(self.evidence.commitment),
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Bundle:
        """Parse a bundle. Raises ProtocolError MALFORMED for what is none, or is not in its one form."""
        if len(data) > MAX_BUNDLE_BYTES:
            raise ProtocolError(ErrorCode.FRAME_TOO_LARGE, f"a bundle has at most {MAX_BUNDLE_BYTES} bytes")
        try:
            fields = json.loads(data)
        except (ValueError, RecursionError):
            raise _malformed("it is no JSON") from None
        if not isinstance(fields, dict) or tuple(sorted(fields)) != _KEYS or fields["format"] != FORMAT:
            raise _malformed(f"it is no {FORMAT}")
        salt = _word(fields["salt"])
        bundle = cls(
            request=Signed.from_json(Request, fields["request"]),
            pipeline=Pipeline.from_json(fields["pipeline"]),
            receipt=Signed.from_json(Receipt, fields["receipt"]),
            salt=salt,
            proof=tuple(map(_word, _list(fields["proof"]))),
            evidence=Evidence(
                _leaves_from_json(fields["attribution"], salt), _leaves_from_json(fields["commitment"], salt)
            ),
        )
        if bundle.encode() != data:
            raise _malformed("it is not in canonical form")
        return bundle


def verify(data: bytes, anchored_root: bytes, domain: Domain, node_key: bytes) -> Bundle:
    """Check a bundle against the chain's root of its epoch. `node_key` is the address that signed for the node then.

    Raises ProtocolError: MALFORMED, BAD_SIGNATURE, BAD_PIPELINE; RECEIPT_INVALID for a claim that is not proven.
    """
    bundle = Bundle.decode(data)
    if bundle.receipt.signer(domain) != node_key:
        raise ProtocolError(ErrorCode.BAD_SIGNATURE, "the receipt was not signed by this node's key for this chain")
    check(bundle, domain)
    leaf = receipt_leaf(bundle.salt, bundle.receipt.value.digest(domain))
    if not verify_proof(anchored_root, leaf, bundle.proof):
        raise _invalid("the anchored root does not hold it")
    return bundle


def check(bundle: Bundle, domain: Domain) -> None:
    """Everything that a bundle claims by itself: request, pipeline, leaves, fee. Not who signed it, nor the anchor.

    Raises ProtocolError: BAD_SIGNATURE, BAD_PIPELINE, RECEIPT_INVALID.
    """
    receipt, request = bundle.receipt.value, bundle.request.value
    if receipt.request_digest != request.digest(domain):
        raise _invalid("it answers another request")
    if (receipt.payer, receipt.node, receipt.pipeline_id) != (request.payer, request.node, request.pipeline_id):
        raise _invalid("its payer, node or pipeline differs from the request's")
    if bundle.pipeline.id != receipt.pipeline_id:
        raise ProtocolError(ErrorCode.BAD_PIPELINE, "the pipeline is not the one that the receipt names")
    if receipt.fee > request.max_fee:
        raise _invalid("it costs more than maxFee")
    if named_root(bundle.evidence.attribution) != receipt.attribution_root:
        raise _invalid("its attribution leaves do not lead to attributionRoot")
    if named_root(bundle.evidence.commitment) != receipt.commitment_root:
        raise _invalid("its commitment leaves do not lead to commitmentRoot")
    _check_signer(bundle, domain)
    if receipt.status != ReceiptStatus.FAILED:
        _check_split(bundle)


def _check_signer(bundle: Bundle, domain: Domain) -> None:
    """The request was signed by its payer, or by the signer that the receipt names."""
    named = {leaf.name: leaf.value for leaf in bundle.evidence.attribution}.get("signer", b"")[12:]
    signer: Address = bundle.request.signer(domain)
    if signer != (named or bundle.request.value.payer):
        raise ProtocolError(ErrorCode.BAD_SIGNATURE, "the request was not signed by the signer that the receipt names")


def _check_split(bundle: Bundle) -> None:
    """Leaves name the pipeline's artifacts and divide the fee to the wei."""
    facts = {leaf.name: leaf.value for leaf in bundle.evidence.attribution}
    receipt, pipeline = bundle.receipt.value, bundle.pipeline
    names = ("base", *(f"adapter/{index}" for index in range(len(pipeline.adapters))))
    try:
        if [facts[name] for name in names] != [pipeline.base, *(adapter.id for adapter in pipeline.adapters)]:
            raise _invalid("its leaves name other artifacts than the pipeline")
        weights = [number(facts[f"{name}/weight"]) for name in names[1:]]
        split = sum(number(facts[f"{name}/royalty"]) for name in names) + number(facts["royalties/undivided"])
        compute = number(facts["operator/compute"])
        tuple(read_datasets(facts))
    except KeyError:
        raise _invalid("a leaf is missing") from None
    if weights != [adapter.weight for adapter in pipeline.adapters]:
        raise _invalid("its leaves state other weights than the pipeline")
    if (compute, split) != (receipt.compute, receipt.royalties):
        raise _invalid("its leaves do not add up to its fee")


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _leaves_to_json(leaves: Sequence[NamedLeaf]) -> list[dict[str, str]]:
    return [{"name": leaf.name, "value": format_bytes(leaf.value), "salt": format_bytes(leaf.salt)} for leaf in leaves]


def _leaves_from_json(value: object, salt: bytes) -> tuple[NamedLeaf, ...]:
    leaves = []
    for entry in _list(value):
        if not isinstance(entry, dict) or set(entry) != {"name", "value", "salt"} or not isinstance(entry["name"], str):
            raise _malformed("a leaf has exactly the keys name, salt and value")
        leaves.append(NamedLeaf(entry["name"], _word(entry["value"]), _word(entry["salt"])))
    if [leaf.name for leaf in leaves] != sorted({leaf.name for leaf in leaves}):
        raise _malformed("leaves stand in ascending order of their names, each once")
    if any(leaf.salt != salt_of(salt, leaf.name) for leaf in leaves):
        raise _malformed("a leaf's salt comes out of the receipt's")
    return tuple(leaves)


def _word(value: object) -> bytes:
    if not isinstance(value, str):
        raise _malformed("expected 0x<64 hex>")
    return parse_bytes32(value)


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise _malformed("expected a list")
    return value


def _malformed(why: str) -> ProtocolError:
    return ProtocolError(ErrorCode.MALFORMED, f"this is not a bundle that was exported: {why}")


def _invalid(why: str) -> OpenLoraError:
    return ProtocolError(ErrorCode.RECEIPT_INVALID, f"the receipt is not proven: {why}")
