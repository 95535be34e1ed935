"""What runs in the next step, and on which blocks and slots. Policy only: no torch, no clock, no I/O."""

from .blocks import BlockManager
from .fairness import FairShare, TokenWeights
from .limits import SchedulerConfig
from .prefix import PrefixHasher
from .roster import SchedulerStats
from .schedule import Failure, Schedule, ScheduledChunk
from .scheduler import Scheduler
from .sequence import Sequence, SequenceStatus
from .slots import HostTier, SlotLoader, SlotPool

__all__ = [
    "BlockManager",
    "Failure",
    "FairShare",
    "HostTier",
    "PrefixHasher",
    "Schedule",
    "ScheduledChunk",
    "Scheduler",
    "SchedulerConfig",
    "SchedulerStats",
    "Sequence",
    "SequenceStatus",
    "SlotLoader",
    "SlotPool",
    "TokenWeights",
]
