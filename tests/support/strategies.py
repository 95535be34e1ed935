"""Hypothesis strategies for the protocol's values, built from the structs' own field types."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from openlora_node.protocol import structs
from openlora_node.protocol.eip712 import Domain, TypedStruct, layout_of
from openlora_node.protocol.pipeline import WEIGHT_QUANTUM, Adapter, MixMethod, Pipeline

bytes20 = st.binary(min_size=20, max_size=20)
bytes32 = st.binary(min_size=32, max_size=32)
domains = st.builds(Domain, chain_id=st.integers(1, 2**256 - 1), verifying_contract=bytes20)


def field(name: str) -> st.SearchStrategy[Any]:
    """Any value of a Solidity type, edges included."""
    if name.endswith("[]"):
        return st.lists(field(name[:-2]), max_size=4).map(tuple)
    if name == "bytes32":
        return bytes32
    if name == "address":
        return bytes20
    if name == "string":
        return st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    if name == "Royalty":
        return typed(structs.Royalty)
    bits = int(name.lstrip("uint"))
    return st.integers(0, 2**bits - 1) if name.startswith("u") else st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def typed(struct: type[TypedStruct], **fixed: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Any value of a struct whose fields are independent of each other."""
    layout = layout_of(struct)
    fields = {name: field(codec.name) for name, codec in zip(layout.names, layout.codecs, strict=True)}
    return st.builds(struct, **(fields | fixed))


@st.composite
def living(draw: st.DrawFn, struct: type[TypedStruct], longest: int, **fixed: st.SearchStrategy[Any]) -> Any:
    """A struct with issued_at < expires_at ≤ issued_at + longest."""
    issued = draw(st.integers(0, 2**64 - 1 - longest))
    expires = issued + draw(st.integers(1, longest))
    return draw(typed(struct, issued_at=st.just(issued), expires_at=st.just(expires), **fixed))


@st.composite
def receipts(draw: st.DrawFn, **fixed: st.SearchStrategy[Any]) -> structs.Receipt:
    """Any valid receipt."""
    started, finished = sorted(draw(st.tuples(*[st.integers(0, 2**64 - 1)] * 2)))
    status = draw(st.sampled_from(structs.ReceiptStatus))
    free = status == structs.ReceiptStatus.FAILED
    amount = st.just(0) if free else st.integers(0, 2**127 - 1)
    count = st.just(0) if free else st.integers(0, 2**64 - 1)
    counts = {"prompt_tokens": count, "completion_tokens": count}
    times = {"started_at": st.just(started), "finished_at": st.just(finished)}
    return draw(
        typed(structs.Receipt, status=st.just(status), compute=amount, royalties=amount, **counts, **times, **fixed)
    )


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    """Any canonical pipeline."""
    base, *ids = draw(st.lists(bytes32, min_size=1, max_size=5, unique=True))
    weights = st.integers(-4_294_967, 4_294_967).filter(bool).map(lambda n: n * WEIGHT_QUANTUM)
    adapters = [
        Adapter(id=identity, terms_version=draw(st.integers(0, 2**32 - 1)), weight=draw(weights)) for identity in ids
    ]
    version = draw(st.integers(0, 2**32 - 1))
    return Pipeline.of(base, *adapters, base_terms_version=version, method=draw(st.sampled_from(MixMethod)))


quotes = living(
    structs.Quote,
    structs.MAX_QUOTE_LIFETIME_S,
    royalties=st.lists(typed(structs.Royalty), min_size=1, max_size=5, unique_by=lambda r: r.artifact).map(tuple),
)
requests = living(structs.Request, structs.MAX_REQUEST_LIFETIME_S)
vouchers = typed(structs.Voucher, cumulative_tokens=st.integers(0, structs.MAX_CUMULATIVE_TOKENS))
adverts = living(
    structs.NodeAdvert,
    structs.MAX_ADVERT_LIFETIME_S,
    state=st.sampled_from(structs.NodeState),
    reach=st.sampled_from(structs.Reach),
    base_models=st.lists(bytes32, max_size=2).map(tuple),
    addresses=st.lists(st.text("abcdefgh/.0123", max_size=20), max_size=2).map(tuple),
    device=st.text("abc é×", max_size=12),
    dtype=st.text("abc16", max_size=8),
    version=st.text("0123.", max_size=8),
    memory_total=st.just(2**32 - 1),
)
queries = typed(structs.AccountQuery)
proofs = st.one_of(typed(structs.NodeKeyProof), typed(structs.SignerProof))
signed_structs = st.one_of(quotes, requests, vouchers, receipts(), adverts, queries, proofs, pipelines())
