"""A payer's own proofs: fetched from the node that signed the receipt, taken only where everything in them holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from openlora_node.attribution import Bundle, Epochs
from openlora_node.attribution.export import export
from openlora_node.gateway.proofs import Proofs
from openlora_node.journal import Reader, StoredReceipt
from openlora_node.protocol import messages
from openlora_node.protocol.crypto import LocalSigner
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from support.attribution_receipts import fill
from support.serving_world import DOMAIN, NODE, NOW

EPOCH_S = 60


@pytest.fixture
async def kept(tmp_path: Path) -> tuple[StoredReceipt, bytes, bytes]:
    """A receipt that the payer keeps, the node's bundle of it, and that of another receipt."""
    await fill(tmp_path / "journal.sqlite", [0, 1])
    with Reader(tmp_path / "journal.sqlite") as reader:
        first, second = reader.receipts(NODE, -1, 2)
        epochs = Epochs(reader, NODE, EPOCH_S)
        bundles = [export(reader, stored, epochs, NOW + 10 * EPOCH_S).encode() for stored in (first, second)]
    return first, bundles[0], bundles[1]


def proofs(stored: StoredReceipt, answer: object) -> Proofs:
    """A payer that holds one receipt, and a node that answers so."""

    class Talk:
        async def send(self, message: messages.GetProof) -> None:
            messages.VOUCHER.encode(message)
            assert message.receipt == stored.digest

        async def receive(self) -> object:
            return answer

        async def close(self) -> None:
            pass

    async def talk(node: bytes) -> Talk:
        assert node == NODE
        return Talk()

    rows = {stored.digest: (stored.receipt.pack(), stored.digest, stored.salt)}

    async def transact(read: Callable[[Any], Any]) -> Any:
        return read(SimpleNamespace(one=lambda _sql, digest: rows.get(digest)))

    key = LocalSigner(b"\x71" * 32)
    purse = SimpleNamespace(
        journal=SimpleNamespace(transact=transact), payer=key.address, clock=lambda: NOW, domain=DOMAIN, signer=key
    )
    return Proofs(purse, SimpleNamespace(talk=talk))  # type: ignore[arg-type]


async def refusal(asked: Proofs, digest: bytes) -> ErrorCode:
    with pytest.raises(OpenLoraError) as caught:
        await asked.fetch(digest)
    return caught.value.code


async def test_a_bundle_that_holds_is_taken_as_it_came(kept: tuple[StoredReceipt, bytes, bytes]) -> None:
    stored, bundle, _ = kept
    found = await proofs(stored, messages.Proof(bundle=bundle)).fetch(stored.digest)
    assert found == bundle
    assert Bundle.decode(found).receipt == stored.receipt


async def test_what_a_node_makes_up_is_not_taken(kept: tuple[StoredReceipt, bytes, bytes]) -> None:
    stored, bundle, other = kept
    assert await refusal(proofs(stored, messages.Proof(bundle=other)), stored.digest) is ErrorCode.RECEIPT_INVALID
    fields = json.loads(bundle)
    fields["attribution"] = fields["attribution"][1:]
    fewer = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    assert await refusal(proofs(stored, messages.Proof(bundle=fewer)), stored.digest) is ErrorCode.RECEIPT_INVALID
    fields = json.loads(bundle)
    fields["attribution"][0]["value"] = "0x" + "11" * 32
    tampered = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    assert await refusal(proofs(stored, messages.Proof(bundle=tampered)), stored.digest) is ErrorCode.RECEIPT_INVALID
    assert await refusal(proofs(stored, messages.Proof(bundle=b"{}")), stored.digest) is ErrorCode.MALFORMED
    assert await refusal(proofs(stored, messages.Account(ledgers=(), open_receipts=())), stored.digest) is (
        ErrorCode.MALFORMED
    )
    assert await refusal(proofs(stored, None), stored.digest) is ErrorCode.NODE_LOST


async def test_what_the_node_says_and_what_was_never_paid(kept: tuple[StoredReceipt, bytes, bytes]) -> None:
    stored, bundle, _ = kept
    later = messages.ErrorReply(code="NOT_FOUND", message="epoch 5 of this receipt is still open")
    assert await refusal(proofs(stored, later), stored.digest) is ErrorCode.NOT_FOUND
    assert await refusal(proofs(stored, messages.Proof(bundle=bundle)), b"\x09" * 32) is ErrorCode.NOT_FOUND
