"""The stop scanner equals reading character by character, however the text is cut, and holds back what it must."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from openlora_engine.sampling.stop_strings import StopScanner, StopStrings

texts = st.text("ab\né👋", max_size=30)
stops = st.lists(st.text("ab\né👋", min_size=1, max_size=5), max_size=4)


def brute_force(text: str, strings: list[str], *, include_stop: bool) -> tuple[str, str | None]:
    """The first place where some stop string ends; of several there, the longest."""
    for end in range(1, len(text) + 1):
        found = [string for string in strings if text[:end].endswith(string)]
        if found:
            longest = max(found, key=len)
            return text[:end] if include_stop else text[: end - len(longest)], longest
    return text, None


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({min(place, len(text)) for place in places} | {0, len(text)})
    return [text[start:end] for start, end in pairwise(ends)]


@given(text=texts, strings=stops, places=st.lists(st.integers(0, 30), max_size=8), include_stop=st.booleans())
def test_scanner_equals_brute_force(text: str, strings: list[str], places: list[int], include_stop: bool) -> None:
    expected, expected_stop = brute_force(text, strings, include_stop=include_stop)
    scanner = StopScanner(StopStrings(strings))
    shown, read, stop = "", "", None
    for piece in cut(text, places):
        match = scanner.add(piece, ignore=False, include_stop=include_stop)
        shown, read, stop = shown + match.text, read + piece, match.stop
        if stop is not None:
            break
        # Exactly the longest opening of a stop string that the text so far ends in is held back.
        openings = [string[:length] for string in strings for length in range(len(string))]
        assert read[len(shown) :] == max(
            (opening for opening in openings if read.endswith(opening)), key=len, default=""
        )
    else:
        shown += scanner.flush()
    assert (shown, stop) == (expected, expected_stop)


@given(before=texts, text=texts, strings=stops)
def test_ignored_stops_pass_and_may_open_later_ones(before: str, text: str, strings: list[str]) -> None:
    scanner = StopScanner(StopStrings(strings))
    shown = "".join(scanner.add(character, ignore=True, include_stop=False).text for character in before)
    match = scanner.add(text, ignore=False, include_stop=False)
    shown += match.text + (scanner.flush() if match.stop is None else "")
    found = [
        (end, string)
        for end in range(len(before) + 1, len(before + text) + 1)
        for string in strings
        if (before + text)[:end].endswith(string)
    ]
    if not found:
        assert (shown, match.stop) == (before + text, None)
        return
    end = min(end for end, _ in found)
    longest = max((string for other, string in found if other == end), key=len)
    assert match.stop == longest
    assert shown == (before + text)[: end - len(longest)]


def test_without_stop_strings_nothing_is_held_back() -> None:
    scanner = StopScanner(StopStrings([]))
    assert scanner.add("abc", ignore=False, include_stop=False).text == "abc"
    assert scanner.flush() == ""


def test_the_held_text_of_a_stop_string_that_does_not_come_is_released() -> None:
    scanner = StopScanner(StopStrings(["Observation:"]))
    assert scanner.add("An Observ", ignore=False, include_stop=False).text == "An "
    assert scanner.add("ation ", ignore=False, include_stop=False).text == "Observation "
