"""How this room refuses: what is wrong with an adapter, all of it at once, in one readable line."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import Code, EngineError

MOST_NAMED = 10


def invalid(message: str) -> EngineError:
    """The error for an adapter that cannot be what it says."""
    return EngineError(Code.ADAPTER_INVALID, message)


def untraced(error: EngineError) -> EngineError:
    """The same error without its traceback, to keep: the frames in it hold buffers as large as the adapter."""
    return EngineError(error.code, error.message, retry_after_s=error.retry_after_s, param=error.param)


def refuse(problems: Sequence[str], what: str) -> None:
    """Raise ADAPTER_INVALID that lists the problems of `what`; nothing when there is none."""
    if problems:
        raise invalid(f"{what}: {listed(problems)}")


def listed(problems: Sequence[str]) -> str:
    """Ten of them in full, the rest as a number. Names come from strangers: what cannot be printed is replaced."""
    more = f"; and {len(problems) - MOST_NAMED} more" if len(problems) > MOST_NAMED else ""
    return printable("; ".join(problems[:MOST_NAMED])) + more


def printable(text: str) -> str:
    """A stranger's text without line breaks and control characters."""
    return "".join(character if character.isprintable() else "?" for character in text)
