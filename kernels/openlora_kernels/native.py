"""Loads the compiled CPU library and calls it: plain C functions through ctypes. Knows no op and no model.

A module that has C functions declares them where it uses them:

    _gemm = function("ol_gemm", POINTER, INT)      # at import: nothing is built or loaded
    if native():                                        # builds and loads at the first call
        _gemm(address, rows)                            # raises ValueError where the function refuses its arguments

ctypes releases the GIL during a call. A C function returns 0, or a code below; it never throws.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

SWITCH = "OPENLORA_KERNELS"
"""Environment variable: `off` or `torch` uses the torch paths, whatever is built."""

POINTER, INT, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
"""Argument types of the C functions: every integer is an int64_t."""

HUGE_PAGE = 2 << 20

BAD_ARGUMENT, OUT_OF_MEMORY = -1, -2


class Native:
    """The loaded library."""

    def __init__(self, path: Path) -> None:
        _share_openmp()
        self.path = path
        self._library = ctypes.CDLL(str(path), mode=os.RTLD_LOCAL | os.RTLD_NOW)

    def bind(self, name: str, arguments: tuple[Any, ...]) -> Callable[..., int]:
        """The C function `int name(arguments)`. Raises AttributeError where the library lacks it."""
        bound = getattr(self._library, name)
        bound.argtypes, bound.restype = arguments, ctypes.c_int
        return bound  # type: ignore[no-any-return]


class Function:
    """A C function of the library, bound at its first call."""

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        self.name = name
        self._arguments = arguments
        self._bound: Callable[..., int] | None = None

    def __call__(self, *arguments: Any) -> None:
        """Call it. Raises ValueError for arguments that it refuses, MemoryError when it finds no memory."""
        bound = self._bound
        if bound is None:
            library_ = native()
            assert library_ is not None, f"{self.name} was called although native() is None"
            bound = self._bound = library_.bind(self.name, self._arguments)
        if code := bound(*arguments):
            self._fail(code)

    def _fail(self, code: int) -> None:
        if code == OUT_OF_MEMORY:
            raise MemoryError(f"{self.name} found no memory for its scratch")
        raise ValueError(f"{self.name} refused its arguments: an index, rank or size is out of range")


def function(name: str, *arguments: Any) -> Function:
    """Declare `int name(arguments)` of the library."""
    return Function(name, arguments)


class _State:
    """What has been loaded so far, once a process."""

    lock = threading.Lock()
    tried = False
    loaded: Native | None = None
    reason = "not loaded yet"
    forced_torch = 0


def native() -> Native | None:
    """The library, built and loaded at the first call; None where torch does the work (native_status says why)."""
    if not _State.tried:
        with _State.lock:
            if not _State.tried:
                _State.loaded, _State.reason = _load()
                _State.tried = True
    return None if _State.forced_torch else _State.loaded


def native_status() -> str:
    """One sentence for logs and `doctor`: which library works, or why none does."""
    native()
    return "torch paths are forced" if _State.forced_torch else _State.reason


@contextmanager
def torch_paths() -> Iterator[None]:
    """Use the torch paths within the block, in every thread: for tests and comparisons."""
    _State.forced_torch += 1
    try:
        yield
    finally:
        _State.forced_torch -= 1


def num_threads() -> int:
    """Threads of a native call: torch's setting for this thread, so that torch.set_num_threads governs both."""
    return torch.get_num_threads()


def takes(*tensors: torch.Tensor) -> bool:
    """Whether the library is there and reads such tensors: float32 on the CPU, rows contiguous, any stride between."""
    if native() is None:
        return False
    for tensor in tensors:  # a loop, since this runs some hundred times a step
        if tensor.dtype is not torch.float32 or tensor.is_cuda:
            return False
        if not tensor.is_contiguous() and tensor.stride(-1) != 1:
            return False
    return True


def huge_empty(nbytes: int) -> torch.Tensor:
    """Zeroed uint8 [nbytes] in host memory of its own, on huge pages where the system grants them.

    For what is streamed every step (packed weights, adapters): with 4 KiB pages a decode step of one token took 20%
    longer. Starts on a huge page; a tail of less than three quarters of one stays on small pages, so that at most
    512 KiB are wasted. Below one huge page: aligned to 4096 bytes.
    """
    if nbytes < HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        memory = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return torch.frombuffer(memory, dtype=torch.uint8)[:nbytes]
    memory = mmap.mmap(-1, nbytes + 2 * HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    start = -whole.data_ptr() % HUGE_PAGE
    huge = (nbytes + HUGE_PAGE // 4) // HUGE_PAGE * HUGE_PAGE
    with suppress(OSError):  # a kernel without huge pages: ordinary ones do
        memory.madvise(mmap.MADV_HUGEPAGE, start, huge)
    return whole[start : start + nbytes]


def _load() -> tuple[Native | None, str]:
    from .build import BuildError, library  # here, so that `python -m openlora_kernels.build` runs the only copy

    if os.environ.get(SWITCH, "").lower() in ("off", "torch"):
        return None, f"torch paths, as {SWITCH} says"
    if not _cpu_fits():
        return None, "torch paths: this CPU lacks AVX2, FMA or F16C"
    try:
        loaded = Native(library())
        loaded.bind("ol_version", ())
    except BuildError as error:
        return None, f"torch paths: {error}"
    except (OSError, AttributeError) as error:
        return None, f"torch paths: the built library does not load ({error}); delete it to build again"
    return loaded, f"native kernels from {loaded.path}"


def _cpu_fits() -> bool:
    """AVX2 alone is what torch reports; every CPU with it has FMA and F16C but for emulators, so /proc is asked too."""
    if not str(torch.backends.cpu.get_cpu_capability()).startswith(("AVX2", "AVX512")):
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("flags", 1)[1].split("\n", 1)[0].split()
    except (OSError, IndexError):
        return True
    return {"avx2", "fma", "f16c"} <= set(flags)


def _share_openmp() -> None:
    """Put the OpenMP runtime that torch loaded into the global scope, where our library's GOMP symbols find it.

    torch's wheel carries its own libgomp (under a mangled name in some releases); a second runtime would mean a second
    thread pool that fights for the same cores. libiomp5 exports the GOMP entry points too.
    """
    with Path("/proc/self/maps").open(encoding="utf-8") as maps:
        paths = {line.split(maxsplit=5)[5].strip() for line in maps if "omp" in line and ".so" in line}
    for path in sorted(paths):
        if Path(path).name.startswith(("libgomp", "libiomp5", "libomp")):
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
            return
    raise OSError("torch has loaded no OpenMP runtime")
