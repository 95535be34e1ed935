"""What a voucher must reach and may not pass: against the formulas of docs/protocol.md, written out once more here."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from openlora_node.admission import LedgerState, OpenRun, Refusal, accept
from openlora_node.admission.vouchers import opens
from openlora_node.protocol.errors import ErrorCode
from openlora_node.protocol.pricing import ComputeRates, RoyaltySchedule, Tally
from openlora_node.protocol.structs import Voucher

SCHEDULE = RoyaltySchedule((30_000_000_000, 70_000_010_000))
"""3 and 7 wei a token, and a little."""


def voucher(tokens: int, compute: int) -> Voucher:
    return Voucher(
        payer=bytes(20),
        node=bytes(32),
        pipeline_id=bytes(32),
        cumulative_tokens=tokens,
        cumulative_compute=compute,
        reference_digest=bytes(32),
    )


runs = st.builds(
    OpenRun,
    rates=st.builds(ComputeRates, st.integers(0, 10**7), st.integers(0, 10**7)),
    settlement_charge=st.integers(0, 1000),
    prompt_tokens=st.integers(0, 100),
    max_tokens=st.integers(50, 200),
    generated=st.integers(0, 50),
)
tallies = st.one_of(st.just(Tally()), st.builds(Tally, st.integers(0, 1000), st.integers(1, 10**10)))
vouchers = st.none() | st.builds(voucher, st.integers(0, 2000), st.integers(0, 20_000))
states = st.builds(LedgerState, st.just(SCHEDULE), tallies, vouchers, st.lists(runs, max_size=4).map(tuple))


def micro(state: LedgerState, generated: str) -> int:
    once = max((run.settlement_charge for run in state.open), default=0) * 10**6
    used = sum(
        run.prompt_tokens * run.rates.input_rate + getattr(run, generated) * run.rates.output_rate for run in state.open
    )
    return state.tally.compute_micro_wei + used + (0 if state.tally.compute_micro_wei else once)


@given(states)
def test_used_and_most_are_the_sums(state: LedgerState) -> None:
    assert state.used().tokens == state.tally.tokens + sum(run.prompt_tokens + run.generated for run in state.open)
    assert state.used().compute_micro_wei == micro(state, "generated")
    assert state.most().tokens == state.tally.tokens + sum(run.prompt_tokens + run.max_tokens for run in state.open)
    assert state.most().compute_micro_wei == micro(state, "max_tokens")


@given(states, st.integers(0, 3000), st.integers(0, 30_000))
def test_a_voucher_stands_up_to_what_the_ledger_can_come_to_and_no_further(
    state: LedgerState, tokens: int, compute: int
) -> None:
    offered = voucher(tokens, compute)
    held = (state.voucher.cumulative_tokens, state.voucher.cumulative_compute) if state.voucher else (0, 0)
    ahead = tokens > max(held[0], state.most().tokens) or compute > max(
        held[1], -(-micro(state, "max_tokens") // 10**6)
    )
    crossed = state.voucher is not None and (tokens - held[0]) * (compute - held[1]) < 0
    verdict = accept(state, offered)
    if ahead or crossed:
        assert isinstance(verdict, Refusal)
        assert verdict.code is ErrorCode.VOUCHER_CONFLICT
    else:
        newer = state.voucher is None or (tokens >= held[0] and compute >= held[1])
        assert verdict == (offered if newer else state.voucher)


@given(states, st.integers(0, 5_000), vouchers)
def test_an_opening_voucher_covers_debt_and_the_prompts_of_all_that_runs(
    state: LedgerState, grace: int, offered: Voucher | None
) -> None:
    verdict = opens(state, offered, grace)
    stands = state.voucher
    if offered is not None:
        accepted = accept(state, offered)
        if isinstance(accepted, Refusal):
            assert verdict == accepted
            return
        stands = accepted
    paid = (stands.cumulative_tokens, stands.cumulative_compute) if stands else (0, 0)
    prompts = LedgerState(SCHEDULE, state.tally, stands, tuple(prompt_only(run) for run in state.open))
    tokens, compute = prompts.used().tokens, micro(prompts, "generated") // 10**6
    lacking = max(0, compute - paid[1]) + max(0, SCHEDULE.royalties(tokens) - SCHEDULE.royalties(paid[0]))
    assert (verdict is not None) == (lacking > grace)
    if verdict is not None:
        assert verdict.code is ErrorCode.VOUCHER_TOO_LOW
        assert f"{tokens} tokens and {compute} wei" in (verdict.message or "")


def prompt_only(run: OpenRun) -> OpenRun:
    return OpenRun(run.rates, run.settlement_charge, run.prompt_tokens, run.max_tokens)


@given(states)
def test_paying_what_is_asked_for_leaves_nothing_unpaid(state: LedgerState) -> None:
    used = state.used()
    paid = voucher(used.tokens, used.compute)
    assert state.with_voucher(paid).unpaid_tokens() == 0
    assert state.with_voucher(paid).owed() == 0


@given(st.integers(0, 100), st.integers(1, 500))
def test_unpaid_tokens_counts_output_past_the_voucher(prompt: int, generated: int) -> None:
    run = OpenRun(ComputeRates(10**6, 3 * 10**6), 5, prompt, 1000, generated)
    opened = LedgerState(SCHEDULE, Tally(), voucher(prompt, prompt + 5), (run,))
    assert opened.unpaid_tokens() == generated
    # A voucher with the tokens but not the compute of the output lags just as far.
    assert opened.with_voucher(voucher(prompt + generated, prompt + 5)).unpaid_tokens() == generated


def test_what_is_free_is_never_unpaid() -> None:
    free = LedgerState(RoyaltySchedule((0,)), Tally(5, 0), None, (OpenRun(ComputeRates(0, 0), 0, 10, 10**6, 10**5),))
    assert free.unpaid_tokens() == 0
    assert opens(free, None, 0) is None
