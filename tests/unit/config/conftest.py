"""No test of this folder sees the machine's own configuration or home."""

from collections.abc import Callable
from pathlib import Path

import pytest

from openlora_node.config import ConfigError, Loaded, Problem, load, loader


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", "/home/operator")
    monkeypatch.setattr(loader, "SYSTEM_FILE", tmp_path / "no-such-system-file.yaml")
    return Path("/home/operator")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "node.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def load_text(write: Callable[[str | bytes], Path]) -> Callable[..., Loaded]:
    """Load a file of this content, an empty environment unless given."""

    def load_text(content: str | bytes, environ: dict[str, str] | None = None, flags: tuple[str, ...] = ()) -> Loaded:
        return load(write(content), environ=environ or {}, flags=flags)

    return load_text


@pytest.fixture
def problems_of(load_text: Callable[..., Loaded], tmp_path: Path) -> Callable[..., list[Problem]]:
    """The problems of such a load, places shortened to the file's name."""

    def problems_of(
        content: str | bytes, environ: dict[str, str] | None = None, flags: tuple[str, ...] = ()
    ) -> list[Problem]:
        with pytest.raises(ConfigError) as caught:
            load_text(content, environ, flags)
        return [
            Problem(problem.place.replace(f"{tmp_path}/", ""), problem.key, problem.message, problem.code)
            for problem in caught.value.problems
        ]

    return problems_of
