"""One choice of one request on its way through the scheduler: its tokens, how many are computed, what it holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from ..request import GenerateRequest


class SequenceStatus(StrEnum):
    """Where a sequence is. Only RUNNING ones are scheduled; all but FINISHED are live."""

    WAITING_ADAPTER = "waiting_adapter"
    """Its adapter is not in host memory yet."""
    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    """Its reader or its payer lags behind; may still hold blocks and a slot."""
    PREEMPTED = "preempted"
    """Ran, gave its blocks up for others, waits to recompute them."""
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """Token ids and progress of one choice. The caller sets the first block of fields, the scheduler the rest.

    `token_ids` is prompt then output. Of these, the keys and values of the first `num_computed_tokens` are in the KV
    cache: position p in block `block_table[p // block_size]` at offset `p % block_size`.
    """

    seq_id: str
    request_id: str
    token_ids: list[int]
    num_prompt_tokens: int
    max_tokens: int
    index: int = 0
    adapter: str | None = None
    """Digest; None for the base."""
    tenant: str = ""
    cache_salt: str = ""

    status: SequenceStatus = SequenceStatus.WAITING
    order: int = -1
    """Its place in line, unique. Kept through pause and preemption; taken anew when its adapter gives up its slot for
    one that starves."""
    num_computed_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    """Names of its full blocks as far as they were needed; see prefix.py."""
    slot: int | None = None
    """The adapter's slot while it holds one."""
    holds_host: bool = False
    """Counted among those that need the adapter in host memory."""
    recomputes: bool = False
    """Preempted and not sampled from since: the last to be preempted again, so that every turn yields a token."""
    num_charged_tokens: int = 0
    """Leading tokens that were charged to its tenant or found in the cache; recomputing them costs nothing."""

    arrival_time: float = 0.0
    waiting_since: float = 0.0
    """When it took that place: what ageing counts from."""
    first_scheduled_time: float | None = None
    adapter_tier: str = "base"
    """Where its adapter was on arrival: base, slot, host or disk."""
    adapter_wait_s: float = 0.0
    num_cached_tokens: int = 0
    """Prompt tokens that the prefix cache spared on first admission."""
    num_preemptions: int = 0

    @classmethod
    def choices(cls, request: GenerateRequest) -> tuple[Sequence, ...]:
        """The `n` sequences of a request, named `<request id>/<index>`."""
        return tuple(
            cls(
                seq_id=f"{request.request_id}/{index}",
                request_id=request.request_id,
                token_ids=list(request.prompt_token_ids),
                num_prompt_tokens=len(request.prompt_token_ids),
                max_tokens=request.params.max_tokens,
                index=index,
                adapter=request.adapter,
                tenant=request.tenant,
                cache_salt=request.cache_salt,
            )
            for index in range(request.params.n)
        )

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens known."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens sampled."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> list[int]:
        """The sampled tokens (a copy)."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_uncomputed_tokens(self) -> int:
        """Known tokens without keys and values: 1 in decode, more in prefill, 0 when nothing is left to sample."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def max_computed_tokens(self) -> int:
        """Tokens in the KV cache when it ends at the latest; the last sampled token is never computed."""
        return self.num_prompt_tokens + max(0, self.max_tokens - 1)

    @property
    def holds_memory(self) -> bool:
        """Whether KV blocks are allocated to it."""
        return bool(self.block_table)

    def __repr__(self) -> str:
        return (
            f"<Sequence {self.seq_id} {self.status} {self.num_computed_tokens}/{self.num_tokens} "
            f"adapter={self.adapter} slot={self.slot} blocks={len(self.block_table)}>"
        )
