"""What must not change an output: neighbours, chunks, caches, preemption, reloads. And what must equal PEFT."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from openlora_engine.assembly import Assembly
from openlora_engine.errors import Code, EngineError
from openlora_engine.request import FinishReason
from support.engine_adapters import peft_adapter
from support.engine_world import Output, Run, digests, generate, llama, request, world

NAMES = ("a", "b", "c", "d")
RANDOM = random.Random(7)
PROMPTS = [[RANDOM.randrange(512) for _ in range(length)] for length in (3, 17, 40, 9, 64, 5, 21, 33)]
WHO = [None, "a", "b", "a", "c", None, "d", "b"]


@pytest.fixture(scope="module")
def causal_lm() -> Any:
    return llama()


@pytest.fixture(scope="module")
def folder(causal_lm: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(NAMES, 1):
        peft_adapter(root / name, causal_lm, seed=seed, r=2 * seed, lora_alpha=3 * seed, use_rslora=seed % 2 == 0)
    return root


@pytest.fixture
def assembly(causal_lm: Any, folder: Path) -> Iterator[Assembly]:
    made = world(causal_lm, folder)
    yield made
    made.engine.check_integrity()
    made.engine.close()


@pytest.fixture(scope="module")
def alone(causal_lm: Any, folder: Path) -> list[list[int]]:
    """Each request of the batch in an engine of its own, without cache and in one chunk."""
    outputs = []
    for prompt, who in zip(PROMPTS, WHO, strict=True):
        made = world(causal_lm, folder, enable_prefix_caching=False)
        adapter = made.engine.adapters.resolve(who) if who else None
        outputs.append(generate(made, [request(prompt, adapter)])[0].token_ids)
        made.engine.close()
    return outputs


def batch(assembly: Assembly, **changes: Any) -> list[Output]:
    by_name = digests(assembly, NAMES)
    requests = [
        request(prompt, by_name[who] if who else None, **changes) for prompt, who in zip(PROMPTS, WHO, strict=True)
    ]
    return generate(assembly, requests)


def tokens(outputs: list[Output]) -> list[list[int]]:
    return [output.token_ids for output in outputs]


def peft_model(causal_lm: Any, folder: Path, names: tuple[str, ...]) -> Any:
    """PEFT's own model with the adapters loaded."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(copy.deepcopy(causal_lm), folder / names[0], adapter_name=names[0])
        for name in names[1:]:
            model.load_adapter(folder / name, adapter_name=name)
    return model.eval()


