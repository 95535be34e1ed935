"""The loaded library: one OpenMP runtime, refusals as exceptions, torch in its place wherever it cannot work."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from openlora_kernels import build, huge_empty, native_status, openmp, torch_paths
from openlora_kernels.build import BuildError
from openlora_kernels.native import HUGE_PAGE, INT, POINTER, Function, native, num_threads

STATE = sys.modules["openlora_kernels.native"]._State  # type: ignore[attr-defined]


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not loaded anything yet."""
    monkeypatch.setattr(STATE, "tried", False)
    monkeypatch.setattr(STATE, "loaded", None)
    monkeypatch.setattr(STATE, "reason", "")


def test_the_kernels_work_here_or_say_why_not() -> None:
    assert native_status().startswith("native kernels from" if native() else "torch paths")


RUNTIMES = """
import torch
from pathlib import Path
from openlora_kernels.linear import PackedLinear
PackedLinear.pack(torch.ones(3, 4))(torch.ones(2, 4))
maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
print(len({line.split()[-1] for line in maps if Path(line.split()[-1]).name.startswith(("libgomp", "libiomp"))}))
"""


def test_there_is_one_openmp_runtime_in_the_process() -> None:
    """In a process of its own: other tests load libraries that bring another."""
    ended = subprocess.run([sys.executable, "-c", RUNTIMES], capture_output=True, text=True, timeout=100, check=True)
    assert ended.stdout.split()[-1] == "1"


def test_the_switch_forces_torch(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLORA_KERNELS", "off")
    assert native() is None
    assert "OPENLORA_KERNELS" in native_status()


def test_an_old_processor_takes_torch(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "DEFAULT")
    assert native() is None
    assert "AVX2" in native_status()


def test_no_compiler_takes_torch_and_says_what_to_do(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise BuildError("no C++ compiler found: install g++")

    monkeypatch.setattr("openlora_kernels.build.library", fail)
    assert native() is None
    assert "install g++" in native_status()


def test_a_library_that_does_not_load_takes_torch(fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.so"
    broken.write_text("not a library")
    monkeypatch.setattr("openlora_kernels.build.library", lambda: broken)
    assert native() is None
    assert "delete it" in native_status()


def test_torch_paths_nest() -> None:
    with torch_paths():
        with torch_paths():
            assert native() is None
        assert native() is None
        assert "forced" in native_status()
    assert "forced" not in native_status()


def test_codes_become_exceptions() -> None:
    refuse, exhaust = Function("ol_x", (POINTER, INT)), Function("ol_y", ())
    refuse._bound, exhaust._bound = (lambda *_: -1), (lambda *_: -2)
    with pytest.raises(ValueError, match="ol_x refused"):
        refuse(None, 1)
    with pytest.raises(MemoryError, match="ol_y"):
        exhaust()


@pytest.mark.parametrize("nbytes", [0, 1, 5000, HUGE_PAGE - 1, HUGE_PAGE, 2 * HUGE_PAGE + 7, 5 * HUGE_PAGE - 1])
def test_huge_memory_is_zeroed_whole_and_aligned(nbytes: int) -> None:
    memory = huge_empty(nbytes)
    assert memory.shape == (nbytes,)
    assert memory.dtype == torch.uint8
    assert not memory.any()
    memory.fill_(7)
    if nbytes:
        assert memory.data_ptr() % (HUGE_PAGE if nbytes >= HUGE_PAGE else 4096) == 0


def test_threads_follow_torch() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_spinning_is_limited_unless_the_user_chose_or_torch_came_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that the test's own traces are undone
        monkeypatch.delenv(name)
    assert not openmp.limit_spinning()
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delitem(sys.modules, "torch")
    assert openmp.limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == str(openmp.SPINS)
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    assert openmp.limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == "5"


@pytest.mark.slow
def test_without_a_compiler_everything_still_works(tmp_path: Path) -> None:
    """A process of its own whose PATH and caches are empty."""
    program = (
        "import openlora_kernels as k, torch;"
        "x = torch.ones(2, 3); y = k.PackedLinear.pack(torch.ones(4, 3))(x);"
        "assert y.tolist() == [[3.0] * 4] * 2; assert k.SPINNING_IS_LIMITED; print(k.native_status())"
    )
    environment = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(build.SOURCES.parents[1])}
    site = [path for path in sys.path if path.endswith("site-packages")]
    command = [sys.executable, "-c", f"import sys; sys.prefix = {str(tmp_path)!r}; sys.path += {site!r}; {program}"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110, check=True)
    assert "install g++" in result.stdout


def test_every_declared_function_is_in_the_library() -> None:
    loaded = native()
    if loaded is None:
        return
    names = [
        value.name
        for name, module in list(sys.modules.items())
        if name.startswith("openlora_kernels.")
        for value in vars(module).values()
        if isinstance(value, Function)
    ]
    assert len(names) >= 8
    for name in names:
        assert isinstance(ctypes.cast(getattr(loaded._library, name), ctypes.c_void_p).value, int)
