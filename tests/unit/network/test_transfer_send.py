"""The sender against peers that do not play along, without a network: it ends, says why, and frees their place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

from openlora_node.artifacts import Piece
from openlora_node.network.identity import Peer
from openlora_node.network.scores import Fault
from openlora_node.network.session import Session
from openlora_node.network.transfer_send import Sender, SenderOptions
from openlora_node.protocol.chunks import CHUNK_SIZE
from openlora_node.protocol.errors import ErrorCode, OpenLoraError
from openlora_node.protocol.ids import NodeId
from openlora_node.protocol.manifest import AdapterManifest, FileEntry
from openlora_node.protocol.messages import ArtifactMessage, Chunk, ErrorReply, GetChunks, GetManifest, ManifestReply

ARTIFACT_ID = bytes(32)
MANIFEST = AdapterManifest(
    config={},
    files=(FileEntry(path="adapter_model.safetensors", root="00" * 32, size=3 * CHUNK_SIZE),),
    base="sha256:" + "00" * 32,
)
MANIFEST_QUESTION, CHUNKS_QUESTION = (
    GetManifest(artifact=ARTIFACT_ID),
    GetChunks(artifact=ARTIFACT_ID, file=0, first=0, count=3),
)


class Store:
    """Has one artifact; `held` counts readers that are open."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.held = 0

    def manifest(self, artifact: bytes) -> AdapterManifest | None:
        return MANIFEST if artifact == ARTIFACT_ID else None

    async def reader(self, artifact: bytes, file: int, first: int, count: int) -> AsyncGenerator[Piece, None]:
        self.held += 1
        try:
            for index in range(first, first + count):
                if self.error is not None and index == 1:
                    raise self.error
                yield Piece(index, bytes(CHUNK_SIZE), ())
        finally:
            self.held -= 1


class FakeSession:
    """A session whose peer asks these questions, then nothing; `takes`: answers that it takes before it stops."""

    def __init__(
        self,
        *questions: ArtifactMessage,
        takes: int = 100,
        then_end: bool = True,
        peer: str = "peer",
        node: NodeId | None = None,
        ip: str | None = "192.0.2.1",
    ) -> None:
        self.peer = Peer(peer, None, node)
        self.remote_ip = ip
        self.questions = list(questions)
        self.takes = takes
        self.then_end = then_end
        self.sent: list[ArtifactMessage] = []
        self.faults: list[Fault] = []
        self.aborted = False
        self.closed = False

    async def receive(self) -> ArtifactMessage | None:
        if self.questions:
            return self.questions.pop(0)
        if not self.then_end:
            await asyncio.Event().wait()
        return None

    async def send(self, message: ArtifactMessage) -> None:
        if len(self.sent) >= self.takes:
            await asyncio.Event().wait()
        self.sent.append(message)

    async def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def charge(self, fault: Fault) -> None:
        self.faults.append(fault)


async def allow(artifact: bytes, peer: Peer) -> bool:
    return True


def sender(store: Store | None = None, **options: Any) -> Sender:
    return Sender(store or Store(), allow, SenderOptions(**({"upload_rate": 1 << 40} | options)))


async def serve(answers: Sender, session: FakeSession) -> None:
    async with asyncio.timeout(10):
        await answers.serve(cast("Session[ArtifactMessage]", session))


async def test_questions_are_answered_in_order_to_the_end() -> None:
    session = FakeSession(MANIFEST_QUESTION, CHUNKS_QUESTION, GetManifest(artifact=b"\x01" * 32))
    answers = sender()
    await serve(answers, session)
    kinds = [type(message) for message in session.sent]
    assert kinds == [ManifestReply, Chunk, Chunk, Chunk, ErrorReply]
    assert session.closed
    assert session.faults == []
    assert answers.sent_bytes == 3 * CHUNK_SIZE
    assert not answers._open


