"""Prefixes being computed: who computes which, and who waits instead of computing the same. Knows block names only."""

from __future__ import annotations

from collections.abc import Iterable

from .sequence import Sequence


class SharedPrefills:
    """Running sequences with the full blocks they will compute (*leaders*), and those put off for them (*followers*).

    A follower waits for the last of the leader's blocks that it shares, then starts with all of them cached; so `n`
    choices, or a burst of requests with one system prompt, cost one prefill. A leader that pauses, is preempted or ends
    frees its followers at once: nobody waits for a sequence that does not run.
    """

    def __init__(self) -> None:
        self._leaders: dict[bytes, Sequence] = {}
        """Block name -> the running sequence that will compute it."""
        self._led: dict[Sequence, dict[bytes, None]] = {}
        self._followers: dict[bytes, dict[Sequence, None]] = {}
        self._awaited: dict[Sequence, bytes] = {}

    def __len__(self) -> int:
        """Followers."""
        return len(self._awaited)

    def __contains__(self, seq: Sequence) -> bool:
        """Whether `seq` is a follower."""
        return seq in self._awaited

    def lead(self, seq: Sequence, names: Iterable[bytes]) -> None:
        """`seq` runs and will compute the blocks `names`; those another computes already stay that one's."""
        led = {name: None for name in names if name not in self._leaders}
        if led:
            self._led[seq] = led
            self._leaders.update(dict.fromkeys(led, seq))

    def worth_following(self, names: list[bytes], num_matched: int) -> bytes | None:
        """For a sequence with blocks `names`, of which the first `num_matched` are cached: the last of the blocks right
        after those that one leader is about to compute; None where the next block is nobody's."""
        awaited = None
        leader = self._leaders.get(names[num_matched]) if num_matched < len(names) else None
        if leader is not None:
            for name in names[num_matched:]:
                if self._leaders.get(name) is not leader:
                    break
                awaited = name
        return awaited

    def follow(self, seq: Sequence, name: bytes) -> None:
        """Put `seq` off until `name` is computed."""
        self._followers.setdefault(name, {})[seq] = None
        self._awaited[seq] = name

    def computed(self, seq: Sequence, names: Iterable[bytes]) -> list[Sequence]:
        """The leader `seq` has computed `names`: returns the followers that waited for one of them."""
        led = self._led.get(seq)
        freed: list[Sequence] = []
        if led is not None:
            for name in names:
                if led.pop(name, 0) is None:
                    freed += self._release(name)
            if not led:
                del self._led[seq]
        return freed

    def stop_leading(self, seq: Sequence) -> list[Sequence]:
        """`seq` does not run any more: returns its followers."""
        freed: list[Sequence] = []
        for name in self._led.pop(seq, {}):
            freed += self._release(name)
        return freed

    def discard(self, seq: Sequence) -> bool:
        """A follower was cancelled or paused; False if it was none."""
        name = self._awaited.pop(seq, None)
        if name is None:
            return False
        followers = self._followers[name]
        del followers[seq]
        if not followers:
            del self._followers[name]
        return True

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Assert that leaders run and that every follower waits for a leader."""
        assert set(self._led) <= set(running), "a leader does not run"
        assert {name: seq for seq, led in self._led.items() for name in led} == self._leaders, "leaders differ"
        assert set(self._followers) <= set(self._leaders), "a follower waits for nobody"
        waits = {seq: name for name, followers in self._followers.items() for seq in followers}
        assert waits == self._awaited, "followers differ"

    def _release(self, name: bytes) -> list[Sequence]:
        del self._leaders[name]
        freed = list(self._followers.pop(name, ()))
        for seq in freed:
            del self._awaited[seq]
        return freed
