"""Bundles: whole ones verify with the chain's root alone; one changed byte anywhere fails."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from openlora_node.attribution import Bundle, Epochs, export, verify
from openlora_node.journal import Reader
from openlora_node.protocol.eip712 import Domain
from openlora_node.protocol.errors import ErrorCode, OpenLoraError, ProtocolError
from openlora_node.protocol.ids import format_address
from openlora_node.protocol.merkle import MerkleTree, receipt_leaf
from support.attribution_receipts import fill
from support.serving_world import DOMAIN, NODE, NODE_KEY, NOW, OWNER


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A bundle out of an epoch of five receipts, and the epoch's root."""
    path = tmp_path_factory.mktemp("bundle") / "j.sqlite"
    asyncio.run(fill(path, [0, 1, 2, 3, 4]))
    with Reader(path) as reader:
        epochs = Epochs(reader, NODE, 3600)
        stored = reader.receipts(NODE, 0, 10)[2]
        root = epochs.root(epochs.number_at(stored.receipt.value.finished_at))
        assert root is not None
        assert root.totals.count == 5
        bundle = export(reader, stored, epochs, NOW + 2 * 3600)
    return bundle.encode(), root.root


def refusal(data: bytes, root: bytes, domain: Domain = DOMAIN, key: bytes = NODE_KEY.address) -> ErrorCode:
    with pytest.raises(OpenLoraError) as caught:
        verify(data, root, domain, key)
    assert isinstance(caught.value, ProtocolError)
    return caught.value.code


def test_a_bundle_verifies_and_reads_as_it_was(exported: tuple[bytes, bytes]) -> None:
    data, root = exported
    bundle = verify(data, root, DOMAIN, NODE_KEY.address)
    assert bundle.encode() == data
    assert Bundle.decode(data) == bundle
    assert len(bundle.proof) in (2, 3)


@pytest.mark.slow
def test_flipping_any_byte_fails(exported: tuple[bytes, bytes]) -> None:
    data, root = exported
    for place in range(len(data)):
        mask = (0x01, 0x20, 0x80)[place % 3]  # another value, another case, no ASCII
        flipped = data[:place] + bytes((data[place] ^ mask,)) + data[place + 1 :]
        refusal(flipped, root)


def test_cutting_and_padding_fail(exported: tuple[bytes, bytes]) -> None:
    data, root = exported
    for other in (data[:-1], data + b"\n", b" " + data, b"", b"[]", b"null", b"[" * 100_000, data * 2):
        assert refusal(other, root) in {ErrorCode.MALFORMED, ErrorCode.FRAME_TOO_LARGE}


def test_another_root_key_chain_or_contract_fails(exported: tuple[bytes, bytes]) -> None:
    data, root = exported
    assert refusal(data, bytes(32)) is ErrorCode.RECEIPT_INVALID
    assert refusal(data, root, key=OWNER.address) is ErrorCode.BAD_SIGNATURE
    assert refusal(data, root, Domain(chain_id=1, verifying_contract=DOMAIN.verifying_contract))
    assert refusal(data, root, Domain(chain_id=DOMAIN.chain_id, verifying_contract=b"\x01" * 20))


def resealed(data: bytes, change) -> tuple[bytes, bytes]:
    """A node that lies: the changed receipt signed anew and anchored alone."""
    bundle = Bundle.decode(data)
    fields = json.loads(data)
    change(fields, bundle)
    text = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    changed = Bundle.decode(text)
    receipt = changed.receipt.value.sign(DOMAIN, NODE_KEY)
    sealed = Bundle(changed.request, changed.pipeline, receipt, changed.salt, (), changed.evidence)
    return sealed.encode(), MerkleTree([receipt_leaf(changed.salt, receipt.value.digest(DOMAIN))]).root


@pytest.mark.parametrize(
    "field", ["requestDigest", "payer", "pipelineId", "attributionRoot", "commitmentRoot", "compute", "royalties"]
)
def test_a_lie_that_the_node_itself_signed_and_anchored_fails(exported: tuple[bytes, bytes], field: str) -> None:
    def change(fields: dict, bundle: Bundle) -> None:
        value = fields["receipt"]["value"]
        old = value[field]
        other = f"{old[:-1]}{'0' if old[-1] != '0' else '1'}"
        lies = {"payer": format_address(OWNER.address)}
        value[field] = lies.get(field) or (str(int(old) + 1) if old.isdigit() else other)

    assert refusal(*resealed(exported[0], change)) in {ErrorCode.RECEIPT_INVALID, ErrorCode.BAD_PIPELINE}
    honest, root = resealed(exported[0], lambda *_: None)
    verify(honest, root, DOMAIN, NODE_KEY.address)


def test_an_open_epoch_is_not_exported(tmp_path: Path) -> None:
    asyncio.run(fill(tmp_path / "j.sqlite", [0]))
    with Reader(tmp_path / "j.sqlite") as reader:
        epochs = Epochs(reader, NODE, 3600)
        with pytest.raises(OpenLoraError) as caught:
            export(reader, reader.receipts(NODE, 0, 1)[0], epochs, NOW)
    assert caught.value.code is ErrorCode.NOT_FOUND
