"""The `openlora` command: one file a noun, thin: parse, call, print."""

__all__ = ["main"]


def main() -> None:
    """Run `openlora` with the process's arguments and exit."""
    from .app import app

    app(prog_name="openlora")