async def test_a_peer_that_takes_nothing_more_is_cut_off_and_charged() -> None:
    store = Store()
    session = FakeSession(CHUNKS_QUESTION, takes=1)
    answers = sender(store, stall_s=0.05)
    await serve(answers, session)
    assert session.faults == [Fault.STALLED]
    assert session.aborted
    assert not answers._open
    assert store.held == 0, "its artifact may be evicted again"


async def test_a_peer_that_asks_nothing_is_let_go_without_blame() -> None:
    session = FakeSession(then_end=False)
    await serve(sender(idle_s=0.05), session)
    assert session.faults == []
    assert session.closed


async def test_a_damaged_artifact_is_not_found_and_a_fault_of_ours_ends_the_session_alone() -> None:
    store = Store(OpenLoraError(ErrorCode.STORAGE_FAILED))
    session = FakeSession(CHUNKS_QUESTION, MANIFEST_QUESTION)
    await serve(sender(store), session)
    assert [getattr(message, "code", None) for message in session.sent] == [None, ErrorCode.NOT_FOUND, None]
    broken = FakeSession(CHUNKS_QUESTION, MANIFEST_QUESTION)
    answers = sender(Store(RuntimeError("a bug")))
    await serve(answers, broken)
    assert broken.aborted
    assert not answers._open


async def test_sessions_are_bounded_a_peer_and_in_all() -> None:
    answers = sender(peer_sessions=1, sessions=2)
    waiting = [FakeSession(then_end=False, peer=name) for name in ("a", "b")]
    tasks = [asyncio.create_task(serve(answers, session)) for session in waiting]
    await asyncio.sleep(0)
    for name in ("a", "c"):
        refused = FakeSession(MANIFEST_QUESTION, peer=name)
        await serve(answers, refused)
        (answer,) = refused.sent
        assert isinstance(answer, ErrorReply)
        assert answer.code == ErrorCode.RATE_LIMITED
        assert answer.retry_after_ms
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not answers._open
    welcome = FakeSession(MANIFEST_QUESTION, peer="c")
    await serve(answers, welcome)
    assert isinstance(welcome.sent[0], ManifestReply)


async def test_one_machine_with_fresh_keys_does_not_take_every_session() -> None:
    answers = sender()
    squatters = [FakeSession(then_end=False, peer=f"key {i // 4}") for i in range(32)]
    tasks = [asyncio.create_task(serve(answers, session)) for session in squatters]
    await asyncio.sleep(0)
    assert sum(bool(session.sent) for session in squatters) == 24, "eight are served, the others told to come again"
    honest = (
        FakeSession(MANIFEST_QUESTION, peer="from elsewhere", ip="198.51.100.7"),
        FakeSession(MANIFEST_QUESTION, peer="through a relay", ip=None),
        FakeSession(MANIFEST_QUESTION, peer="a node next door", node=NodeId(bytes(32))),
    )
    for session in honest:
        await serve(answers, session)
        assert isinstance(session.sent[0], ManifestReply), session.peer.id
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    back = FakeSession(MANIFEST_QUESTION, peer="key 0")
    await serve(answers, back)
    assert isinstance(back.sent[0], ManifestReply), "who left made room"


async def test_strangers_from_everywhere_leave_room_for_nodes() -> None:
    answers = sender()
    squatters = [FakeSession(then_end=False, peer=f"key {i}", ip=f"192.0.2.{i}") for i in range(32)]
    tasks = [asyncio.create_task(serve(answers, session)) for session in squatters]
    await asyncio.sleep(0)
    node = FakeSession(MANIFEST_QUESTION, peer="a node", node=NodeId(bytes(32)))
    await serve(answers, node)
    assert isinstance(node.sent[0], ManifestReply)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_an_unknown_policy_refuses() -> None:
    async def unknown(artifact: bytes, peer: Peer) -> bool:
        raise OpenLoraError(ErrorCode.CHAIN_FAILED)

    session = FakeSession(MANIFEST_QUESTION, CHUNKS_QUESTION)
    await serve(Sender(Store(), unknown), session)
    assert [getattr(message, "code", None) for message in session.sent] == [ErrorCode.CHAIN_FAILED] * 2
