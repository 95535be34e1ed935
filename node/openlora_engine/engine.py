"""The engine: requests in, one forward pass a step over everything that can run, token events out.

`step` belongs to one thread; everything else may be called from any. A lock guards what they share, and is free while
the model computes.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Ordered

import torch
from transformers import PreTrainedTokenizerFast

from .adapters.manager import AdapterManager
from .choice import Choice
from .config import EngineConfig
from .errors import Code, EngineError
from .metrics import EngineStats
from .models.loading import LoadedModel
from .request import ChosenLogprob, GenerateRequest, TokenEvent
from .runner import ModelRunner
from .sampling.constraints import Grammar
from .sampling.detokenizer import TextDecoder
from .sampling.output import OutputRules
from .sampling.sampler import Sampled, Sampler
from .sampling.state import SamplingState
from .sampling.stopping import LENGTH, Finish
from .scheduling.schedule import Schedule
from .scheduling.scheduler import Scheduler
from .scheduling.sequence import Sequence
from .scheduling.slots import SlotPool

OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)
COPY_WAIT_S = 0.0005
"""Between looks at adapter copies under way, when nothing else can run."""
DEPARTURES = 64
"""Finished sequences over which the queue's drain rate is measured."""


class Engine:
    """Schedules, runs, samples and reports. Deterministic: same requests at the same steps, same events."""

    def __init__(
        self,
        config: EngineConfig,
        model: LoadedModel,
        tokenizer: PreTrainedTokenizerFast,
        scheduler: Scheduler,
        slots: SlotPool,
        runner: ModelRunner,
        adapters: AdapterManager,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.model = model
        self.adapters = adapters
        self._scheduler = scheduler
        self._slots = slots
        self._runner = runner
        self._sampler = Sampler(model.vocab_size)
        self._decoder = TextDecoder(tokenizer)
        self._clock = clock
        self._choices: dict[str, Choice] = {}
        """By seq_id."""
        self._requests: dict[str, tuple[str, ...]] = {}
        """Request id -> seq_ids of its choices that have not ended."""
        self._departures: deque[float] = deque(maxlen=DEPARTURES)
        self._in_flight: Schedule | None = None
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._news = False
        """Something came since the step under way began."""

    # Requests, from any thread.

    def add(self, request: GenerateRequest, grammar: Grammar | None = None) -> None:
        """Queue a request; `grammar` is that of its constraint. Its events come from `step`.

        Raises PROMPT_EMPTY, PROMPT_TOO_LONG, BAD_REQUEST, ADAPTER_NOT_FOUND, BUSY. Nothing is kept of what is refused.
        """
        params, model = request.params, self.model
        params.validate(model.vocab_size)
        self._check_prompt(request)
        rules = OutputRules(
            params,
            self._decoder,
            eos_token_ids=model.eos_token_ids,
            num_prompt_tokens=len(request.prompt_token_ids),
            max_model_len=model.max_model_len,
        )
        seed = secrets.randbits(64) if params.seed is None else params.seed
        with self._lock:
            assert request.request_id not in self._requests, f"two requests are named {request.request_id}"
            if request.adapter is not None:
                self.adapters.check_known(request.adapter)
            sequences = Sequence.choices(request)
            self._scheduler.add_all(sequences, self._clock(), self._drain_rate())
            for seq in sequences:
                state = SamplingState(
                    params,
                    seed=seed,
                    index=seq.index,
                    vocab_size=model.vocab_size,
                    prompt_token_ids=request.prompt_token_ids,
                    eos_token_ids=model.eos_token_ids,
                    grammar=grammar,
                )
                self._choices[seq.seq_id] = Choice(seq, state, rules.choice())
            self._requests[request.request_id] = tuple(seq.seq_id for seq in sequences)
        self.wake()

    def cancel(self, request_id: str) -> None:
        """Drop a request wherever it is; its blocks and slots are free at once. No event follows. Unknown ids pass."""
        with self._lock:
            for seq_id in self._requests.pop(request_id, ()):
                self._scheduler.cancel(seq_id)
                del self._choices[seq_id]

    def pause(self, request_id: str) -> None:
        """Stop running a request until `resume`: its reader or its payer lags. Unknown ids pass."""
        with self._lock:
            for seq_id in self._requests.get(request_id, ()):
                self._scheduler.pause(seq_id)

    def resume(self, request_id: str) -> None:
        """Run a paused request again. Unknown ids pass."""
        with self._lock:
            for seq_id in self._requests.get(request_id, ()):
                self._scheduler.resume(seq_id, self._clock())
        self.wake()

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._requests)

    def stats(self) -> EngineStats:
        """Levels and totals now."""
        with self._lock:
            scheduler, adapters = self._scheduler.stats, self.adapters.stats()
        return EngineStats(
            num_requests_running=scheduler.num_running,
            num_requests_waiting=scheduler.num_waiting,
            num_requests_paused=scheduler.num_paused,
            kv_cache_usage=scheduler.kv_cache_usage,
            num_blocks=self._runner.num_blocks,
            block_size=self._runner.block_size,
            prefix_cache_queries=scheduler.prefix_cache_queries,
            prefix_cache_hits=scheduler.prefix_cache_hits,
            num_preemptions=scheduler.num_preemptions,
            slots_used=scheduler.slots_used,
            slots_total=self.config.max_loras,
            adapters_registered=adapters.num_registered,
            adapters_pinned=adapters.num_pinned,
            running_adapters=scheduler.running_adapters,
            waiting_adapters=scheduler.waiting_adapters,
            adapter_bytes={"host": adapters.host.used_bytes, "slot": adapters.device_bytes},
            host_cache_limit=adapters.host.capacity,
            evictions={("host", cause): count for cause, count in adapters.host.evictions.items()}
            | {("slot", "room"): self._slots.num_evictions},
        )

    def pin(self, digest: str, *, pinned: bool) -> None:
        """Keep an adapter in host memory and, once it has one, in its slot; or let it be evicted again.

        Raises ADAPTER_NOT_FOUND, BUSY, BAD_REQUEST (no slot would be left for the others).
        """
        with self._lock:
            if not pinned:
                self._slots.unpin(digest)
                self.adapters.unpin(digest)
                return
            self._slots.pin(digest)
            try:
                self.adapters.pin(digest)
            except EngineError:
                self._slots.unpin(digest)
                raise

    # The engine's thread.

    def step(self) -> list[TokenEvent]:
        """One forward pass over everything schedulable; the events it gave. Empty when nothing could run."""
        with self._lock:
            self._news = False
            events = self._take_loads()
            self._in_flight = schedule = self._scheduler.schedule(self._clock())
            for failure in schedule.failed:
                events += self._fail(failure.seq, failure.error)
            if not schedule.chunks:
                self._advance(schedule, ())
                if schedule.num_copying and not events:
                    self._work.wait(COPY_WAIT_S)
                    self._news = True
                return events
            states = [self._choices[chunk.seq.seq_id].state for chunk in schedule.chunks if chunk.samples]
        try:
            logits = self._runner.forward(schedule.chunks)
            sampled = self._sampler.sample(logits, states)
        except OUT_OF_MEMORY:
            with self._lock:
                return events + self._shed(schedule)
        except RuntimeError as error:
            if "allocate memory" not in str(error):  # torch's CPU allocator has no type of its own
                raise
            with self._lock:
                return events + self._shed(schedule)
        with self._lock:
            return events + self._commit(schedule, sampled)

    def wait_for_work(self, timeout_s: float) -> None:
        """Sleep until a request or an adapter arrives, or the time is over."""
        with self._work:
            self._work.wait_for(lambda: self._news, timeout_s)

    def wake(self) -> None:
        """End `wait_for_work`: from the loader's thread when an adapter is ready, and at the end."""
        with self._work:
            self._news = True
            self._work.notify()

    def fail_all(self, error: EngineError) -> list[TokenEvent]:
        """End every request with `error`, after a step that nobody can explain."""
        with self._lock:
            if self._in_flight is not None:
                self._scheduler.abandon(self._in_flight)
                self._in_flight = None
            return [event for request in list(self._requests) for event in self._fail_request(request, error)]

    def close(self) -> None:
        """Let go of the loader's threads."""
        self.adapters.close()

    def check_integrity(self) -> None:
        """Assert that nothing is lost between the rooms. O(all); for tests and idle moments."""
        with self._lock:
            self._scheduler.check_integrity()
            assert len(self._scheduler) == len(self._choices), "choices and sequences differ"
            assert sum(len(ids) for ids in self._requests.values()) == len(self._choices), "requests lost a choice"

    # Parts of a step, under the lock.

    def _take_loads(self) -> list[TokenEvent]:
        """Tell the scheduler which adapters arrived in host memory, and fail what waited for those that cannot."""
        events: list[TokenEvent] = []
        for load in self.adapters.take_completed():
            if load.error is None:
                self._scheduler.adapter_ready(load.digest, self._clock())
            else:
                for seq in self._scheduler.adapter_failed(load.digest):
                    events += self._fail(seq, load.error)
        return events

    def _commit(self, schedule: Schedule, sampled: Ordered[Sampled]) -> list[TokenEvent]:
        """Advance every sequence by what its chunk gave."""
        results = dict(zip((chunk.seq for chunk in schedule.chunks if chunk.samples), sampled, strict=True))
        advanced = self._advance(schedule, [max(0, result.token_id) for result in sampled])
        now = self._clock()
        events: list[TokenEvent] = []
        for seq in advanced:
            choice, result = self._choices.get(seq.seq_id), results[seq]
            if choice is None:  # its request failed with an earlier choice of this very step
                continue
            if result.error is not None:
                events += self._fail(seq, result.error)
            else:
                events.append(self._accept(choice, result.token_id, result.logprob, now))
        for chunk in schedule.chunks:
            if not chunk.seq.max_tokens and not chunk.seq.num_uncomputed_tokens and chunk.seq.seq_id in self._choices:
                events.append(self._finish(self._choices[chunk.seq.seq_id], LENGTH))
        return events

    def _advance(self, schedule: Schedule, tokens: Ordered[int]) -> tuple[Sequence, ...]:
        self._in_flight = None
        return self._scheduler.advance(schedule, tokens)

    def _accept(self, choice: Choice, token_id: int, logprob: ChosenLogprob | None, now: float) -> TokenEvent:
        """One more output token of a choice."""
        delta = choice.accept(token_id, now)
        logprobs = () if logprob is None else (logprob,)
        if delta.finish is not None:
            return self._finish(choice, delta.finish, (token_id,), delta.text, logprobs)
        seq = choice.seq
        return TokenEvent(seq.request_id, seq.index, (token_id,), delta.text, logprobs)

    def _finish(
        self,
        choice: Choice,
        finish: Finish,
        token_ids: tuple[int, ...] = (),
        text: str = "",
        logprobs: tuple[ChosenLogprob, ...] = (),
    ) -> TokenEvent:
        """The last event of a choice that ended by itself."""
        seq = choice.seq
        self._scheduler.finish(seq.seq_id)
        self._forget(seq)
        self._departures.append(self._clock())
        return choice.finished(finish, token_ids, text, logprobs)

    def _fail(self, seq: Sequence, error: EngineError) -> list[TokenEvent]:
        """End the whole request of a sequence that cannot go on; it may be gone from the scheduler already."""
        return self._fail_request(seq.request_id, error)

    def _fail_request(self, request_id: str, error: EngineError) -> list[TokenEvent]:
        choices = [self._choices.pop(seq_id) for seq_id in self._requests.pop(request_id, ())]
        for choice in choices:
            self._scheduler.cancel(choice.seq.seq_id)
        return [choice.failed(error) for choice in choices[:1]]

    def _shed(self, schedule: Schedule) -> list[TokenEvent]:
        """The step found no memory: end the request whose chunk is largest; the others run again with the next step."""
        self._scheduler.abandon(schedule)
        self._in_flight = None
        largest = max(schedule.chunks, key=lambda chunk: (chunk.num_tokens, chunk.seq.num_tokens, chunk.seq.order))
        message = "the step found no memory for this request: shorten the prompt, or lower --max-num-batched-tokens"
        return self._fail(largest.seq, EngineError(Code.OUT_OF_MEMORY, message))

    def _forget(self, seq: Sequence) -> None:
        del self._choices[seq.seq_id]
        left = tuple(seq_id for seq_id in self._requests[seq.request_id] if seq_id != seq.seq_id)
        if left:
            self._requests[seq.request_id] = left
        else:
            del self._requests[seq.request_id]

    def _check_prompt(self, request: GenerateRequest) -> None:
        prompt, params, limit = request.prompt_token_ids, request.params, self.model.max_model_len
        if not prompt:
            raise EngineError(Code.PROMPT_EMPTY, "the prompt has no tokens: send at least one", param="prompt")
        if len(prompt) + params.max_tokens > limit:
            raise EngineError(
                Code.PROMPT_TOO_LONG,
                f"{len(prompt)} prompt tokens and max_tokens {params.max_tokens} exceed the {limit} tokens of a "
                "sequence here: shorten the prompt or lower max_tokens",
                param="prompt",
            )
        if min(prompt) < 0 or max(prompt) >= self.model.vocab_size:
            raise EngineError(
                Code.BAD_REQUEST, f"token ids must be from 0 to {self.model.vocab_size - 1}", param="prompt"
            )

    def _drain_rate(self) -> float:
        """Sequences a second that ended lately; 0 while unknown."""
        if len(self._departures) < 2 or self._departures[-1] <= self._departures[0]:
            return 0.0
        return (len(self._departures) - 1) / (self._departures[-1] - self._departures[0])
