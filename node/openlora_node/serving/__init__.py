"""One paid request on the node: door, reservation, engine, stream against vouchers, receipt, closing voucher."""

from .ports import (
    Alternatives,
    ArtifactsLike,
    ChainLike,
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
    "EngineLike",
    "InboundLike",
    "Prices",
    "Serving",
    "ServingLoad",
    "ServingOptions",
]
