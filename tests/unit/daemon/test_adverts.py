"""What a node says of itself: ONLINE only when a request that came now would be served."""

from __future__ import annotations

import pytest

from openlora_node.config.schema import Config
from openlora_node.daemon.adverts import Situation, own_state
from openlora_node.engineclient import EngineInfo
from openlora_node.network.hardware import Hardware
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
            serving=True, base=b"\x01" * 32, adapters=frozenset({b"\x02" * 32}), info=INFO, queue=1 << 40,
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
