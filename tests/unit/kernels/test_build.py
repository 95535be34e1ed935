"""The build's cache: same sources build once, changed ones again, and no compiler or a broken one says what to do."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from openlora_kernels import build
from openlora_kernels.build import BuildError, library

FAKE = """#!/bin/sh
if [ "$1" = --version ]; then echo "{version}"; exit 0; fi
echo run >> "{log}"
{body}
while [ "$1" != -o ]; do shift; done
echo built > "$2"
"""


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "one.cpp").write_text('#include "shared.h"\n')
    (folder / "two.cpp").write_text("int two;\n")
    (folder / "shared.h").write_text("#pragma once\n")
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> tuple[Path, ...]:
    return (tmp_path / "cache",)


def compiler(tmp_path: Path, *, version: str = "g++ 1", body: str = "", name: str = "fake-g++") -> str:
    """A stand-in for g++ that logs its runs."""
    path = tmp_path / name
    path.write_text(FAKE.format(version=version, log=tmp_path / "runs", body=body))
    path.chmod(0o755)
    return str(path)


def runs(tmp_path: Path) -> int:
    log = tmp_path / "runs"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_builds_once_and_says_so(
    tmp_path: Path, sources: Path, cache: tuple[Path, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    command = compiler(tmp_path)
    built = library(sources, folders=cache, compiler=command)
    assert built.read_text() == "built\n"
    assert runs(tmp_path) == 3
    assert "[2/2]" in capfd.readouterr().err
    assert library(sources, folders=cache, compiler=command) == built
    assert runs(tmp_path) == 3
    assert capfd.readouterr().err == ""
    assert [path.name for path in cache[0].iterdir() if path.name.startswith(".build")] == []


@pytest.mark.parametrize("changed", ["one.cpp", "shared.h"])
def test_changed_sources_and_another_compiler_build_again(
    tmp_path: Path, sources: Path, cache: tuple[Path, ...], changed: str
) -> None:
    first = library(sources, folders=cache, compiler=compiler(tmp_path))
    (sources / changed).write_text("// changed\n")
    second = library(sources, folders=cache, compiler=compiler(tmp_path))
    third = library(sources, folders=cache, compiler=compiler(tmp_path, version="g++ 2", name="other"))
    assert len({first, second, third}) == 3


def test_old_libraries_are_forgotten(tmp_path: Path, sources: Path, cache: tuple[Path, ...]) -> None:
    for number in range(build.KEPT + 3):
        (sources / "two.cpp").write_text(f"int two = {number};\n")
        newest = library(sources, folders=cache, compiler=compiler(tmp_path))
        os.utime(newest, (number, number))
    assert len(list(cache[0].glob("*.so"))) == build.KEPT
    assert newest.is_file()


def test_without_a_compiler_a_library_of_the_same_sources_serves(
    tmp_path: Path, sources: Path, cache: tuple[Path, ...]
) -> None:
    built = library(sources, folders=cache, compiler=compiler(tmp_path))
    assert library(sources, folders=cache, compiler="no-such-compiler") == built
    (sources / "one.cpp").write_text("int changed;\n")
    with pytest.raises(BuildError, match=r"install g\+\+"):
        library(sources, folders=cache, compiler="no-such-compiler")


def test_a_failing_compiler_leaves_nothing_and_gives_its_reason(
    tmp_path: Path, sources: Path, cache: tuple[Path, ...]
) -> None:
    broken = compiler(tmp_path, body='echo "one.cpp:1: error: no such flag" >&2; exit 1')
    with pytest.raises(BuildError, match=r"failed: one.cpp:1: error: no such flag"):
        library(sources, folders=cache, compiler=broken)
    assert [path.name for path in cache[0].iterdir()] == ["build.lock"]


def test_a_compiler_that_does_not_run_is_reported(tmp_path: Path, sources: Path, cache: tuple[Path, ...]) -> None:
    path = tmp_path / "not-a-program"
    path.write_bytes(b"\x7fELF nonsense")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(BuildError, match="did not run"):
        library(sources, folders=cache, compiler=str(path))


def test_the_first_folder_that_can_be_written_is_used(tmp_path: Path, sources: Path) -> None:
    blocked = tmp_path / "a-file"
    blocked.write_text("")
    folders = (blocked / "kernels", tmp_path / "second")
    assert library(sources, folders=folders, compiler=compiler(tmp_path)).parent == folders[1]
    with pytest.raises(BuildError, match="can be written"):
        library(sources, folders=folders[:1], compiler=compiler(tmp_path))


def test_builders_at_once_build_once(tmp_path: Path, sources: Path, cache: tuple[Path, ...]) -> None:
    command, found = compiler(tmp_path), []
    threads = [
        threading.Thread(target=lambda: found.append(library(sources, folders=cache, compiler=command)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert runs(tmp_path) == 3


def test_another_machine_and_missing_sources_are_refused(
    tmp_path: Path, sources: Path, cache: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BuildError, match="reinstall"):
        library(tmp_path / "nothing", folders=cache)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(BuildError, match="x86-64"):
        library(sources, folders=cache)


def test_the_installation_comes_before_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    first, second = build.cache_folders()
    assert first.parts[-3:] == ("share", "openlora", "kernels")
    assert second == Path("/somewhere/openlora/kernels")


def test_building_ahead_never_fails_the_set_up(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> Path:
        raise BuildError("no compiler")

    monkeypatch.setattr(build, "library", fail)
    assert build.main() == 0
    assert "no compiler" in capfd.readouterr().err
    monkeypatch.setattr(build, "library", lambda: Path("/x.so"))
    assert build.main() == 0
    assert "/x.so" in capfd.readouterr().err
