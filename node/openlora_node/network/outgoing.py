"""What waits to be sent for many requests on one stream: fair among them, bounded, tokens merged. Pure.

While the peer keeps pace nothing waits here. When it is behind, tokens that follow each other in one choice become one
message, and each request in turn sends one.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from ..protocol.messages import INFER, InferMessage, Tokens

MAX_MERGED_TOKENS = 4096
MAX_MERGED_CHARACTERS = 1 << 14
"""Of a merged message; a single one may have the protocol's 65,536. Small turns keep others' waits short."""
MAX_LOOK_BACK = 16
"""Messages of other choices among which one of the same choice is looked for."""
OVERHEAD = 64


@dataclass
class _Queue:
    """One request's messages, oldest first; an encoded one is bytes."""

    items: deque[tuple[Tokens | None, bytes, int]] = field(default_factory=deque)
    size: int = 0


class Outgoing:
    """Messages by request. `size` and `size_of` count bytes, with OVERHEAD for each message."""

    def __init__(self) -> None:
        self._queues: OrderedDict[int, _Queue] = OrderedDict()
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._queues)

    def __repr__(self) -> str:
        return f"Outgoing({len(self._queues)} requests, {self.size} bytes)"

    def size_of(self, request: int) -> int:
        """What waits for one request."""
        queue = self._queues.get(request)
        return queue.size if queue else 0

    def add(self, request: int, message: InferMessage) -> None:
        """Queue a message behind the request's others. Raises ProtocolError for one that a reader would refuse."""
        frame = INFER.encode(message)
        queue = self._queues.get(request)
        if queue is None:
            queue = self._queues[request] = _Queue()
        tokens = message if isinstance(message, Tokens) else None
        if tokens is not None and self._merged(queue, tokens, len(frame)):
            return
        queue.items.append((tokens, frame, len(frame) + OVERHEAD))
        self._count(queue, len(frame) + OVERHEAD)

    def pop(self) -> bytes | None:
        """The next message of the request whose turn it is, encoded; None when nothing waits."""
        if not self._queues:
            return None
        request, queue = next(iter(self._queues.items()))
        tokens, frame, size = queue.items.popleft()
        self._count(queue, -size)
        if queue.items:
            self._queues.move_to_end(request)
        else:
            del self._queues[request]
        return frame or INFER.encode(tokens)  # type: ignore[arg-type]

    def drop(self, request: int) -> None:
        """Forget what waits for a request."""
        queue = self._queues.pop(request, None)
        if queue is not None:
            self.size -= queue.size

    def _merged(self, queue: _Queue, tokens: Tokens, added: int) -> bool:
        """Whether `tokens` went into a message that waits; choices may overtake each other, nothing else may."""
        for place in range(len(queue.items) - 1, max(-1, len(queue.items) - 1 - MAX_LOOK_BACK), -1):
            last, _, size = queue.items[place]
            if last is None:
                return False
            if last.choice == tokens.choice:
                merged = merge(last, tokens)
                if merged is None:
                    return False
                queue.items[place] = (merged, b"", size + added)
                self._count(queue, added)
                return True
        return False

    def _count(self, queue: _Queue, size: int) -> None:
        queue.size += size
        self.size += size


def merge(first: Tokens, second: Tokens) -> Tokens | None:
    """One message for two that follow each other in a choice; None when it would be too large or they do not.

    Logprobs are a JSON document a message and stay apart.
    """
    if (
        first.id != second.id
        or first.choice != second.choice
        or first.start + len(first.token_ids) != second.start
        or first.logprobs
        or second.logprobs
        or len(first.token_ids) + len(second.token_ids) > MAX_MERGED_TOKENS
        or len(first.text) + len(second.text) > MAX_MERGED_CHARACTERS
    ):
        return None
    return Tokens(
        id=first.id,
        choice=first.choice,
        start=first.start,
        token_ids=first.token_ids + second.token_ids,
        text=first.text + second.text,
    )
