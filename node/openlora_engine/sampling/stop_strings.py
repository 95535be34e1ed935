"""Stop strings found as text comes in, wherever its pieces break, with no more text held back than may open one.

The strings form one automaton (Aho and Corasick, CACM 18(6), 1975). Its depth after a character is the length of the
longest opening of a stop string that the text ends in: just what has to be held back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Node:
    depth: int
    next: dict[str, _Node] = field(default_factory=dict)
    fail: _Node | None = None
    stop: str | None = None
    """The longest stop string that ends here."""
    held: int = 0
    """Characters that may still open a stop string, once what ends here is ignored."""


class StopStrings:
    """The automaton of a request's stop strings; its choices share it."""

    def __init__(self, strings: Sequence[str]) -> None:
        """None of `strings` is empty."""
        self.root = _Node(0)
        for string in strings:
            node = self.root
            for character in string:
                node = node.next.setdefault(character, _Node(node.depth + 1))
            node.stop = string
        queue: deque[_Node] = deque([self.root])
        while queue:
            node = queue.popleft()
            if node.fail is not None:
                node.stop = node.stop or node.fail.stop
                node.held = node.depth if node.next else node.fail.held
            for character, child in node.next.items():
                child.fail = self.root if node.fail is None else step(node.fail, character, self.root)
                queue.append(child)


@dataclass(frozen=True, slots=True)
class StopMatch:
    """What a piece of text gave: the text now certain and, at its end, the stop string that was found."""

    text: str
    stop: str | None = None


class StopScanner:
    """One choice's place in the automaton, and the text held back."""

    def __init__(self, strings: StopStrings) -> None:
        self._root = strings.root
        self._node = strings.root
        self._held = ""

    def add(self, text: str, *, ignore: bool, include_stop: bool) -> StopMatch:
        """Read `text`. Ends at the first stop string to be complete (of several, the longest), unless `ignore`.

        The stop string itself is part of the text with `include_stop` alone; what follows it never is.
        """
        root, node = self._root, self._node
        if not root.next:
            return StopMatch(text)
        known = len(self._held)
        whole = self._held + text
        for place in range(known, len(whole)):
            node = step(node, whole[place], root)
            if node.stop is not None and not ignore:
                end = place + 1 if include_stop else place + 1 - len(node.stop)
                self._node, self._held = root, ""
                return StopMatch(whole[:end], node.stop)
        self._node = node
        certain = len(whole) - node.held
        self._held = whole[certain:]
        return StopMatch(whole[:certain])

    def flush(self) -> str:
        """The text held back, when no more comes."""
        text, self._held, self._node = self._held, "", self._root
        return text


def step(node: _Node, character: str, root: _Node) -> _Node:
    """The automaton's move."""
    found = node.next.get(character)
    while found is None and node.fail is not None:
        node = node.fail
        found = node.next.get(character)
    return root if found is None else found
