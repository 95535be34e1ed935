"""What a node says of itself: ONLINE only when a request that came now would be served."""

from __future__ import annotations

from dataclasses import replace

import pytest

from openlora_node.config.engines import MAX_MODELS
from openlora_node.config.schema import Config
from openlora_node.daemon.adverts import Situation, own_state
from openlora_node.engineclient import EngineInfo
from openlora_node.network.adverts import make_advert
from openlora_node.network.hardware import Hardware
from openlora_node.protocol.crypto import LocalSigner
from openlora_node.protocol.eip712 import Domain
from openlora_node.protocol.ids import Address
from openlora_node.protocol.structs import NodeState

PRICING = Config.model_validate({"pricing": {"input": "1 OPEN", "output": "2 OPEN"}}).pricing
INFO = EngineInfo("m", "", 4_096, "1", bytes(32), dtype="bfloat16\n\u2028")


@pytest.mark.parametrize(
    ("serving", "draining", "state"),
    [
        (True, False, NodeState.ONLINE),
        (False, False, NodeState.JOINING),
        (True, True, NodeState.DRAINING),
        (False, True, NodeState.DRAINING),
    ],
)
def test_the_state_follows_what_a_request_would_meet(serving: bool, draining: bool, state: NodeState) -> None:
    assert own_state(Situation(serving=serving, draining=draining), PRICING).state is state


def test_everything_else_is_the_rooms_word_within_what_an_advert_holds() -> None:
    found = own_state(
        Situation(
            serving=True, bases=(b"\x01" * 32,), adapters=frozenset({b"\x02" * 32}), infos=(INFO,), queue=1 << 40,
            tokens_per_second=12.6, hardware=Hardware("card", 10, 5),
        ),
        PRICING,
    )  # fmt: skip
    assert found.base_models == (b"\x01" * 32,)
    assert found.adapters == {b"\x02" * 32}
    assert (found.input_rate, found.output_rate) == (10**18, 2 * 10**18)
    assert (found.queue_depth, found.tokens_per_second, found.max_context) == ((1 << 32) - 1, 13, 4_096)
    assert found.dtype == "bfloat16", "texts of an advert are printable"
    assert found.hardware == Hardware("card", 10, 5)


def test_before_the_engine_has_spoken_nothing_is_claimed_for_it() -> None:
    found = own_state(Situation(), PRICING)
    assert (found.base_models, found.max_context, found.dtype) == ((), 0, "")


def test_several_engines_speak_in_one_advert_that_promises_what_each_base_keeps() -> None:
    other = EngineInfo("n", "", 2_048, "1", bytes(32), dtype="float16")
    found = own_state(Situation(bases=(b"\x01" * 32, b"\x03" * 32), infos=(INFO, other, other)), PRICING)
    assert found.base_models == (b"\x01" * 32, b"\x03" * 32)
    assert found.max_context == 2_048, "no payer is refused for a prompt that the advert said would fit"
    assert found.dtype == "mixed"


def test_an_advert_of_as_many_bases_as_a_node_may_have_leaves_room_for_an_address() -> None:
    state = own_state(
        Situation(
            serving=True, bases=tuple(bytes([n]) * 32 for n in range(MAX_MODELS)), queue=1 << 40,
            infos=tuple(replace(INFO, dtype=f"a number format {n}") for n in range(MAX_MODELS)),
            tokens_per_second=1e12, hardware=Hardware("N" * 32, 1 << 20, 1 << 20),
        ),
        PRICING,
    )  # fmt: skip
    relayed = "/ip4/203.0.113.123/tcp/40010/p2p/16Uiu2HAmPWgYWvKgSoRWpZGQjJRXcS8mUKYHUDxk2ytKSSoS1Y7B/p2p-circuit"
    signed = make_advert(
        bytes(32), replace(state, addresses=(relayed,)), bytes(32), seq=1 << 60, now=1_700_000_000, lifetime_s=180,
        domain=Domain(chain_id=1, verifying_contract=Address(bytes(20))), key=LocalSigner(b"\x01" * 32),
    )  # fmt: skip
    assert signed.value.addresses == (relayed,)
    assert len(signed.value.base_models) == MAX_MODELS
