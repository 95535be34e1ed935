"""docs/configuration.md, written from the schema: `openlora config reference`. A test keeps the file equal."""

from __future__ import annotations

from .catalog import EACH_ENGINE, GROUP, KEYS, SECTIONS, Key
from .engines import MAX_ENGINES, MAX_MODELS, EachEngine
from .layers import CONFIG_VARIABLE
from .loader import SYSTEM_FILE

_HEAD = f"""\
# Configuration

This page is written by `openlora config reference` from the schema; edit the schema, not the page.
`configs/operator.yaml` is a file to start from: every key, commented out at its default.

**Where a value comes from.** The first of these that has the key decides:

1. the flag `--set section.key=value`, repeatable;
2. the environment variable `OPENLORA_SECTION__KEY`;
3. the YAML file: `--config FILE`, else the one that `{CONFIG_VARIABLE}` names, else `{SYSTEM_FILE}` if it exists;
4. the default.

`openlora config show --sources` prints every value with its place; `openlora config check` reports every problem at
once and exits with 3. Unknown keys, unknown variables that start with `OPENLORA_` and keys written twice are errors.

**How values are written.** In variables and flags text needs no quotes, a list stands in brackets (`[a, b]`), and
`null` clears a key that may be null.

- A *duration* has a unit: `250ms`, `30s`, `5m`, `1h`, `7d`.
- A *size* has a unit: `64KiB`, `16GiB` (powers of 1024), `512MB` (powers of 1000).
- An *amount* of native coin is an exact decimal with its unit: `0.25 OPEN`, `2 gwei`, `1500 wei`.
- A *rate* has a period: `10/s`, `60/min`, `1000/h`.
- A *path* is absolute or starts with `~/`.

**Secrets** never stand in the configuration, a variable or a flag: write them to a file of mode 0600 and name it by the
`*_file` key. A key that is named like a secret, a bare 32-byte hex key, a recovery phrase and a URL with credentials or
an access key are refused.
"""


def reference() -> str:
    """The whole page."""
    parts = [_HEAD]
    for name in SECTIONS:
        parts.append(_section(name))
        if name == "engine":
            parts.append(_engines())
    return "\n".join(parts)


def _section(name: str) -> str:
    rows = [_row(key) for key in KEYS if key.section == name]
    head = ["| key | type | default | variable | meaning |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([f"## {name}", "", SECTIONS[name].__doc__ or "", "", *head, *rows, ""])


def _engines() -> str:
    rows = [
        f"| `{key.name}` | {key.type_text} | `{key.default_text}` | {key.meaning} |" for key in EACH_ENGINE.values()
    ]
    head = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    about = (
        f"{EachEngine.__doc__} At most {MAX_ENGINES} of {MAX_MODELS} base models, in the file only: they have no"
        " variables and no flags. `engine` then holds `adapters_dir` and `grace` alone. Where two serve one base, each"
        " request goes to one of them."
    )
    return "\n".join([f"## {GROUP}", "", about, "", *head, *rows, ""])


def _row(key: Key) -> str:
    return f"| `{key.name}` | {key.type_text} | `{key.default_text}` | `{key.env}` | {key.meaning} |"
