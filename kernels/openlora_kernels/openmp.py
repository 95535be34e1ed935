"""How long the OpenMP runtime's idle threads spin, settled before torch loads it. Imports nothing of ours and no torch.

GNU's runtime spins some 5 ms at every barrier before a thread sleeps. When other processes want the cores too, a
thread that spins holds a core that its preempted partner needs, at every barrier again: on 2 cores with a load of 12
a decode step that takes 20 ms alone took 3,600 ms; with 2,000 spins (about 30 us) it took 150 ms, its fair share of
the cores. Alone, steps were equal within the noise from 1,000 spins up.
"""

from __future__ import annotations

import os
import sys

SPINS = 2_000


def limit_spinning() -> bool:
    """Set GOMP_SPINCOUNT unless the user chose; False where torch has been imported already and it is too late."""
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return True
    if "torch" in sys.modules:
        return False
    os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    return True