def greedy(model: Any, prompt: list[int], count: int = 8) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens of a plain model without any cache, and the log-probabilities [count, V] they were chosen from."""
    ids, rows = list(prompt), []
    with torch.inference_mode():
        for _ in range(count):
            rows.append(model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1))
            ids.append(int(rows[-1].argmax()))
    return ids[len(prompt) :], torch.stack(rows)


class TestParity:
    """Equal to PEFT, adapter by adapter and mix by mix."""

    def check(self, output: Output, want: list[int], rows: torch.Tensor) -> None:
        assert output.token_ids == want
        for row, logprob in zip(rows, output.logprobs, strict=True):
            assert abs(logprob.chosen.logprob - float(row[logprob.chosen.token_id])) <= 1e-5
            for other in logprob.top:
                assert abs(other.logprob - float(row[other.token_id])) <= 1e-5

    def test_each_adapter_in_a_mixed_batch_equals_peft(self, assembly: Assembly, causal_lm: Any, folder: Path) -> None:
        model = peft_model(causal_lm, folder, NAMES)
        for output, prompt, who in zip(batch(assembly, logprobs=5), PROMPTS, WHO, strict=True):
            if who is None:
                want, rows = greedy(causal_lm, prompt)
            else:
                model.set_adapter(who)
                want, rows = greedy(model, prompt)
            self.check(output, want, rows)

    @pytest.mark.slow
    @pytest.mark.parametrize("method", ["cat", "linear", "svd", "ties", "magnitude_prune"])
    def test_each_mixing_method_equals_peft(self, causal_lm: Any, tmp_path: Path, method: str) -> None:
        for seed, name in ((5, "x"), (6, "y")):
            peft_adapter(tmp_path / name, causal_lm, seed=seed, r=4, lora_alpha=6)
        made = world(causal_lm, tmp_path)
        digest = made.engine.adapters.resolve_mix([("x", 0.7), ("y", 0.5)], method)
        model = peft_model(causal_lm, tmp_path, ("x", "y"))
        # Where PEFT's result depends on the order of the members: a recipe's is that of their digests. The random
        # methods are compared in tests/unit/engine/adapters/test_mixing.py, which replays PEFT's draws.
        weights = {"x": 0.7, "y": 0.5}
        order = sorted(weights, key=made.engine.adapters.resolve)
        density = None if method in ("cat", "linear", "svd") else 0.5
        model.add_weighted_adapter(
            order, [weights[name] for name in order], "mix", combination_type=method, density=density
        )
        model.set_adapter("mix")
        for prompt in PROMPTS[:3]:
            output = generate(made, [request(prompt, digest, logprobs=3)])[0]
            want, rows = greedy(model, prompt)
            self.check(output, want, rows)
        made.engine.close()


class TestInvariance:
    """The same tokens whatever happens around a request."""

    def test_mixed_batch_equals_each_alone(self, assembly: Assembly, alone: list[list[int]]) -> None:
        assert tokens(batch(assembly)) == alone

    @pytest.mark.parametrize("budget", [16, 17, 23])
    def test_chunked_equals_whole(self, causal_lm: Any, folder: Path, alone: list[list[int]], budget: int) -> None:
        made = world(causal_lm, folder, max_num_batched_tokens=budget)
        assert tokens(batch(made)) == alone
        made.engine.close()

    def test_cache_on_equals_cache_off_across_adapters(self, assembly: Assembly, alone: list[list[int]]) -> None:
        assert tokens(batch(assembly)) == alone
        again = batch(assembly)
        assert tokens(again) == alone
        hits = [output.last.timings.num_cached_tokens for output in again if output.last and output.last.timings]
        assert max(hits) >= 60, "the second run must have found the prompts"
        # One prompt under every adapter: a hit across adapters would show.
        by_name = digests(assembly, NAMES)
        everyone = [None, *by_name.values()]
        first = tokens(generate(assembly, [request(PROMPTS[4], who) for who in everyone]))
        fresh = tokens(generate(assembly, [request(PROMPTS[4], who, cache_salt="other") for who in everyone]))
        assert first == fresh
        assert len({tuple(output) for output in first}) == len(everyone), "adapters that change nothing prove nothing"

    def test_preempted_equals_not_preempted(self, causal_lm: Any, folder: Path) -> None:
        def run(**values: Any) -> tuple[list[list[int]], int]:
            made = world(causal_lm, folder, max_model_len=64, **values)
            by_name = digests(made, NAMES)
            requests = [request(PROMPTS[n], by_name[who] if who else None, 28) for n, who in ((0, "a"), (5, None))]
            requests += [request(PROMPTS[3], by_name[name], 28) for name in NAMES]
            outputs = tokens(generate(made, requests))
            made.engine.close()
            return outputs, made.engine.stats().num_preemptions

        per_block = 4 * 2 * 2 * 24 * 4  # tokens, layers, keys and values, KV heads × head size, bytes
        plenty, none = run()
        scarce, some = run(kv_cache_memory=24 * per_block)
        assert scarce == plenty
        assert none == 0
        assert some > 0, "the pool was large enough: nothing was shown"

    def test_fewer_slots_than_adapters_change_nothing(
        self, causal_lm: Any, folder: Path, alone: list[list[int]]
    ) -> None:
        made = world(causal_lm, folder, max_loras=1)
        assert tokens(batch(made)) == alone
        made.engine.close()

    def test_seeded_sampling_is_the_same_alone_and_in_a_batch(
        self, assembly: Assembly, causal_lm: Any, folder: Path
    ) -> None:
        sampled = tokens(batch(assembly, temperature=1.3, top_p=0.95, seed=5, max_tokens=12))
        for number, who in enumerate(WHO):
            made = world(causal_lm, folder, max_num_batched_tokens=16)
            adapter = made.engine.adapters.resolve(who) if who else None
            lonely = request(PROMPTS[number], adapter, 12, temperature=1.3, top_p=0.95, seed=5)
            assert generate(made, [lonely])[0].token_ids == sampled[number]
            made.engine.close()

    def test_choices_of_one_request_differ_and_repeat(self, assembly: Assembly) -> None:
        run = Run(assembly.engine)
        for name in ("one", "two"):
            run.engine.add(request(PROMPTS[2], None, 12, name=name, n=3, temperature=1.5, seed=3))
        run.to_end()
        one, two = ([run.outputs[name, index].token_ids for index in range(3)] for name in ("one", "two"))
        assert one == two
        assert len({tuple(choice) for choice in one}) == 3


class TestReload:
    """Same name, other weights."""

    def test_old_requests_finish_on_the_old_weights_and_no_cache_leaks(self, causal_lm: Any, tmp_path: Path) -> None:
        made = world(causal_lm, tmp_path)
        adapters = made.engine.adapters
        peft_adapter(tmp_path / "v1", causal_lm, seed=1)
        peft_adapter(tmp_path / "v2", causal_lm, seed=2)
        old = adapters.load("mine", "v1").digest
        want_old = generate(made, [request(PROMPTS[2], old)])[0].token_ids
        run = Run(made.engine)
        running = request(PROMPTS[2], old)
        run.engine.add(running)
        for _ in range(3):
            run.step()
        new = adapters.load("mine", "v2", in_place=True).digest
        assert new != old
        assert adapters.resolve("mine") == new
        later = request(PROMPTS[2], new)
        run.engine.add(later)
        run.to_end()
        assert run.outputs[running.request_id, 0].token_ids == want_old
        want_new, _ = greedy(peft_model(causal_lm, tmp_path, ("v2",)), PROMPTS[2])
        assert run.outputs[later.request_id, 0].token_ids == want_new
        made.engine.close()


class TestEnds:
    """Cancelling, pausing, refusing, failing: everything is given back."""

    def is_empty(self, assembly: Assembly) -> bool:
        stats = assembly.engine.stats()
        assembly.engine.check_integrity()
        return (stats.num_requests_running, stats.num_requests_waiting, stats.kv_cache_usage) == (0, 0, 0.0)

    def test_a_storm_of_cancels_leaves_no_block_and_no_reference(self, assembly: Assembly) -> None:
        by_name = digests(assembly, NAMES)
        run, dice, live = Run(assembly.engine), random.Random(3), []
        for _ in range(300):
            if dice.random() < 0.5 and len(live) < 20:
                who = dice.choice(WHO)
                one = request(dice.choice(PROMPTS), by_name[who] if who else None, dice.randrange(1, 20))
                run.engine.add(one)
                live.append(one.request_id)
            if dice.random() < 0.4 and live:
                run.engine.cancel(live.pop(dice.randrange(len(live))))
            run.step()
        for name in live:
            run.engine.cancel(name)
        assert self.is_empty(assembly)
        for digest in by_name.values():
            assembly.engine.adapters.evict(digest) if assembly.engine.adapters.tier_of(digest) == "host" else None

    def test_a_paused_request_stops_alone_and_resumes_where_it_was(
        self, assembly: Assembly, alone: list[list[int]]
    ) -> None:
        run = Run(assembly.engine)
        slow, quick = request(PROMPTS[0]), request(PROMPTS[5])
        for one in (slow, quick):
            run.engine.add(one)
        run.step()
        run.engine.pause(slow.request_id)
        run.to_end(lambda: run.outputs.get((quick.request_id, 0), Output()).last is not None)
        assert run.outputs[quick.request_id, 0].token_ids == alone[5]
        assert len(run.outputs[slow.request_id, 0].token_ids) < 3
        run.engine.resume(slow.request_id)
        run.to_end()
        assert run.outputs[slow.request_id, 0].token_ids == alone[0]

    def test_evicting_what_runs_is_refused(self, assembly: Assembly) -> None:
        digest = digests(assembly, ["a"])["a"]
        run = Run(assembly.engine)
        run.engine.add(request(PROMPTS[1], digest, 30))
        run.to_end(lambda: bool(run.outputs))
        with pytest.raises(EngineError) as caught:
            assembly.engine.adapters.evict(digest)
        assert caught.value.code is Code.ADAPTER_IN_USE
        run.to_end()

    def test_max_tokens_zero_reads_the_prompt_and_ends(self, assembly: Assembly) -> None:
        output = generate(assembly, [request(PROMPTS[1], max_tokens=0)])[0]
        assert output.token_ids == []
        assert output.reason is FinishReason.LENGTH
        assert output.last is not None
        assert (output.last.num_prompt_tokens, output.last.num_output_tokens) == (17, 0)

    @pytest.mark.parametrize(
        ("prompt", "changes", "code"),
        [
            ([], {}, Code.PROMPT_EMPTY),
            ([1] * 1_000_000, {}, Code.PROMPT_TOO_LONG),
            ([1] * 250, {"max_tokens": 7}, Code.PROMPT_TOO_LONG),
            ([512], {}, Code.BAD_REQUEST),
            ([-1], {}, Code.BAD_REQUEST),
            ([1], {"temperature": float("nan")}, Code.BAD_REQUEST),
            ([1], {"n": 0}, Code.BAD_REQUEST),
        ],
    )
    def test_bad_requests_are_refused_and_leave_nothing(
        self, assembly: Assembly, prompt: list[int], changes: dict[str, Any], code: Code
    ) -> None:
        with pytest.raises(EngineError) as caught:
            assembly.engine.add(request(prompt, **changes))
        assert caught.value.code is code
        assert self.is_empty(assembly)

    def test_an_unknown_adapter_is_refused(self, assembly: Assembly) -> None:
        with pytest.raises(EngineError) as caught:
            assembly.engine.add(request([1], "sha256:" + "0" * 64))
        assert caught.value.code is Code.ADAPTER_NOT_FOUND

    def test_a_step_without_memory_ends_one_request_and_no_other(
        self, assembly: Assembly, alone: list[list[int]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runner = assembly.engine._runner
        forward = runner.forward

        def fails_on_long_chunks(chunks: Any) -> Any:
            if max(chunk.num_tokens for chunk in chunks) > 30:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
            return forward(chunks)

        monkeypatch.setattr(runner, "forward", fails_on_long_chunks)
        run = Run(assembly.engine)
        long, short = request(PROMPTS[2]), request(PROMPTS[0])
        outputs = run.all([short, long])
        assert outputs[0].token_ids == alone[0]
        assert outputs[1].reason is FinishReason.ERROR
        assert outputs[1].last is not None
        assert outputs[1].last.error is not None
        assert outputs[1].last.error.code is Code.OUT_OF_MEMORY
        assert self.is_empty(assembly)

    def test_an_adapter_that_vanished_from_disk_fails_its_request_alone(self, causal_lm: Any, tmp_path: Path) -> None:
        made = world(causal_lm, tmp_path)
        peft_adapter(tmp_path / "gone", causal_lm, seed=1)
        digest = made.engine.adapters.resolve("gone")
        (tmp_path / "gone" / "adapter_model.safetensors").unlink()
        lost, fine = generate(made, [request(PROMPTS[0], digest), request(PROMPTS[0])])
        assert lost.last is not None
        assert lost.last.error is not None
        assert fine.reason is FinishReason.LENGTH
        assert self.is_empty(made)
        made.engine.close()
