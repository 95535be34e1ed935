"""Text with units: exact both ways, and nothing else accepted."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.config.units import (
    MAX_WEI,
    Rate,
    format_amount,
    format_duration,
    format_rate,
    format_size,
    parse_amount,
    parse_duration,
    parse_rate,
    parse_size,
)

DURATIONS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
AMOUNTS = {"wei": 1, "gwei": 10**9, "OPEN": 10**18}


@given(st.integers(0, 10**8), st.sampled_from(sorted(DURATIONS)))
def test_a_duration_is_its_number_times_its_unit(number: int, unit: str) -> None:
    value = parse_duration(f"{number}{unit}")
    assert value == timedelta(milliseconds=number * DURATIONS[unit])
    assert parse_duration(format_duration(value)) == value


@given(st.integers(0, 10**14))
def test_sizes_come_back_exactly(value: int) -> None:
    assert parse_size(format_size(value)) == value


@given(st.integers(0, MAX_WEI))
def test_amounts_come_back_exactly(wei: int) -> None:
    assert parse_amount(format_amount(wei)) == wei


@given(st.integers(0, 10**6), st.text("0123456789", min_size=1, max_size=18), st.sampled_from(sorted(AMOUNTS)))
def test_an_amount_is_its_decimal_times_its_unit_or_refused(whole: int, fraction: str, unit: str) -> None:
    scaled = (whole * 10 ** len(fraction) + int(fraction)) * AMOUNTS[unit]
    text = f"{whole}.{fraction} {unit}"
    if scaled % 10 ** len(fraction):
        with pytest.raises(ValueError, match="cannot be divided"):
            parse_amount(text)
    else:
        assert parse_amount(text) == scaled // 10 ** len(fraction)


@given(st.integers(0, 10**9 - 1), st.sampled_from(["s", "min", "h"]))
def test_rates_come_back_exactly(count: int, period: str) -> None:
    assert format_rate(parse_rate(f"{count}/{period}")) == f"{count}/{period}"


def test_known_values() -> None:
    assert parse_duration("7d") == timedelta(days=7)
    assert parse_duration("250 ms") == timedelta(milliseconds=250)
    assert format_duration(timedelta(0)) == "0s"
    assert format_duration(timedelta(minutes=90)) == "90m"
    assert parse_size("64KiB") == 65_536
    assert parse_size("512MB") == 512_000_000
    assert format_size(512_000_000) == "512MB"
    assert format_size(1000 << 20) == "1000MiB"
    assert parse_amount("0.25 OPEN") == 25 * 10**16
    assert parse_amount("2 gwei") == 2 * 10**9
    assert parse_amount("1.0 wei") == 1
    # A 28-digit decimal context or a float would round this.
    assert parse_amount("340282366920938463463.374607431768211455 OPEN") == MAX_WEI
    assert parse_rate("60/min") == Rate(60, timedelta(minutes=1))
    assert parse_rate("60/min").per_second == 1


@pytest.mark.parametrize(
    "text", ["30", "", "s", "-1s", "1.5h", "1h30m", "30sec", " 30s", "30s\n", "٣s", "1_0s", "inf s"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="unit"):
        parse_duration(text)


def test_a_duration_beyond_time() -> None:
    with pytest.raises(ValueError, match="that long"):
        parse_duration("999999999999d")


@pytest.mark.parametrize("text", ["16", "16G", "16gib", "-1GiB", "1.5GiB", "1e3MiB", "GiB", "16 PiB", "1 6GiB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="unit"):
        parse_size(text)


@pytest.mark.parametrize(
    "text", ["1", "0.25", "-1 OPEN", "1e18 wei", "1 ETH", "1 open", ".5 OPEN", "1. OPEN", "1,5 OPEN"]
)
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(ValueError, match="unit"):
        parse_amount(text)


@pytest.mark.parametrize("text", ["1.5 wei", "0.0000000001 gwei", "0.0000000000000000001 OPEN"])
def test_a_wei_is_not_divided(text: str) -> None:
    with pytest.raises(ValueError, match="cannot be divided"):
        parse_amount(text)


@pytest.mark.parametrize("text", [f"{MAX_WEI + 1} wei", "340282366920938463464 OPEN", f"{'9' * 39} OPEN"])
def test_an_amount_beyond_128_bits(text: str) -> None:
    with pytest.raises(ValueError, match="exceeds"):
        parse_amount(text)


@pytest.mark.parametrize("text", ["60", "60/m", "60/minute", "60 /min", "-1/s", "1.5/s", "/s", "60/0s"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="period"):
        parse_rate(text)
