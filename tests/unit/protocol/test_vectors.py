"""The published vectors: what the code makes today is what is committed, and an independent reader agrees."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import _hash_eip191_message, encode_typed_data
from eth_utils import keccak

from openlora_node.attribution import Evidence
from openlora_node.protocol import chunks, manifest, merkle, structs
from openlora_node.protocol.crypto import recover
from openlora_node.protocol.eip712 import Domain, Signed
from openlora_node.protocol.errors import ProtocolError
from openlora_node.protocol.framing import FrameDecoder, encode_varint
from openlora_node.protocol.ids import parse_address
from openlora_node.protocol.messages import PROTOCOLS
from openlora_node.protocol.pipeline import Pipeline
from openlora_node.protocol.pricing import ComputeRates, RoyaltySchedule, Tally, charge

VECTORS = Path(__file__).parents[2] / "vectors"
NAMES = sorted(path.name for path in VECTORS.glob("*.json"))


def load(name: str) -> Any:
    return json.loads((VECTORS / name).read_text(encoding="utf-8"))


def unhex(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_vectors", VECTORS / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_committed_vectors_are_what_the_code_makes(make: ModuleType, name: str) -> None:
    assert sorted(make.FILES) == NAMES
    assert (VECTORS / name).read_text(encoding="utf-8") == make.render(name), "run python tests/vectors/make.py"


def test_eth_account_agrees_with_the_struct_vectors() -> None:
    data = load("eip712.json")
    domain_fields = {key: value for key, value in data["domain"].items() if key != "separator"}
    domain_fields["chainId"] = int(domain_fields["chainId"])
    for case in data["structs"]:
        message = encode_typed_data(domain_fields, member_types(case["type"]), typed_values(case))
        assert _hash_eip191_message(message) == unhex(case["digest"])
        assert Account.recover_message(message, signature=case["signature"]) == case["signer"]
        assert keccak(case["type"].encode()) == unhex(case["typeHash"])


def member_types(type_string: str) -> dict[str, list[dict[str, str]]]:
    types = {}
    for struct in type_string.rstrip(")").split(")"):
        name, members = struct.split("(")
        types[name] = [{"type": m.split(" ")[0], "name": m.split(" ")[1]} for m in members.split(",")]
    return types


def typed_values(case: Any) -> Any:
    types = member_types(case["type"])

    def convert(kind: str, value: Any) -> Any:
        if kind.endswith("[]"):
            return [convert(kind[:-2], item) for item in value]
        if kind in types:
            return {member["name"]: convert(member["type"], value[member["name"]]) for member in types[kind]}
        return int(value) if "int" in kind else value

    return convert(case["primaryType"], case["value"])


def test_struct_vectors_parse_from_every_form() -> None:
    data = load("eip712.json")
    domain = Domain(
        chain_id=int(data["domain"]["chainId"]), verifying_contract=parse_address(data["domain"]["verifyingContract"])
    )
    assert domain.separator() == unhex(data["domain"]["separator"])
    for case in data["structs"]:
        struct = getattr(structs, case["primaryType"])
        signed = Signed.unpack(struct, unhex(case["packed"]))
        assert signed.value == struct.from_json(case["value"])
        assert signed.value.digest(domain) == unhex(case["digest"])
        assert signed.signer(domain) == parse_address(case["signer"])
    for case in data["refusedSignatures"]:
        with pytest.raises(ProtocolError):
            recover(unhex(case["digest"]), unhex(case["signature"]))


def test_pipeline_and_pricing_vectors() -> None:
    by_id = {case["pipelineId"]: Pipeline.from_json(case["value"]) for case in load("pipeline.json")["pipelines"]}
    for identity, pipeline in by_id.items():
        assert pipeline.id == unhex(identity)
    for case in load("pricing.json")["cases"]:
        rates = ComputeRates(int(case["inputRate"]), int(case["outputRate"]))
        schedule = RoyaltySchedule.of(
            by_id[case["pipelineId"]], int(case["baseRate"]), tuple(int(rate) for rate in case["adapterRates"])
        )
        tally = Tally()
        assert [str(numerator) for numerator in schedule.numerators] == case["numerators"]
        for step in case["steps"]:
            charged = charge(
                tally, schedule, rates, step["promptTokens"], step["completionTokens"], int(step["settlementCharge"])
            )
            tally = charged.after
            assert (str(charged.compute), str(charged.royalties)) == (step["compute"], step["royalties"])
            cumulative = schedule.royalties(tally.tokens)
            assert (str(tally.tokens), str(tally.compute), str(cumulative)) == (
                step["cumulativeTokens"],
                step["cumulativeCompute"],
                step["cumulativeRoyalties"],
            )
            assert [str(share) for share in schedule.shares(cumulative)] == step["shares"]


def test_refused_vectors_are_refused() -> None:
    for case in load("pipeline.json")["refused"]:
        with pytest.raises(ProtocolError):
            Pipeline.from_json(case["value"])
    for case in load("manifest.json")["refused"]:
        with pytest.raises(ProtocolError):
            manifest.decode_manifest(case["text"].encode())


def test_bounds_and_debts_by_plain_arithmetic() -> None:
    data = load("pricing.json")
    bounds = data["bounds"]
    rate, tokens = int(bounds["rate"]), int(bounds["tokens"])
    assert rate == 2**96 - 1
    by_id = {case["pipelineId"]: case["value"] for case in load("pipeline.json")["pipelines"]}
    weights = [abs(int(adapter["weight"])) for adapter in by_id[bounds["pipelineId"]]["adapters"]]
    counted = [10_000, *(min(weight, 10_000) for weight in weights)]
    royalties = int(bounds["royalties"])
    assert royalties == tokens * rate * sum(counted) // 10**10 < 2**128
    assert [int(share) for share in bounds["shares"]] == [royalties * part // sum(counted) for part in counted]
    owed = data["owed"]
    per_token = int(owed["baseRate"]) + int(owed["adapterRates"][0]) * 7_000 // 10_000
    tokens, compute = int(owed["tallyTokens"]), int(owed["tallyComputeMicroWei"]) // 10**6
    for case in owed["vouchers"]:
        royalties = tokens * per_token // 10**6 - int(case["cumulativeTokens"]) * per_token // 10**6
        assert int(case["owed"]) == max(0, compute - int(case["cumulativeCompute"])) + max(0, royalties)


def test_merkle_vectors_verify() -> None:
    data = load("merkle.json")
    receipt = data["receiptLeaf"]
    assert keccak(keccak(unhex(receipt["salt"]) + unhex(receipt["digest"]))) == unhex(receipt["leaf"])
    named = data["namedRoots"][1]
    hashes = sorted(
        keccak(keccak(keccak(leaf["name"].encode()) + unhex(leaf["salt"]) + unhex(leaf["value"])))
        for leaf in named["leaves"]
    )
    assert keccak(b"".join(hashes)) == unhex(named["root"])
    for tree in data["trees"]:
        for item in tree["entries"]:
            leaf = merkle.amount_leaf(parse_address(item["account"]), int(item["amount"]))
            assert leaf == unhex(item["leaf"])
            assert merkle.verify_proof(unhex(tree["root"]), leaf, [unhex(p) for p in item["proof"]])


def test_chunk_and_manifest_vectors_verify() -> None:
    data = load("chunks.json")
    for file in data["files"]:
        size, last = file["size"], file["chunks"] - 1
        start = last * data["chunkSize"]
        content = bytes((i * i + i // 251) % 256 for i in range(start, size))
        chunks.verify_chunk(unhex(file["root"]), size, last, content, [unhex(p) for p in file["proofOfLast"]])
    for case in load("manifest.json")["manifests"]:
        manifest.decode_manifest(case["canonical"].encode(), unhex(case["artifactId"][7:]))  # type: ignore[arg-type]


def test_wire_vectors_decode() -> None:
    data = load("wire.json")
    for case in data["frames"]:
        (protocol,) = (protocol for protocol in PROTOCOLS if protocol.id == case["protocol"])
        (payload,) = FrameDecoder(protocol.max_frame).feed(unhex(case["frame"]))
        message = protocol.decode(payload)
        assert type(message).__struct_config__.tag == case["t"]
        assert protocol.encode(message) == unhex(case["frame"])
    stated = data["evidence"]
    evidence = Evidence.read(unhex(stated["packed"]), unhex(stated["salt"]))
    assert evidence.pack() == unhex(stated["packed"])
    for group in ("attribution", "commitment"):
        leaves = getattr(evidence, group)
        assert [leaf.name for leaf in leaves] == [leaf["name"] for leaf in stated[group]["leaves"]]
        assert [leaf.salt for leaf in leaves] == [unhex(leaf["salt"]) for leaf in stated[group]["leaves"]]
        assert [leaf.value for leaf in leaves] == [unhex(leaf["value"]) for leaf in stated[group]["leaves"]]
        assert merkle.named_root(leaves) == unhex(stated[group]["root"])
    for number, encoded in data["varints"].items():
        assert encode_varint(int(number)).hex() == encoded
    assert structs.body_hash(unhex(data["bodyHash"]["body"])) == unhex(data["bodyHash"]["hash"])
    assert structs.output_hash(data["outputHash"]["tokenIds"]) == unhex(data["outputHash"]["hash"])
