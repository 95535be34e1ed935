"""What of a dataset others had first: judged when it is registered, against what was registered before it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..protocol.ids import format_address, format_artifact_id

if TYPE_CHECKING:
    from ..attribution.dataset import Sample
    from .chaindesk import ChainDesk

DATASET = 3


@dataclass(frozen=True)
class Report:
    """Texts of the dataset; those that others had first (line, contributor, why, whose); what could not be judged."""

    texts: int
    others: tuple[tuple[int, str, str, str], ...] = ()
    judged: int = 0
    """Earlier datasets that are on this machine."""
    missing: tuple[bytes, ...] = ()
    """Earlier datasets that are not."""
    whole: int = field(default=0)
    """Texts of which nothing is the contributor's own."""

    @property
    def is_copy(self) -> bool:
        """Whether no text has anything of its own."""
        return self.texts > 0 and self.whole == self.texts

    def facts(self) -> dict[str, Any]:
        """For the plan of a registration."""
        found: dict[str, Any] = {
            "judgedAgainst": f"{self.judged} earlier dataset(s)",
            "othersHadFirst": f"{len(self.others)} of {self.texts} texts",
        }
        if self.others:
            reasons = Counter(why for _, _, why, _ in self.others)
            found["why"] = ", ".join(f"{count} {why}" for why, count in sorted(reasons.items()))
            found["creditGoesTo"] = ", ".join(sorted({whose for *_, whose in self.others}))
            found["lines"] = ", ".join(str(line) for line, *_ in self.others[:32])
        if self.missing:
            found["notJudged"] = ", ".join(f"{format_artifact_id(one)} is not here" for one in self.missing[:8])
        return found


async def earlier_datasets(desk: ChainDesk, dataset: bytes) -> list[bytes]:
    """Datasets on chain in the order of registration, without this one and what was registered after it."""
    from openlora_chain.errors import ChainErrorCode, RpcError
    from openlora_chain.events import ArtifactRegistered, EventTable

    table = EventTable(desk.deployment, (ArtifactRegistered,))
    found: list[bytes] = []
    at, width, head = desk.deployment.block, desk.config.chain.log_block_range, (await desk.rpc.head()).number
    while at <= head:
        last = min(at + width - 1, head)
        try:
            logs = await desk.rpc.logs(at, last, table.addresses, table.topics)
        except RpcError as error:
            if error.code is not ChainErrorCode.RPC_FAILED or width == 1:
                raise
            width = max(width // 2, 1)
            continue
        for event in table.decode_all(logs):
            if isinstance(event, ArtifactRegistered) and event.kind == DATASET:
                if event.artifact == dataset:
                    return found
                found.append(event.artifact)
        at = last + 1
    return found


def judge(artifacts: Path, dataset: bytes, earlier: list[bytes]) -> Report:
    """A stored dataset beside those before it. Blocks. Raises MALFORMED, with the line, for what is no dataset."""
    from ..attribution.originality import Originals

    originals = Originals()
    missing = []
    for one in earlier:
        samples = _stored(artifacts, one)
        if samples is None:
            missing.append(one)
        else:
            originals.register(samples)
    samples = _stored(artifacts, dataset) or []
    verdicts = originals.register(samples)
    others, whole = [], 0
    for verdict in verdicts:
        contributor = samples[verdict.sample].contributor
        if verdict.is_own(contributor):
            continue
        whole += all(piece.owner != contributor for piece in verdict.pieces)
        why = "nearly the same" if verdict.near else "hold 50 words in a row of theirs"
        owners = {format_address(piece.owner) for piece in verdict.pieces if piece.owner != contributor}
        others.append((verdict.sample + 1, format_address(contributor), why, ", ".join(sorted(owners))))
    return Report(len(verdicts), tuple(others), len(earlier) - len(missing), tuple(missing), whole)


def _stored(artifacts: Path, dataset: bytes) -> list[Sample] | None:
    """A dataset's samples from this machine's store, None where it is not here."""
    from ..artifacts.layout import Layout
    from ..attribution.dataset import read_samples

    folder = Layout(artifacts).artifact(dataset)
    files = sorted(folder.glob("**/*.jsonl"))
    if not files:
        return None
    return [sample for file in files for sample in read_samples(file.read_bytes().splitlines())]
