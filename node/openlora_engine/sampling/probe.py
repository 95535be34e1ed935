"""Tries a grammar in a process of its own, which the system ends when that takes too long. Knows no tokenizer.

llguidance bounds most of its work, but not all: whether twenty intersected patterns can match anything takes it for
ever, and a thread can not be stopped. So a grammar is first built in a child, under limits on CPU time and memory; one
that the child survives may be built here.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
import time
import weakref

import llguidance

LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=100_000,
    step_lexer_fuel=20_000,
    step_max_items=10_000,
    max_lexer_states=10_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
"""What one grammar may cost in its steps: tens of ms in the worst one, 20 MB. With llguidance's defaults
`(a{1000}){1000}` would hold a step up for seconds."""

CPU_SECONDS = 2
MEMORY_BYTES = 2 << 30


class GrammarProbe:
    """The child, started at the first question and again after one that it did not survive. Any thread."""

    def __init__(self, cpu_seconds: int = CPU_SECONDS) -> None:
        self._cpu_seconds = cpu_seconds
        self._child: subprocess.Popen[str] | None = None
        self._end: weakref.finalize[[subprocess.Popen[str]], GrammarProbe] | None = None
        self._lock = threading.Lock()

    def survives(self, source: str) -> bool:
        """Whether `source` (llguidance's own language) is built, or refused, within the limits."""
        with self._lock:
            child = self._running()
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                child.stdin.write(json.dumps(source) + "\n")
                child.stdin.flush()
                answered = bool(child.stdout.readline())
            except BrokenPipeError:
                answered = False
            if not answered:
                self._stop()
            return answered

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._stop()

    def _running(self) -> subprocess.Popen[str]:
        if self._child is None:
            command = [sys.executable, "-m", __name__, str(self._cpu_seconds)]
            pipe = subprocess.PIPE
            self._child = subprocess.Popen(  # noqa: S603 - this module itself
                command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
            )
            self._end = weakref.finalize(self, _end, self._child)
        return self._child

    def _stop(self) -> None:
        if self._end is not None:
            self._end()
        self._child = self._end = None


def _end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


def main(cpu_seconds: int) -> None:
    """The child: one grammar a line in, an empty line out for each that was tried."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    for line in sys.stdin:
        used = int(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (used + cpu_seconds, most))
        llguidance.LLMatcher.validate_grammar(json.loads(line), limits=LIMITS)
        sys.stdout.write("\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
