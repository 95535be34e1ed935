"""One of a request's choices while it is served: what it has given so far, and the events that end it."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import EngineError
from .request import ChosenLogprob, FinishReason, Timings, TokenEvent
from .sampling.output import ChoiceOutput, Delta
from .sampling.state import SamplingState
from .sampling.stopping import Finish
from .scheduling.sequence import Sequence


@dataclass(eq=False, slots=True)
class Choice:
    """A sequence with its sampling state and its text. Times are the engine's clock, in seconds."""

    seq: Sequence
    state: SamplingState
    output: ChoiceOutput
    first_token_time: float | None = None
    last_token_time: float | None = None

    def accept(self, token_id: int, now: float) -> Delta:
        """Take one more output token; the text that it adds, and whether it ends the choice."""
        self.first_token_time = self.first_token_time or now
        self.last_token_time = now
        self.state.accept(token_id)
        return self.output.add(token_id, ended=self.state.ended)

    def finished(
        self, finish: Finish, token_ids: tuple[int, ...], text: str, logprobs: tuple[ChosenLogprob, ...]
    ) -> TokenEvent:
        """The last event of a choice that ended by itself."""
        seq = self.seq
        return TokenEvent(
            request_id=seq.request_id,
            index=seq.index,
            token_ids=token_ids,
            text=text,
            logprobs=logprobs,
            finish_reason=finish.reason,
            stop_reason=finish.stop_reason,
            num_prompt_tokens=seq.num_prompt_tokens,
            num_output_tokens=seq.num_output_tokens,
            timings=self.timings(),
        )

    def failed(self, error: EngineError) -> TokenEvent:
        """The last event of a choice that was ended by an error; it takes the request with it."""
        seq = self.seq
        return TokenEvent(
            request_id=seq.request_id,
            index=seq.index,
            text=self.output.abort(),
            finish_reason=FinishReason.ERROR,
            error=error,
            num_prompt_tokens=seq.num_prompt_tokens,
            num_output_tokens=seq.num_output_tokens,
            timings=self.timings(),
        )

    def timings(self) -> Timings:
        """Where the choice's time went so far."""
        seq = self.seq
        started = seq.first_scheduled_time if seq.first_scheduled_time is not None else seq.arrival_time
        first = self.first_token_time if self.first_token_time is not None else started
        last = self.last_token_time if self.last_token_time is not None else first
        return Timings(
            queue_s=started - seq.arrival_time,
            adapter_wait_s=seq.adapter_wait_s,
            adapter_tier=seq.adapter_tier,
            prefill_s=first - started,
            decode_s=last - first,
            num_cached_tokens=seq.num_cached_tokens,
            num_preemptions=seq.num_preemptions,
        )
