"""Text with a unit ↔ exact values: durations, sizes, amounts of native coin, request rates. Knows no key and no file.

Every parser takes text alone and raises ValueError with what to write instead, never with what was written. No value
passes through a float; `format_x(parse_x(text))` may choose another unit but never another value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta

MAX_WEI = (1 << 128) - 1

_MILLISECONDS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_BYTES = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}
_DECIMALS = {"wei": 0, "gwei": 9, "OPEN": 18}
_PERIODS = {"s": timedelta(seconds=1), "min": timedelta(minutes=1), "h": timedelta(hours=1)}

_DURATION = re.compile(r"([0-9]{1,12}) ?(ms|s|m|h|d)")
_SIZE = re.compile(r"([0-9]{1,15}) ?(B|[KMGT]i?B)")
_AMOUNT = re.compile(r"([0-9]{1,39})(?:\.([0-9]{1,39}))? ?(wei|gwei|OPEN)")
_RATE = re.compile(r"([0-9]{1,9})/(s|min|h)")


@dataclass(frozen=True)
class Rate:
    """At most `count` events in any `per`: the capacity and the refill time of a token bucket."""

    count: int
    per: timedelta

    @property
    def per_second(self) -> float:
        """Events per second, for comparing rates."""
        return self.count / self.per.total_seconds()


def parse_duration(text: str) -> timedelta:
    """`250ms`, `30s`, `5m`, `1h`, `7d`."""
    match = _DURATION.fullmatch(text)
    if not match:
        raise ValueError("write a whole number with its unit (ms, s, m, h, d), such as 30s")
    try:
        return timedelta(milliseconds=int(match[1]) * _MILLISECONDS[match[2]])
    except OverflowError:
        raise ValueError("no duration is that long") from None


def format_duration(value: timedelta) -> str:
    """The largest unit that stays whole. `value` is a whole number of milliseconds."""
    milliseconds = value // timedelta(milliseconds=1)
    unit = next(unit for unit in reversed(_MILLISECONDS) if milliseconds % _MILLISECONDS[unit] == 0)
    return f"{milliseconds // _MILLISECONDS[unit]}{unit}" if milliseconds else "0s"


def parse_size(text: str) -> int:
    """`64KiB`, `16GiB` (powers of 1024), `512MB` (powers of 1000) → bytes."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError("write a whole number with its unit (B, KiB, MiB, GiB, TiB, or KB, MB, GB, TB), such as 16GiB")
    return int(match[1]) * _BYTES[match[2]]


def format_size(value: int) -> str:
    """The unit that stays whole with the smallest number."""
    unit = max((unit for unit in _BYTES if value % _BYTES[unit] == 0), key=_BYTES.__getitem__) if value else "B"
    return f"{value // _BYTES[unit]}{unit}"


def parse_amount(text: str) -> int:
    """`0.25 OPEN`, `2 gwei`, `1500 wei` → wei, exact; whole wei from 0 to 2^128 - 1."""
    match = _AMOUNT.fullmatch(text)
    if not match:
        raise ValueError("write an amount with its unit (OPEN, gwei, wei), such as 0.25 OPEN")
    decimals = _DECIMALS[match[3]]
    fraction = (match[2] or "").rstrip("0")
    if len(fraction) > decimals:
        raise ValueError("one wei cannot be divided: write fewer decimals")
    wei = int(match[1] + fraction.ljust(decimals, "0"))
    if wei > MAX_WEI:
        raise ValueError("the amount exceeds 2^128 - 1 wei")
    return wei


def format_amount(wei: int) -> str:
    """Exact decimals, in the unit that reads best."""
    unit = "OPEN" if wei == 0 or wei >= 10**15 else "gwei" if wei >= 10**6 else "wei"
    decimals = _DECIMALS[unit]
    whole, fraction = divmod(wei, 10**decimals)
    digits = f"{fraction:0{decimals}d}".rstrip("0") if fraction else ""
    return f"{whole}.{digits} {unit}" if digits else f"{whole} {unit}"


def parse_rate(text: str) -> Rate:
    """`60/min`, `10/s`, `1000/h`."""
    match = _RATE.fullmatch(text)
    if not match:
        raise ValueError("write a whole number and its period (s, min, h), such as 60/min")
    return Rate(int(match[1]), _PERIODS[match[2]])


def format_rate(rate: Rate) -> str:
    """The form that `parse_rate` reads."""
    period = next(name for name, length in _PERIODS.items() if length == rate.per)
    return f"{rate.count}/{period}"
