"""The quotes that this node gave and still honours: bounded, and fair among the peers that ask. No chain, no I/O.

A peer that asks for ever more quotes pushes out its own oldest ones first, so that nobody can make the node forget what
it promised to others.
"""

from __future__ import annotations

from collections import OrderedDict

from ..admission import OpenQuote

_Key = tuple[bytes, bytes]


class QuoteBook:
    """Quotes by digest, and the newest of each payer and pipeline. Times are unix seconds."""

    def __init__(self, max_quotes: int, max_per_peer: int) -> None:
        self._max_quotes = max_quotes
        self._max_per_peer = max_per_peer
        self._quotes: OrderedDict[bytes, tuple[OpenQuote, str]] = OrderedDict()
        self._newest: dict[_Key, bytes] = {}
        self._of_peer: dict[str, OrderedDict[bytes, None]] = {}

    def __len__(self) -> int:
        return len(self._quotes)

    def find(self, digest: bytes) -> OpenQuote | None:
        """The quote of this digest."""
        held = self._quotes.get(digest)
        return held[0] if held else None

    def newest(self, payer: bytes, pipeline: bytes) -> OpenQuote | None:
        """The newest quote of a payer for a pipeline."""
        digest = self._newest.get((payer, pipeline))
        return None if digest is None else self.find(digest)

    def add(self, quote: OpenQuote, peer: str, now: int) -> None:
        """Remember a quote that `peer` asked for."""
        self._drop_expired(now)
        mine = self._of_peer.setdefault(peer, OrderedDict())
        while len(mine) >= self._max_per_peer:
            self._drop(next(iter(mine)))
            mine = self._of_peer.setdefault(peer, OrderedDict())
        while len(self._quotes) >= self._max_quotes:
            self._drop(next(iter(self._largest_share())))
            mine = self._of_peer.setdefault(peer, OrderedDict())
        self._quotes[quote.digest] = (quote, peer)
        mine[quote.digest] = None
        self._newest[_key(quote)] = quote.digest

    def _largest_share(self) -> OrderedDict[bytes, None]:
        return max(self._of_peer.values(), key=len)

    def _drop_expired(self, now: int) -> None:
        # All quotes live equally long at most, so the oldest come first.
        while self._quotes:
            digest, (quote, _) = next(iter(self._quotes.items()))
            if quote.quote.expires_at >= now:
                return
            self._drop(digest)

    def _drop(self, digest: bytes) -> None:
        quote, peer = self._quotes.pop(digest)
        mine = self._of_peer[peer]
        del mine[digest]
        if not mine:
            del self._of_peer[peer]
        if self._newest.get(_key(quote)) == digest:
            del self._newest[_key(quote)]


def _key(quote: OpenQuote) -> _Key:
    return quote.quote.payer, quote.pipeline.id
