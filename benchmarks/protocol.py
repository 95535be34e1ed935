"""Protocol speed on one core: digests, signatures and messages a second, beside eth-account on the same values.

`python benchmarks/protocol.py [--json]`. Each figure is the best of five rounds, so that a noisy machine does not
count; the ratios are of one run.
"""

from __future__ import annotations

import argparse
import json
import os
import timeit
from collections.abc import Callable

from eth_account import Account
from eth_account.messages import encode_typed_data

from openlora_node.protocol import messages, structs
from openlora_node.protocol.crypto import LocalSigner
from openlora_node.protocol.eip712 import Domain, Signed, layout_of
from openlora_node.protocol.framing import FrameDecoder
from openlora_node.protocol.ids import format_address
from openlora_node.protocol.merkle import MerkleTree, receipt_leaf

TARGETS = {"digest": 20_000, "digest + recover": 7_000}


def per_second(action: Callable[[], object], seconds: float = 0.4) -> float:
    """Calls a second: best of five rounds of about `seconds` each."""
    once = min(timeit.repeat(action, number=20, repeat=3)) / 20
    number = max(1, int(seconds / once))
    return number / min(timeit.repeat(action, number=number, repeat=5))


def measure() -> dict[str, float]:
    """All figures, by name."""
    domain = Domain(chain_id=1612, verifying_contract=os.urandom(20))  # type: ignore[arg-type]
    secret = os.urandom(32)
    signer = LocalSigner(secret)
    request = structs.Request(
        payer=signer.address,
        node=os.urandom(32),
        pipeline_id=os.urandom(32),
        quote_digest=os.urandom(32),
        body_hash=os.urandom(32),
        max_fee=10**18,
        max_tokens=256,
        nonce=os.urandom(32),
        issued_at=1_764_000_000,
        expires_at=1_764_000_120,
    )
    signed = request.sign(domain, signer)
    packed = signed.pack()
    layout = layout_of(structs.Request)
    types = {
        "Request": [
            {"type": codec.name, "name": name} for codec, name in zip(layout.codecs, layout.json_names, strict=True)
        ]
    }
    values = dict(zip(layout.json_names, layout.values(request), strict=True))
    theirs = {
        "name": domain.name,
        "version": domain.version,
        "chainId": domain.chain_id,
        "verifyingContract": format_address(domain.verifying_contract),
    }
    encoded = encode_typed_data(theirs, types, values)
    tokens = messages.Tokens(id=1, start=0, token_ids=(1, 2, 3, 4), text="four tokens of text")
    frame = messages.INFER.encode(tokens)
    leaves = [receipt_leaf(os.urandom(32), os.urandom(32)) for _ in range(1000)]

    def read_frame() -> object:
        (payload,) = FrameDecoder(messages.INFER.max_frame).feed(frame)
        return messages.INFER.decode(payload)

    assert Account.recover_message(encoded, signature=signed.signature) == format_address(signer.address)
    return {
        "digest": per_second(lambda: request.digest(domain)),
        "digest, eth-account": per_second(lambda: encode_typed_data(theirs, types, values)),
        "digest + recover": per_second(lambda: request.recover(domain, signed.signature)),
        "digest + recover, eth-account": per_second(
            lambda: Account.recover_message(encode_typed_data(theirs, types, values), signature=signed.signature)
        ),
        "digest + sign": per_second(lambda: request.sign(domain, signer)),
        "digest + sign, eth-account": per_second(lambda: Account.sign_typed_data(secret, theirs, types, values)),
        "unpack signed": per_second(lambda: Signed.unpack(structs.Request, packed)),
        "unpack + digest + recover": per_second(lambda: Signed.unpack(structs.Request, packed).signer(domain)),
        "encode tokens frame": per_second(lambda: messages.INFER.encode(tokens)),
        "decode tokens frame": per_second(read_frame),
        "Merkle tree of 1,000": per_second(lambda: MerkleTree(leaves).root),
    }


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    figures = measure()
    if arguments.json:
        print(json.dumps({name: round(value) for name, value in figures.items()}))
        return
    print(f"{'operation':<34}{'per second':>12}{'÷ eth-account':>16}{'target':>10}")
    for name, value in figures.items():
        peer = figures.get(f"{name}, eth-account")
        ratio = f"{value / peer:.1f}" if peer else ""
        target = f"{TARGETS[name]:,}" if name in TARGETS else ""
        print(f"{name:<34}{value:>12,.0f}{ratio:>16}{target:>10}")


if __name__ == "__main__":
    main()
