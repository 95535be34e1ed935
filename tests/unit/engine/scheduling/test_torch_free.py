"""Scheduling is policy: importing it loads no tensor library."""

from __future__ import annotations

import subprocess
import sys


def test_scheduling_loads_no_tensor_library() -> None:
    code = "import sys, openlora_engine.scheduling; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
