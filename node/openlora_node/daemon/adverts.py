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
    """What the advert is made of. `serving` says whether a request that came now would be served.

    `bases` are the base models that are served now, or all of them while none is; `infos` the engines that serve.
    """

    serving: bool = False
    draining: bool = False
    bases: tuple[bytes, ...] = ()
    adapters: frozenset[bytes] = frozenset()
    infos: tuple[EngineInfo, ...] = ()
    queue: int = 0
    tokens_per_second: float = 0.0
    hardware: Hardware = field(default_factory=Hardware)


def state_of(situation: Situation) -> NodeState:
    """A node that would refuse a request is not ONLINE, whatever the reason."""
    if situation.draining:
        return NodeState.DRAINING
    return NodeState.ONLINE if situation.serving else NodeState.JOINING


def own_state(situation: Situation, pricing: Pricing) -> OwnState:
    """The advert's contents. Reach and addresses are the network's own to fill in.

    One advert speaks for all engines: queue and speed are their sums, the context is what every base takes, since a
    payer that trusts the advert must not be refused for its prompt's length.
    """
    infos = situation.infos
    return OwnState(
        state=state_of(situation),
        base_models=situation.bases,
        adapters=situation.adapters,
        input_rate=pricing.input,
        output_rate=pricing.output,
        queue_depth=min(situation.queue, MAX_U32),
        tokens_per_second=min(max(0, round(situation.tokens_per_second)), MAX_U32),
        max_context=min((info.max_model_len for info in infos), default=0),
        hardware=situation.hardware,
        dtype=_printable(_of_all({info.dtype for info in infos})),
        version=_printable(version("openlora-node")),
    )


def _of_all(dtypes: set[str]) -> str:
    """The number format of all engines; bytes of an advert are few, so different ones are not listed."""
    return next(iter(dtypes)) if len(dtypes) == 1 else "mixed" if dtypes else ""


def _printable(text: str) -> str:
    """Of another program's word what an advert may hold."""
    return re.sub(r"[^\x20-\x7e]", "", text)[:32]
