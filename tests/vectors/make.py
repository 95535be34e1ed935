"""Writes the published test vectors: `python tests/vectors/make.py`. A test fails when a committed file differs.

Inputs are derived from labels, never random, so that the files are the same on every machine.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from openlora_node.attribution import Evidence, leaves
from openlora_node.protocol import chunks, framing, manifest, merkle, messages, pricing, structs
from openlora_node.protocol.crypto import CURVE_ORDER, HALF_CURVE_ORDER, Address, LocalSigner, keccak256
from openlora_node.protocol.eip712 import Domain, TypedStruct, type_hash, type_string
from openlora_node.protocol.ids import format_address, format_artifact_id, format_bytes
from openlora_node.protocol.pipeline import WEIGHT_ONE, Adapter, MixMethod, Pipeline

HERE = Path(__file__).parent


def word(label: str) -> bytes:
    """32 bytes from a label."""
    return sha256(label.encode()).digest()


DOMAIN = Domain(chain_id=1612, verifying_contract=Address(word("settlement")[:20]))
PAYER = LocalSigner(word("payer key"))
NODE = LocalSigner(word("node key"))
NODE_ID = word("node id")
BASE, FIRST, SECOND = word("base"), *sorted((word("adapter 1"), word("adapter 2")))

PIPELINES = {
    "base alone": Pipeline.of(BASE),
    "base alone, registered": Pipeline.of(BASE, base_terms_version=3),
    "one adapter": Pipeline.of(BASE, Adapter(id=FIRST, terms_version=1, weight=10_000), base_terms_version=1),
    "two adapters, one negative": Pipeline.of(
        BASE,
        Adapter(id=FIRST, terms_version=1, weight=7_000),
        Adapter(id=SECOND, terms_version=2, weight=-3_000),
        base_terms_version=1,
        method=MixMethod.TIES,
    ),
    "four adapters, extreme weights": Pipeline.of(
        BASE,
        *(
            Adapter(id=word(f"adapter {n}"), terms_version=2**32 - 1, weight=weight)
            for n, weight in enumerate((500, -500, 2_147_483_500, -2_147_483_500))
        ),
        base_terms_version=2**32 - 1,
        method=MixMethod.MAGNITUDE_PRUNE,
    ),
}
PIPELINE = PIPELINES["two adapters, one negative"]

QUOTE = structs.Quote(
    payer=PAYER.address,
    node=NODE_ID,
    pipeline_id=PIPELINE.id,
    input_rate=2 * 10**14,
    output_rate=6 * 10**14,
    royalties=(
        structs.Royalty(artifact=BASE, terms_version=1, rate=10**13, owner=word("base owner")[:20]),
        structs.Royalty(artifact=FIRST, terms_version=1, rate=5 * 10**13, owner=word("adapter owner")[:20]),
        structs.Royalty(artifact=SECOND, terms_version=2, rate=0, owner=bytes(20)),
    ),
    settlement_charge=10**12,
    issued_at=1_764_000_000,
    expires_at=1_764_003_600,
)
BODY = '{"messages":[{"role":"user","content":"Bonjour, ça va ?"}],"max_tokens":64}'.encode()
REQUEST = structs.Request(
    payer=PAYER.address,
    node=NODE_ID,
    pipeline_id=PIPELINE.id,
    quote_digest=QUOTE.digest(DOMAIN),
    body_hash=structs.body_hash(BODY),
    max_fee=10**17,
    max_tokens=64,
    nonce=word("nonce"),
    issued_at=1_764_000_010,
    expires_at=1_764_000_130,
)
TOKEN_IDS = (0, 1, 49_151, 2**32 - 1)
RECEIPT = structs.Receipt(
    request_digest=REQUEST.digest(DOMAIN),
    payer=PAYER.address,
    node=NODE_ID,
    pipeline_id=PIPELINE.id,
    status=structs.ReceiptStatus.COMPLETE,
    engine_digest=word("engine"),
    prompt_tokens=12,
    completion_tokens=4,
    output_hash=structs.output_hash(TOKEN_IDS),
    attribution_root=merkle.named_root([merkle.NamedLeaf("datasets", word("datasets"))]),
    commitment_root=bytes(32),
    compute=10**12 + 4_800_000_000,
    royalties=720_000_000,
    started_at=1_764_000_011,
    finished_at=1_764_000_013,
    seq=1_764_000_000 << 20,
    previous=bytes(32),
)
MAX_RECEIPT = structs.Receipt(
    request_digest=b"\xff" * 32,
    payer=b"\xff" * 20,
    node=b"\xff" * 32,
    pipeline_id=b"\xff" * 32,
    status=structs.ReceiptStatus.CANCELLED,
    engine_digest=b"\xff" * 32,
    prompt_tokens=2**64 - 1,
    completion_tokens=2**64 - 1,
    output_hash=b"\xff" * 32,
    attribution_root=b"\xff" * 32,
    commitment_root=b"\xff" * 32,
    compute=2**127,
    royalties=2**127 - 1,
    started_at=2**64 - 1,
    finished_at=2**64 - 1,
    seq=2**64 - 1,
    previous=RECEIPT.digest(DOMAIN),
)
VOUCHER = structs.Voucher(
    payer=PAYER.address,
    node=NODE_ID,
    pipeline_id=PIPELINE.id,
    cumulative_tokens=16,
    cumulative_compute=10**12 + 4_800_000_000,
    reference_digest=RECEIPT.digest(DOMAIN),
)
MAX_VOUCHER = structs.Voucher(
    payer=PAYER.address,
    node=NODE_ID,
    pipeline_id=PIPELINE.id,
    cumulative_tokens=2**63 - 1,
    cumulative_compute=2**128 - 1,
    reference_digest=b"\xff" * 32,
)
ADVERT = structs.NodeAdvert(
    node=NODE_ID,
    seq=7,
    issued_at=1_764_000_000,
    expires_at=1_764_000_180,
    state=structs.NodeState.ONLINE,
    reach=structs.Reach.DIRECT,
    base_models=(BASE,),
    filter_digest=word("filter"),
    adapter_count=5_000,
    input_rate=2 * 10**14,
    output_rate=6 * 10**14,
    queue_depth=3,
    tokens_per_second=150,
    max_context=8_192,
    device="cpu: 2 × AVX2",
    memory_total=24_064,
    memory_free=20_000,
    dtype="float32",
    version="0.1.0",
    addresses=("/ip4/192.0.2.7/tcp/4001", "/dns4/node.example/tcp/4001"),
)
QUERY = structs.AccountQuery(payer=PAYER.address, node=NODE_ID, issued_at=1_764_000_020)

SIGNED: list[tuple[str, TypedStruct, LocalSigner]] = [
    ("Quote", QUOTE, NODE),
    ("Request", REQUEST, PAYER),
    ("Voucher", VOUCHER, PAYER),
    ("Voucher, largest amounts", MAX_VOUCHER, PAYER),
    ("Receipt", RECEIPT, NODE),
    ("Receipt, largest values", MAX_RECEIPT, NODE),
    ("NodeAdvert", ADVERT, NODE),
    ("AccountQuery", QUERY, PAYER),
    ("NodeKeyProof", structs.NodeKeyProof(node=NODE_ID, owner=word("owner")[:20], deadline=1_764_003_600), NODE),
    ("SignerProof", structs.SignerProof(payer=word("cold payer")[:20], deadline=1_764_003_600), PAYER),
]


def eip712() -> Any:
    """Domain, type strings, digests, packed forms and signatures of every signed struct."""
    cases = []
    for name, value, signer in SIGNED:
        signed = value.sign(DOMAIN, signer)
        cases.append(
            {
                "name": name,
                "primaryType": type(value).__name__,
                "type": type_string(type(value)),
                "typeHash": format_bytes(type_hash(type(value))),
                "value": value.to_json(),
                "structHash": format_bytes(value.struct_hash()),
                "digest": format_bytes(value.digest(DOMAIN)),
                "signer": format_address(signer.address),
                "signature": format_bytes(signed.signature),
                "packed": format_bytes(signed.pack()),
            }
        )
    return {
        "domain": {
            "name": DOMAIN.name,
            "version": DOMAIN.version,
            "chainId": str(DOMAIN.chain_id),
            "verifyingContract": format_address(DOMAIN.verifying_contract),
            "separator": format_bytes(DOMAIN.separator()),
        },
        "keys": {"payer": format_bytes(word("payer key")), "node": format_bytes(word("node key"))},
        "structs": cases,
        "refusedSignatures": refused_signatures(),
    }


def refused_signatures() -> Any:
    """Forms of a valid signature that no contract accepts."""
    good = VOUCHER.sign(DOMAIN, PAYER).signature
    s = int.from_bytes(good[32:64], "big")
    twin = good[:32] + (CURVE_ORDER - s).to_bytes(32, "big") + bytes((55 - good[64],))
    assert CURVE_ORDER - s > HALF_CURVE_ORDER
    forms = {
        "high s twin": twin,
        "v 0 or 1": good[:64] + bytes((good[64] - 27,)),
        "64 bytes": good[:64],
        "66 bytes": good + b"\x00",
        "empty": b"",
        "r zero": bytes(32) + good[32:],
        "s zero": good[:32] + bytes(32) + good[64:],
        "r is the curve order": CURVE_ORDER.to_bytes(32, "big") + good[32:],
    }
    return [
        {"name": name, "digest": format_bytes(VOUCHER.digest(DOMAIN)), "signature": format_bytes(form)}
        for name, form in forms.items()
    ]


def refused_pipelines() -> Any:
    """Values that look like pipelines and are none."""
    good = PIPELINE.to_json()
    first, second = good["adapters"]

    def adapters(*changed: dict[str, Any]) -> dict[str, Any]:
        return good | {"adapters": list(changed)}

    return [
        {"name": name, "value": value}
        for name, value in {
            "weight off the quantum": adapters(first | {"weight": "501"}, second),
            "weight zero": adapters(first | {"weight": "0"}, second),
            "descending ids": adapters(second, first),
            "one adapter twice": adapters(first, first),
            "five adapters": adapters(*(first | {"id": f"0x{n:064x}"} for n in range(1, 6))),
            "the base as an adapter": adapters(first | {"id": good["base"]}) | {"method": "0"},
            "a method for one adapter": adapters(first) | {"method": "3"},
            "unknown method": good | {"method": "7"},
            "extra key": good | {"note": "x"},
        }.items()
    ]


def pipelines() -> Any:
    """Pipeline ids and packed forms."""
    return {
        "refused": refused_pipelines(),
        "type": type_string(Pipeline),
        "pipelines": [
            {
                "name": name,
                "value": pipeline.to_json(),
                "packed": format_bytes(pipeline.pack()),
                "pipelineId": format_bytes(pipeline.id),
            }
            for name, pipeline in PIPELINES.items()
        ],
    }


def pricing_vectors() -> Any:
    """Royalty schedules and running charges, with their rounding."""
    cases = []
    rates = pricing.ComputeRates(333_333_333_333_333, 999_999_999_999_999)
    for name, pipeline in PIPELINES.items():
        adapter_rates = tuple(10**13 + 7 * n for n in range(len(pipeline.adapters)))
        schedule = pricing.RoyaltySchedule.of(pipeline, 12_345_678_901_234, adapter_rates)
        tally, steps = pricing.Tally(), []
        for n, (prompt, completion) in enumerate([(1, 0), (0, 1), (17, 31), (1_000, 999_999), (123_456, 7)]):
            charge = 10**9 if n == 0 else 0
            result = pricing.charge(tally, schedule, rates, prompt, completion, charge)
            tally = result.after
            steps.append(
                {
                    "promptTokens": prompt,
                    "completionTokens": completion,
                    "settlementCharge": str(charge),
                    "compute": str(result.compute),
                    "royalties": str(result.royalties),
                    "cumulativeTokens": str(tally.tokens),
                    "cumulativeCompute": str(tally.compute),
                    "cumulativeRoyalties": str(schedule.royalties(tally.tokens)),
                    "shares": [str(share) for share in schedule.shares(schedule.royalties(tally.tokens))],
                }
            )
        cases.append(
            {
                "name": name,
                "pipelineId": format_bytes(pipeline.id),
                "inputRate": str(rates.input_rate),
                "outputRate": str(rates.output_rate),
                "baseRate": "12345678901234",
                "adapterRates": [str(rate) for rate in adapter_rates],
                "weights": [adapter.weight for adapter in pipeline.adapters],
                "numerators": [str(numerator) for numerator in schedule.numerators],
                "denominator": str(WEIGHT_ONE * pricing.TOKENS_PER_RATE),
                "steps": steps,
            }
        )
    return {"cases": cases, "bounds": bounds(), "owed": owed()}


def bounds() -> Any:
    """The largest legal rates and the most tokens that keep cumulative royalties within 128 bits."""
    pipeline = PIPELINES["four adapters, extreme weights"]
    schedule = pricing.RoyaltySchedule.of(pipeline, pricing.MAX_ROYALTY_RATE, (pricing.MAX_ROYALTY_RATE,) * 4)
    tokens = (2**128 - 1) * WEIGHT_ONE * pricing.TOKENS_PER_RATE // sum(schedule.numerators)
    royalties = schedule.royalties(tokens)
    return {
        "pipelineId": format_bytes(pipeline.id),
        "rate": str(pricing.MAX_ROYALTY_RATE),
        "tokens": str(tokens),
        "royalties": str(royalties),
        "shares": [str(share) for share in schedule.shares(royalties)],
    }


def owed() -> Any:
    """What vouchers of several shapes leave unpaid of one tally."""
    schedule = pricing.RoyaltySchedule.of(PIPELINE, 10**13, (5 * 10**13, 0))
    tally = pricing.Tally(1_000, 10**12)
    shapes = [(0, 0), (1_000, 10**6), (2**40, 0), (0, 10**30), (1_000, 10**6 - 1), (999, 10**6), (5_000, 10**9)]
    cases = []
    for tokens, compute in shapes:
        voucher = structs.Voucher(
            payer=PAYER.address,
            node=NODE_ID,
            pipeline_id=PIPELINE.id,
            cumulative_tokens=tokens,
            cumulative_compute=compute,
            reference_digest=bytes(32),
        )
        cases.append(
            {
                "cumulativeTokens": str(tokens),
                "cumulativeCompute": str(compute),
                "owed": str(tally.owed(schedule, voucher)),
            }
        )
    return {
        "pipelineId": format_bytes(PIPELINE.id),
        "baseRate": str(10**13),
        "adapterRates": [str(5 * 10**13), "0"],
        "tallyTokens": str(tally.tokens),
        "tallyComputeMicroWei": str(tally.compute_micro_wei),
        "vouchers": cases,
    }


def merkle_vectors() -> Any:
    """Trees of 1 to 9 leaves with every proof, and named-leaf roots."""
    trees = []
    for count in (1, 2, 3, 4, 5, 9):
        entries = [(word(f"contributor {n}")[:20], 10_000 // count + n) for n in range(count)]
        tree = merkle.MerkleTree(merkle.amount_leaf(*entry) for entry in entries)
        trees.append(
            {
                "root": format_bytes(tree.root),
                "entries": [
                    {
                        "account": format_address(account),
                        "amount": str(amount),
                        "leaf": format_bytes(merkle.amount_leaf(account, amount)),
                        "proof": [format_bytes(p) for p in tree.proof(merkle.amount_leaf(account, amount))],
                    }
                    for account, amount in entries
                ],
            }
        )
    named = [merkle.NamedLeaf("sampler", word("sampler"), word("salt")), merkle.NamedLeaf("datasets", word("d"))]
    return {
        "trees": trees,
        "receiptLeaf": {
            "salt": format_bytes(word("salt")),
            "digest": format_bytes(word("digest")),
            "leaf": format_bytes(merkle.receipt_leaf(word("salt"), word("digest"))),
        },
        "namedRoots": [
            {"leaves": [], "root": format_bytes(merkle.named_root([]))},
            {
                "leaves": [
                    {
                        "name": leaf.name,
                        "salt": format_bytes(leaf.salt),
                        "value": format_bytes(leaf.value),
                        "hash": format_bytes(leaf.hash()),
                    }
                    for leaf in named
                ],
                "root": format_bytes(merkle.named_root(named)),
            },
        ],
    }


def pattern(size: int) -> bytes:
    """`size` bytes: byte i is (i·i + i // 251) mod 256, easy to make in any language."""
    return bytes((i * i + i // 251) % 256 for i in range(size))


def chunk_vectors() -> Any:
    """Chunk trees of files around the chunk borders, with the proof of the last chunk."""
    files = []
    for size in (0, 1, chunks.CHUNK_SIZE, chunks.CHUNK_SIZE + 1, 2 * chunks.CHUNK_SIZE + 5, 5 * chunks.CHUNK_SIZE):
        data = pattern(size)
        hashes = [
            chunks.chunk_hash(data[start : start + chunks.CHUNK_SIZE])
            for start in range(0, max(size, 1), chunks.CHUNK_SIZE)
        ]
        tree = chunks.ChunkTree(hashes)
        files.append(
            {
                "size": size,
                "root": tree.root.hex(),
                "chunks": len(hashes),
                "proofOfLast": [p.hex() for p in tree.proof(len(hashes) - 1)],
            }
        )
    return {"chunkSize": chunks.CHUNK_SIZE, "content": "byte i is (i*i + i // 251) mod 256", "files": files}


def manifests() -> Any:
    """One manifest of each kind with its canonical text and id."""
    entry = manifest.FileEntry(path="adapter_model.safetensors", root=word("file").hex(), size=921_600)
    config = manifest.FileEntry(path="adapter_config.json", root=word("config").hex(), size=731)
    values = [
        manifest.BaseManifest(
            config={"architecture": "LlamaForCausalLM", "dtype": "float32", "context": 8192},
            files=(
                manifest.FileEntry(path="model.safetensors", root=word("model").hex(), size=538_090_408),
                manifest.FileEntry(path="tokenizer.json", root=word("tokenizer").hex(), size=3_519_858),
            ),
            tokenizer=word("tokenizer bytes").hex(),
            chat_template=word("template").hex(),
        ),
        manifest.AdapterManifest(
            config={"rank": 8, "alpha": "16", "targets": ["q_proj", "v_proj"], "note": "naïve \u2028 ünïcode 😀"},
            files=(config, entry),
            base=format_artifact_id(BASE),
            datasets=(format_artifact_id(word("dataset")),),
            recipe={"epochs": 3, "learning_rate": "0.0002"},
        ),
        manifest.DatasetManifest(
            config={"licence": "CC0-1.0", "samples": 120},
            files=(manifest.FileEntry(path="data/train.jsonl", root=word("jsonl").hex(), size=48_211),),
            shares_root=word("shares").hex(),
        ),
    ]
    text = values[1].encode().decode()
    refused = {
        "parent directory": text.replace("adapter_config.json", "../adapter_config.json"),
        "absolute path": text.replace("adapter_config.json", "/adapter_config.json"),
        "space after a comma": text.replace(",", ", ", 1),
        "unknown key": text.replace('{"base":', '{"author":1,"base":', 1),
        "a float": text.replace('"rank":8', '"rank":8.0'),
        "null": text.replace('"rank":8', '"rank":null'),
        "an escape that need not be": text.replace("q_proj", "q\\u005fproj"),
        "two files of one name": text.replace("adapter_model.safetensors", "adapter_config.json"),
    }
    return {
        "refused": [{"name": name, "text": wrong} for name, wrong in refused.items()],
        "manifests": [
            {"canonical": value.encode().decode(), "artifactId": format_artifact_id(value.id)} for value in values
        ],
    }


def leaf(name: str, value: int | bytes) -> merkle.NamedLeaf:
    """A leaf of the receipt whose salt is word("salt")."""
    return merkle.NamedLeaf(
        name, value if isinstance(value, bytes) else leaves.word(value), leaves.salt_of(word("salt"), name)
    )


EVIDENCE = Evidence(
    (leaf("base", word("base")), leaf("base/royalty", 0), leaf("royalties/undivided", -1)),
    (leaf("choice/0/tokens", 3),),
)


def wire() -> Any:
    """Frames of one message of each infer direction, the varints, the two plain hashes."""
    request = REQUEST.sign(DOMAIN, PAYER).pack()
    sent: list[messages.InferMessage] = [
        messages.AskQuote(id=1, payer=PAYER.address, pipeline=PIPELINE.pack()),
        messages.Infer(id=1, request=request, pipeline=PIPELINE.pack(), body=BODY),
        messages.Tokens(id=1, start=0, token_ids=TOKEN_IDS, text="ça"),
        messages.Done(id=1, receipt=RECEIPT.sign(DOMAIN, NODE).pack(), finish_reason="stop", salt=word("salt")),
        messages.Done(id=2, receipt=b"", finish_reason="stop", salt=word("salt"), evidence=EVIDENCE.pack()),
        messages.Paused(id=1, cumulative_tokens=16, cumulative_compute=(10**20).to_bytes(16, "big")),
        messages.ErrorReply(id=2, code="BUSY", message="busy", retry_after_ms=250, alternatives=(NODE_ID,)),
    ]
    others: list[tuple[messages.StreamProtocol[Any], messages.Message]] = [
        (
            messages.VOUCHER,
            messages.Account(
                ledgers=(
                    messages.Ledger(
                        signer=PAYER.address,
                        pipeline=PIPELINE.pack(),
                        tokens=16,
                        compute_micro_wei=(10**20).to_bytes(20, "big"),
                    ),
                ),
                open_receipts=(),
            ),
        ),
        (messages.VOUCHER, messages.GetProof(query=b"", receipt=word("receipt"))),
        (
            messages.VOUCHER,
            messages.Proof(
                salt=word("salt"), evidence=EVIDENCE.pack(), epoch=486_111, closed=True, path=(word("sibling"),)
            ),
        ),
        (messages.ADVERT, messages.GetAdverts(known=(NODE_ID + (7).to_bytes(8, "big"),))),
        (messages.ARTIFACT, messages.Chunk(file=0, index=2, data=b"chunk", proof=(word("sibling"),))),
    ]
    return {
        "frames": [
            {
                "protocol": protocol.id,
                "t": type(message).__struct_config__.tag,
                "frame": format_bytes(protocol.encode(message)),
            }
            for protocol, message in [*((messages.INFER, message) for message in sent), *others]
        ],
        "varints": {str(n): framing.encode_varint(n).hex() for n in (1, 127, 128, 300, 65_535, 2**28 - 1)},
        "bodyHash": {"body": format_bytes(BODY), "hash": format_bytes(structs.body_hash(BODY))},
        "outputHash": {
            "tokenIds": list(TOKEN_IDS),
            "hash": format_bytes(structs.output_hash(TOKEN_IDS)),
            "empty": format_bytes(structs.output_hash(())),
        },
        "keccak256": {"empty": format_bytes(keccak256(b""))},
        "evidence": {
            "salt": format_bytes(word("salt")),
            "packed": format_bytes(EVIDENCE.pack()),
            **{
                group: {
                    "leaves": [
                        {"name": leaf.name, "salt": format_bytes(leaf.salt), "value": format_bytes(leaf.value)}
                        for leaf in leaves_
                    ],
                    "root": format_bytes(merkle.named_root(leaves_)),
                }
                for group, leaves_ in (("attribution", EVIDENCE.attribution), ("commitment", EVIDENCE.commitment))
            },
        },
    }


FILES = {
    "eip712.json": eip712,
    "pipeline.json": pipelines,
    "pricing.json": pricing_vectors,
    "merkle.json": merkle_vectors,
    "chunks.json": chunk_vectors,
    "manifest.json": manifests,
    "wire.json": wire,
}


def render(name: str) -> str:
    """The text of one vector file."""
    return json.dumps(FILES[name](), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for file in FILES:
        (HERE / file).write_text(render(file), encoding="utf-8")
