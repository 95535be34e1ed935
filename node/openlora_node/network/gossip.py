"""Carries small messages to all who follow a topic: GossipSub, set up so that it may lose messages but not the host.

It is a rumour, not a channel: bursts are dropped. So messages are paced, repeated by their makers, and fetched by
stream by whoever missed them.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import MessageIDGenerator, Pubsub

from ..protocol.errors import ErrorCode, OpenLoraError
from .host import Host
from .services import running

MESHSUB = ("/meshsub/1.2.0", "/meshsub/1.1.0")
MAX_TOPICS = 32
MAX_RPC_BYTES = 1 << 16
HEARTBEAT_S = 1
"""libp2p's own default is two minutes."""

logger = logging.getLogger(__name__)

Judge = Callable[[bytes, str], bool]
"""A message and the peer that handed it on → whether it goes to others. May raise: that counts as no."""


class ByContent(MessageIDGenerator):
    """Message ids from topic and data: one advert on the topics of two base models is a message on each."""

    def generate_id(self, msg: rpc_pb2.Message) -> bytes:
        """Base64 text of SHA-256 over the topic, a zero byte and the data."""
        return base64.b64encode(hashlib.sha256("".join(msg.topicIDs).encode() + b"\0" + msg.data).digest())


class Gossip:
    """Topics followed and messages sent. Made by `open_gossip`."""

    def __init__(self, pubsub: Pubsub, router: GossipSub, judge: Judge) -> None:
        self._pubsub = pubsub
        self._router = router
        self._judge = judge

    def topics(self) -> tuple[str, ...]:
        """Topics followed."""
        return tuple(self._pubsub.topic_ids)

    def followers(self, topic: str) -> int:
        """Connected peers that follow a topic."""
        return len(self._pubsub.peer_topics.get(topic, ()))

    async def follow(self, topic: str) -> None:
        """Receive a topic's messages and hand them on. Raises UNSUPPORTED beyond MAX_TOPICS."""
        if topic in self._pubsub.topic_ids:
            return
        if len(self._pubsub.topic_ids) >= MAX_TOPICS:
            raise OpenLoraError(ErrorCode.UNSUPPORTED, f"a node follows at most {MAX_TOPICS} base models")
        self._pubsub.set_topic_validator(topic, self._validate, False)
        await self._pubsub.subscribe(topic)

    async def leave(self, topic: str) -> None:
        """Stop following."""
        if topic in self._pubsub.topic_ids:
            await self._pubsub.unsubscribe(topic)
            self._pubsub.remove_topic_validator(topic)

    async def publish(self, topic: str, message: bytes) -> None:
        """Send a message to those who follow the topic."""
        await self._pubsub.publish(topic, message)

    def _validate(self, sender: ID, message: rpc_pb2.Message) -> bool:
        """A validator that raises would end libp2p's gossip, and the host with it."""
        try:
            return self._judge(message.data, sender.to_base58())
        except Exception:
            logger.exception("a message could not be judged")
            return False


@asynccontextmanager
async def open_gossip(host: Host, judge: Judge) -> AsyncIterator[Gossip]:
    """Gossip on a running host."""
    router = GossipSub(
        protocols=[TProtocol(protocol) for protocol in MESHSUB],
        degree=6,
        degree_low=4,
        degree_high=12,
        heartbeat_interval=HEARTBEAT_S,
    )
    pubsub = Pubsub(
        host.inner,
        router,
        strict_signing=True,
        msg_id_constructor=ByContent(),  # libp2p's own counters repeat after a quick restart
        max_inbound_rpc_size=MAX_RPC_BYTES,
        max_subscriptions_per_peer=2 * MAX_TOPICS,
    )
    async with running(pubsub), running(router):
        await pubsub.wait_until_ready()
        yield Gossip(pubsub, router, judge)
