"""One paid request on the node: door, reservation, engine, stream against vouchers, receipt, closing voucher."""

from .ports import (
    Alternatives,
    ArtifactsLike,
    ChainLike,
    EngineChoice,
    EngineLike,
    InboundLike,
    Prices,
    ServingLoad,
    ServingOptions,
)
from .service import Serving

__all__ = [
    "Alternatives",
    "ArtifactsLike",
    "ChainLike",
    "EngineChoice",
    "EngineLike",
    "InboundLike",
    "Prices",
    "Serving",
    "ServingLoad",
    "ServingOptions",
]
