"""On PYTHONPATH of a process, sets its clock wrong by CLOCK_SKEW_S seconds. Python imports this file by its name."""

import os
import time

_right = time.time
_skew = float(os.environ["CLOCK_SKEW_S"])
time.time = lambda: _right() + _skew
