"""Search in a suffix array of token ids: where a window of tokens stands, how often, and the longest match there is.

All positions of a response are searched at once, a step of the binary search for each: numpy does the comparing. The
tokens end with `WINDOW` separators so that no comparison runs past the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.uint32]
Positions = NDArray[np.int64]

WINDOW = 32
"""Longest match that is told, in tokens; longer copies are seen as overlapping ones."""
GLANCE = 8
"""Tokens that are compared at first."""
BATCH = 4096
"""Windows searched at once: bounds the memory at 4 MB a step."""


@dataclass(frozen=True)
class SuffixArray:
    """`tokens` [N + WINDOW] uint16 or uint32, the last WINDOW separators; `order` [N] uint32: their suffixes sorted.

    The largest value of the dtype is the separator, the one below stands for ids that the tokens cannot hold: a
    tokenizer's ids are below both.
    """

    tokens: NDArray[np.uint16] | Ids
    order: Ids

    @classmethod
    def of(cls, tokens: NDArray[np.uint16] | Ids) -> SuffixArray:
        """Sort the suffixes of `tokens` [N], to which a separator is added where they do not end in one.

        Else a suffix would be sorted before those that it begins, and found behind them: the search reads separators
        past the end.
        """
        from pydivsufsort import divsufsort  # type: ignore[import-untyped] # slow, and not needed to search

        separator = separator_of(tokens.dtype)
        if len(tokens) and tokens[-1] != separator:
            tokens = np.concatenate([tokens, np.full(1, separator, tokens.dtype)])
        separators = np.full(WINDOW, separator, tokens.dtype)
        order = divsufsort(np.ascontiguousarray(tokens)) if len(tokens) else np.empty(0)
        return cls(np.concatenate([tokens, separators]), order.astype(np.uint32))

    def __len__(self) -> int:
        return len(self.order)

    def longest(self, query: Ids, starts: Positions) -> Positions:
        """For each start in `query` [L]: the longest match, at most WINDOW tokens, that begins there. [len(starts)]"""
        found = np.zeros(len(starts), np.int64)
        if not len(self):
            return found
        for first in range(0, len(starts), BATCH):
            part = slice(first, first + BATCH)
            found[part] = self._longest(query, starts[part], GLANCE)
        whole = np.flatnonzero(found == GLANCE)  # few matches reach so far, and a narrow comparison costs a quarter
        for first in range(0, len(whole), BATCH):
            places = whole[first : first + BATCH]
            found[places] = self._longest(query, starts[places], WINDOW)
        return found

    def ranges(self, query: Ids, starts: Positions, lengths: Positions) -> tuple[Positions, Positions]:
        """For each span query[start : start + length]: the half-open range of `order` whose suffixes begin with it."""
        low, high = np.empty(len(starts), np.int64), np.empty(len(starts), np.int64)
        for first in range(0, len(starts), BATCH):
            part = slice(first, first + BATCH)
            windows = self._windows(query, starts[part], WINDOW)
            low[part] = self._bound(windows, lengths[part], after=False)
            high[part] = self._bound(windows, lengths[part], after=True)
        return low, high

    def contains(self, query: Ids, starts: Positions, lengths: Positions) -> NDArray[np.bool_]:
        """Whether each span stands here at all."""
        if not len(self):
            return np.zeros(len(starts), bool)
        held = np.zeros(len(starts), bool)
        for first in range(0, len(starts), BATCH):
            part = slice(first, first + BATCH)
            windows = self._windows(query, starts[part], WINDOW)
            place = self._bound(windows, lengths[part], after=False)
            common = self._common(np.minimum(place, len(self) - 1), windows, lengths[part])
            held[part] = (place < len(self)) & (common == lengths[part])
        return held

    def _longest(self, query: Ids, starts: Positions, width: int) -> Positions:
        windows = self._windows(query, starts, width)
        lengths = np.minimum(width, len(query) - starts)
        place = self._bound(windows, lengths, after=False)
        best = np.zeros(len(starts), np.int64)
        for neighbour in (place - 1, place):  # what is most like a string stands beside its place
            inside = (neighbour >= 0) & (neighbour < len(self))
            common = self._common(neighbour.clip(0, len(self) - 1), windows, lengths)
            best = np.maximum(best, np.where(inside, common, 0))
        return best

    def _bound(self, windows: NDArray[Any], lengths: Positions, *, after: bool) -> Positions:
        """The first place whose suffix is not below (with `after`: is above) each window, judged by its length."""
        low = np.zeros(len(windows), np.int64)
        high = np.full(len(windows), len(self), np.int64)
        compared = np.arange(windows.shape[1]) < lengths[:, None]
        rows = np.arange(len(windows))
        for _ in range(len(self).bit_length()):
            middle = (low + high) >> 1
            held = self._held(np.minimum(middle, len(self) - 1), windows.shape[1])
            differs = (held != windows) & compared
            first = differs.argmax(axis=1)
            below = np.where(differs[rows, first], held[rows, first] < windows[rows, first], after)
            open_ = low < high
            low = np.where(open_ & below, middle + 1, low)
            high = np.where(open_ & ~below, middle, high)
        return low

    def _common(self, places: Positions, windows: NDArray[Any], lengths: Positions) -> Positions:
        """Tokens that the suffix at each place shares with the window."""
        width = windows.shape[1]
        differs = (self._held(places, width) != windows) | (np.arange(width) >= lengths[:, None])
        common: Positions = np.where(differs.any(axis=1), differs.argmax(axis=1), width)
        return common

    def _held(self, places: Positions, width: int) -> NDArray[Any]:
        """The first tokens of the suffixes at these places, [n, width]."""
        held: NDArray[Any] = self.tokens[self.order[places].astype(np.int64)[:, None] + np.arange(width)]
        return held

    def _windows(self, query: Ids, starts: Positions, width: int) -> NDArray[Any]:
        """The tokens from each start, [n, width]; what lies past the end is not compared."""
        foreign = separator_of(self.tokens.dtype) - 1
        padded = np.concatenate([np.minimum(query, foreign), np.zeros(width, np.uint32)]).astype(self.tokens.dtype)
        windows: NDArray[Any] = padded[starts[:, None] + np.arange(width)]
        return windows


def separator_of(dtype: Any) -> int:
    """The value between documents: the largest that the dtype holds."""
    return int(np.iinfo(dtype).max)
