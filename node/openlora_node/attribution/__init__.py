"""Receipts: what a response was made with, what it cost, and how that is proven to anyone."""

from .bundle import Bundle, verify
from .epochs import EpochRoot, Epochs, EpochTotals
from .evidence import Evidence
from .export import evidence_of, export
from .parts import Behind, Output, Part, Sampling
from .receipt import Outcome, build_receipt

__all__ = [
    "Behind",
    "Bundle",
    "EpochRoot",
    "EpochTotals",
    "Epochs",
    "Evidence",
    "Outcome",
    "Output",
    "Part",
    "Sampling",
    "build_receipt",
    "evidence_of",
    "export",
    "verify",
]
