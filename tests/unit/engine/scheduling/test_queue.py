"""The waiting queue against a brute-force reading of its rules."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from openlora_engine.scheduling import FairShare, Sequence
from openlora_engine.scheduling.queue import RANKED, Lane, WaitingQueue

ADAPTERS = (None, "a", "b", "c")


class Model:
    """Sequences in a list, ranked from scratch each time."""

    def __init__(self, share: FairShare) -> None:
        self.share = share
        self.waiting: list[Sequence] = []
        self.lane: dict[str | None, Lane] = dict.fromkeys(ADAPTERS, Lane.RESIDENT)

    def heads(self, lanes: tuple[Lane, ...]) -> list[Sequence]:
        flows: dict[tuple[str, str | None], Sequence] = {}
        for seq in sorted(self.waiting, key=lambda seq: seq.order):
            if self.lane[seq.adapter] in lanes:
                flows.setdefault((seq.tenant, seq.adapter), seq)
        return list(flows.values())

    def fairest(self, lanes: tuple[Lane, ...]) -> Sequence | None:
        def rank(seq: Sequence) -> tuple[tuple[float, int], tuple[float, int]]:
            return self.share.tenants.rank(seq.tenant), self.share.adapters_of(seq.tenant).rank(seq.adapter)

        return min(self.heads(lanes), key=rank, default=None)

    def oldest(self, lanes: tuple[Lane, ...]) -> Sequence | None:
        return min(self.heads(lanes), key=lambda seq: seq.order, default=None)


@settings(max_examples=20)
@given(st.randoms(use_true_random=False))
def test_it_ranks_as_the_rules_say(rng: random.Random) -> None:
    share = FairShare()
    queue, model = WaitingQueue(share), Model(share)
    for order in range(80):
        action = rng.choice(("push", "push", "push", "discard", "move", "charge"))
        if action == "push":
            seq = Sequence(f"{order}/0", str(order), [1], 1, 1, adapter=rng.choice(ADAPTERS), tenant=rng.choice("xyz"))
            seq.order = rng.choice((order, -order))  # some come back to an older place
            share.enter(seq)
            queue.push(seq, model.lane[seq.adapter])
            model.waiting.append(seq)
        elif action == "discard" and model.waiting:
            seq = model.waiting.pop(rng.randrange(len(model.waiting)))
            assert queue.discard(seq)
            assert not queue.discard(seq)
            share.exit(seq)
        elif action == "move":
            adapter, lane = rng.choice("abc"), rng.choice(list(Lane))
            model.lane[adapter] = lane
            queue.move(adapter, lane)
        elif action == "charge" and model.waiting:
            share.charge_output(rng.choice(model.waiting))
        queue.check_integrity()
        assert len(queue) == len(model.waiting)
        assert set(queue) == set(model.waiting)
        for lanes in (RANKED, (Lane.RESIDENT,), (Lane.ABSENT, Lane.NO_HOST_ROOM)):
            assert queue.fairest(lanes) is model.fairest(lanes)
            assert queue.oldest(lanes) is model.oldest(lanes)
        for adapter in "abc":
            of_adapter = [seq for seq in model.waiting if seq.adapter == adapter]
            assert queue.first_of(adapter) is min(of_adapter, key=lambda seq: seq.order, default=None)
            assert queue.has_adapter(adapter) == bool(of_adapter)
