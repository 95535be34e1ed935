"""What the node says of itself in its advert, put together from what its rooms know. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib.metadata import version

from ..config.schema import Pricing
from ..engineclient import EngineInfo
from ..network.adverts import OwnState
from ..network.hardware import Hardware
from ..protocol.structs import NodeState

MAX_U32 = (1 << 32) - 1


@dataclass(frozen=True)
class Situation:
    """What the advert is made of. `serving` says whether a request that came now would be served."""

    serving: bool = False
    draining: bool = False
    base: bytes | None = None
    adapters: frozenset[bytes] = frozenset()
    info: EngineInfo | None = None
    queue: int = 0
    tokens_per_second: float = 0.0
    hardware: Hardware = field(default_factory=Hardware)


def state_of(situation: Situation) -> NodeState:
    """A node that would refuse a request is not ONLINE, whatever the reason."""
    if situation.draining:
        return NodeState.DRAINING
    return NodeState.ONLINE if situation.serving else NodeState.JOINING


def own_state(situation: Situation, pricing: Pricing) -> OwnState:
    """The advert's contents. Reach and addresses are the network's own to fill in."""
    info = situation.info
    return OwnState(
        state=state_of(situation),
        base_models=() if situation.base is None else (situation.base,),
        adapters=situation.adapters,
        input_rate=pricing.input,
        output_rate=pricing.output,
        queue_depth=min(situation.queue, MAX_U32),
        tokens_per_second=min(max(0, round(situation.tokens_per_second)), MAX_U32),
        max_context=info.max_model_len if info else 0,
        hardware=situation.hardware,
        dtype=_printable(info.dtype if info else ""),
        version=_printable(version("openlora-node")),
    )


def _printable(text: str) -> str:
    """Of another program's word what an advert may hold."""
    return re.sub(r"[^\x20-\x7e]", "", text)[:32]
