"""No import may raise the recursion limit: it is what stops decoders in nested bytes of strangers."""

from __future__ import annotations

import subprocess
import sys

import pytest

IMPORTS = """
import sys
before = sys.getrecursionlimit()
{imports}
assert sys.getrecursionlimit() == before, sys.getrecursionlimit()
"""
DECODE = """
import openlora_chain.rpc, openlora_chain.devnet.devnet
from openlora_node.protocol.errors import ProtocolError
from openlora_node.protocol.manifest import decode_manifest
try:
    decode_manifest(b'{"kind":"adapter","config":{"x":' + b"[" * 500_000)
except ProtocolError as error:
    print(error.code.value)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "imports",
    [
        "import openlora_chain.rpc, openlora_chain.outbox, openlora_chain.wallet",
        "import openlora_chain.devnet.devnet",
        "import openlora_chain\nimport py_ecc",
    ],
)
def test_the_limit_stays(imports: str) -> None:
    ended = run(IMPORTS.format(imports=imports))
    assert ended.returncode == 0, ended.stderr


def test_nested_bytes_do_not_end_a_process_that_talks_to_the_chain() -> None:
    ended = run(DECODE)
    assert (ended.returncode, ended.stdout.strip()) == (0, "BAD_MANIFEST"), ended.stderr[-500:]
