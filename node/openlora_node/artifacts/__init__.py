"""The content-addressed store of adapters, base models and datasets. Knows no network and no chain."""

from .contents import Kind, content_size, footprint
from .describing import About
from .index import Entry
from .packing import Packed
from .partial import Partial, Progress
from .reading import Piece
from .shares import ShareTable
from .space import Collected, Usage
from .store import ArtifactStore

__all__ = [
    "About",
    "ArtifactStore",
    "Collected",
    "Entry",
    "Kind",
    "Packed",
    "Partial",
    "Piece",
    "Progress",
    "ShareTable",
    "Usage",
    "content_size",
    "footprint",
]
