"""Random lives of a journal beside a model of a few dictionaries: same outcomes, same sums, across reopenings."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from openlora_node.journal import Admitted, AlreadyDone, AlreadyRunning, EscrowSnapshot
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from support.journal import NODE, Builder, admit, digest_of, key_of, open_journal, request, signer, voucher

PIPELINES = (b"\x22" * 32, b"\x23" * 32)
nonces, pipelines = st.integers(0, 5), st.integers(0, 1)
balances = st.sampled_from([0, 999, 1_000, 2_500, 4_000, 10**6])


class JournalMachine(RuleBasedStateMachine):
    """One payer, two pipelines, six nonces; request n belongs to pipeline n mod 2."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "journal.sqlite"
        self.runner = asyncio.Runner()
        self.journal = open_journal(self.path)
        self.state: dict[int, str] = {}
        self.tokens, self.vouchered, self.redeemed = [0, 0], [0, 0], [0, 0]

    def run(self, coroutine):
        return self.runner.run(coroutine)

    def request(self, nonce: int):
        return request(nonce, pipeline=PIPELINES[nonce % 2])

    def reserved(self, index: int) -> int:
        return sum(1_000 for n, state in self.state.items() if state == "running" and n % 2 == index)

    def exposure(self, index: int, extra: int = 0) -> int:
        liable = max(3 * self.tokens[index] + self.reserved(index) + extra, 3 * self.vouchered[index])
        return max(0, liable - self.redeemed[index])

    def owed(self) -> int:
        pairs = zip(self.tokens, self.vouchered, self.redeemed, strict=True)
        return sum(max(0, 3 * tokens - max(3 * vouchered, redeemed)) for tokens, vouchered, redeemed in pairs)

    @rule(nonce=nonces, balance=balances)
    def admit(self, nonce: int, balance: int) -> None:
        index, state = nonce % 2, self.state.get(nonce)
        try:
            outcome = self.run(admit(self.journal, self.request(nonce), EscrowSnapshot(balance)))
        except OpenLoraError as error:
            assert state not in {"running", "done"}
            if error.code is ErrorCode.DEBT_OUTSTANDING:
                assert self.owed() > 0
            else:
                assert error.code is ErrorCode.ESCROW_TOO_LOW
                assert self.exposure(index, 1_000) + self.exposure(1 - index) > balance
            return
        if state in {"running", "done"}:
            assert isinstance(outcome, AlreadyRunning if state == "running" else AlreadyDone)
            return
        assert isinstance(outcome, Admitted)
        assert self.owed() == 0
        needed = self.exposure(index, 1_000) - self.exposure(index)
        assert balance - self.exposure(0) - self.exposure(1) >= needed
        self.state[nonce] = "running"

    @rule(nonce=nonces, tokens=st.integers(1, 200))
    def commit(self, nonce: int, tokens: int) -> None:
        build, state = Builder(tokens=tokens, micro=1_000_000, royalty=2), self.state.get(nonce)
        try:
            self.run(self.journal.commit_receipt(digest_of(self.request(nonce)), build))
        except OpenLoraError as error:
            assert error.code is (ErrorCode.NOT_FOUND if state is None else ErrorCode.RECEIPT_INVALID)
            assert state in {None, "interrupted"}
            return
        assert len(build.slots) == (state == "running")
        if state == "running":
            self.state[nonce] = "done"
            self.tokens[nonce % 2] += tokens

    @rule(nonce=nonces, tokens=st.integers(1, 200), again=st.booleans())
    def serve(self, nonce: int, tokens: int, again: bool) -> None:
        """A whole life, which random single steps rarely string together."""
        self.pay_debts()
        self.admit(nonce, 10**6)
        for _ in range(1 + again):
            self.commit(nonce, tokens)

    @rule(nonce=nonces)
    def interrupt(self, nonce: int) -> None:
        running = self.state.get(nonce) == "running"
        assert self.run(self.journal.interrupt(digest_of(self.request(nonce)))) == running
        if running:
            self.state[nonce] = "interrupted"

    @rule(index=pipelines, tokens=st.integers(0, 600))
    def vouch(self, index: int, tokens: int) -> None:
        self.run(self.journal.advance_voucher(voucher(tokens, tokens, pipeline=PIPELINES[index])))
        self.vouchered[index] = max(self.vouchered[index], tokens)

    @rule()
    def pay_debts(self) -> None:
        for index in range(2):
            self.vouch(index, self.tokens[index])

    @rule(index=pipelines, value=st.integers(0, 2_000))
    def redeem(self, index: int, value: int) -> None:
        self.run(self.journal.record_redeemed(key_of(pipeline=PIPELINES[index]), value))
        self.redeemed[index] = max(self.redeemed[index], value)

    @rule(lost=st.booleans())
    def reopen(self, lost: bool) -> None:
        self.run(self.journal.close())
        self.journal = open_journal(self.path)
        if lost:
            running = [nonce for nonce, state in self.state.items() if state == "running"]
            assert self.run(self.journal.interrupt_running()) == len(running)
            self.state |= dict.fromkeys(running, "interrupted")

    @invariant()
    def agrees(self) -> None:
        for index, pipeline in enumerate(PIPELINES):
            ledger = self.run(self.journal.ledger(key_of(pipeline=pipeline)))
            assert (ledger.tally.tokens, ledger.fee) == (self.tokens[index], 3 * self.tokens[index])
            assert (ledger.reserved, ledger.redeemed) == (self.reserved(index), self.redeemed[index])
            assert (ledger.voucher_value, ledger.exposure) == (3 * self.vouchered[index], self.exposure(index))
        assert self.run(self.journal.owed(signer(0).address, NODE)) == self.owed()

    def teardown(self) -> None:
        try:
            self.run(self.journal.check_integrity(deep=True))
        finally:
            self.run(self.journal.close())
            self.runner.close()
            self.folder.cleanup()


JournalMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestJournalModel = pytest.mark.slow(JournalMachine.TestCase)
