"""Compiles every csrc/*.cpp into one cached library, once, with visible progress. Knows no tensor and loads nothing.

`python -m openlora_kernels.build` builds ahead (set-up does); otherwise the first use builds. Convention: a new kernel
is a new csrc/*.cpp with `extern "C"` functions; nothing here changes.

No torch header is included and no OpenMP runtime is linked: the GOMP symbols stay undefined and resolve at load to the
runtime that torch has loaded already (see native.py), so that there is one thread pool in the process.
"""

from __future__ import annotations

import concurrent.futures
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"),
    *("-mavx2", "-mfma", "-mf16c", "-mtune=znver3", "-Wall", "-Wextra"),
)
MACHINES = ("x86_64", "AMD64")
TIMEOUT_S = 600
KEPT = 8


class BuildError(Exception):
    """Why there is no library; the message ends in what to do."""


def library(sources: Path = SOURCES, *, folders: tuple[Path, ...] | None = None, compiler: str | None = None) -> Path:
    """Path of the built library: from the cache where the sources, flags and compiler are the same, else compiled now.

    `folders` are tried in order: the first that holds the library or can be written is used. `compiler` defaults to
    $CXX, else g++. Without a compiler a library of the same sources and flags, whatever built it, is taken. Raises
    BuildError.
    """
    if platform.machine() not in MACHINES:
        raise BuildError(f"the kernels are for x86-64, this machine is {platform.machine()}")
    files = sorted([*sources.glob("*.cpp"), *sources.glob("*.h")])
    if not any(file.suffix == ".cpp" for file in files):
        raise BuildError("no kernel source is installed: reinstall the package")
    folders = cache_folders() if folders is None else folders
    source_key = _digest(*FLAGS, *(part for file in files for part in (file.name, file.read_text(encoding="utf-8"))))
    command = shutil.which(compiler or os.environ.get("CXX", "g++"))
    if command is None:
        built = [path for folder in folders for path in folder.glob(f"openlora-{source_key}-*.so")]
        if built:
            return built[0]
        raise BuildError("no C++ compiler found: install g++ (or set CXX) for the fast CPU kernels")
    name = f"openlora-{source_key}-{_digest(_version(command))}.so"
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    for folder in folders:
        if _writable(folder):
            return _build_once(command, files, folder / name)
    raise BuildError(f"no folder for the built kernels can be written: {', '.join(map(str, folders))}")


def cache_folders() -> tuple[Path, ...]:
    """Where libraries are kept: with the installation where it can be written, else in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(sys.prefix) / "share" / "openlora" / "kernels", cache / "openlora" / "kernels")


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _version(command: str) -> str:
    return _run([command, "--version"], timeout_s=30).splitlines()[0]


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _build_once(command: str, files: list[Path], target: Path) -> Path:
    """Compile under a lock, so that processes that start together build once; the library appears complete or not."""
    with _lock(target.parent / "build.lock"):
        if target.is_file():
            return target
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
            built = _compile(command, files, Path(folder))
            built.replace(target)
        _forget_old(target)
    return target


def _forget_old(newest: Path) -> None:
    """Keep the last few libraries: other work trees and compilers may use them. A mapped file outlives its name."""
    built = sorted(newest.parent.glob("openlora-*.so"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in built[KEPT:]:
        path.unlink(missing_ok=True)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(command: str, files: list[Path], folder: Path) -> Path:
    units = [file for file in files if file.suffix == ".cpp"]
    started = time.monotonic()
    _say(f"building {len(units)} CPU kernels with {Path(command).name} (once, under a minute)")

    def unit(file: Path) -> Path:
        target = folder / f"{file.stem}.o"
        _run([command, *FLAGS, "-c", str(file), "-o", str(target)], timeout_s=TIMEOUT_S)
        return target

    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        jobs = {pool.submit(unit, file): file for file in units}
        for done, job in enumerate(concurrent.futures.as_completed(jobs), start=1):
            job.result()
            _say(f"  [{done}/{len(units)}] {jobs[job].name}")
        objects = [str(job.result()) for job in jobs]
    target = folder / "library.so"
    _run([command, "-shared", "-fPIC", *objects, "-o", str(target)], timeout_s=TIMEOUT_S)
    _say(f"  done in {time.monotonic() - started:.0f} s")
    return target


def _run(command: list[str], *, timeout_s: float) -> str:
    try:
        result = subprocess.run(  # noqa: S603 - the compiler the user chose, on our own sources
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} did not run ({type(error).__name__}): check the compiler") from error
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or ["no message"]
        reason = next((line for line in lines if "error" in line), lines[0])
        raise BuildError(f"{Path(command[0]).name} failed: {reason}")
    return result.stdout


def _say(text: str) -> None:
    sys.stderr.write(f"openlora-kernels: {text}\n")
    sys.stderr.flush()


def main() -> int:
    """Build ahead of the first use; exit code 0 also without a compiler, since everything works without it."""
    try:
        _say(f"ready: {library()}")
    except BuildError as error:
        _say(f"not built, torch does the work more slowly: {error}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
