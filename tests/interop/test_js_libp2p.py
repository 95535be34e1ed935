"""Another implementation joins: js-libp2p with a peer written from docs/protocol.md, which shares no code with ours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from openlora_node.network.advertising import AdvertOptions, topic_of
from openlora_node.network.directory import DirectoryOptions
from openlora_node.network.service import Network
from openlora_node.protocol.crypto import LocalSigner
from openlora_node.protocol.messages import INFER
from support.interop_peer import CommandFailed, js_peer
from support.network_adverts import BASE, DOMAIN, ONLINE
from support.network_peers import QUICK, Registry, fresh_secret

JS_DOMAIN = {"chainId": DOMAIN.chain_id, "verifyingContract": DOMAIN.verifying_contract.hex()}


@asynccontextmanager
async def our_node(registry: Registry) -> AsyncIterator[tuple[Network, bytes]]:
    """A node of ours that advertises soon and often."""
    secret = fresh_secret()
    node = registry.register(secret)
    network = Network(
        secret,
        QUICK,
        registry,
        adverts=AdvertOptions(DOMAIN, interval=0.5, debounce=0.2, node=node, key=LocalSigner(secret)),
        directory=DirectoryOptions(DOMAIN, first_retry=0.2),
        serves=(INFER,),
    )
    await network.start()
    try:
        (address, *_) = await network.addresses()
        network.advertise(replace(ONLINE, addresses=(address.split("/p2p/")[0],)))
        await network.follow(BASE)
        yield network, node
    finally:
        await network.stop()


async def test_js_dials_us_and_identify_tells_what_we_speak(tmp_path: Path) -> None:
    async with our_node(Registry()) as (network, _), js_peer(tmp_path, secret=fresh_secret().hex()) as (js, _about):
        (address, *_) = await network.addresses()
        dialled = await js.do("dial", address=address)
        assert dialled == {"peer": await network.peer_id(), "encryption": "/noise", "multiplexer": "/yamux/1.0.0"}
        told = await js.do("identified", peer=dialled["peer"])
        assert {"/openlora/infer/1", "/openlora/advert/1", "/openlora/kad/1"} <= set(told["protocols"])


async def test_we_dial_js_and_learn_its_address_on_chain(tmp_path: Path) -> None:
    secret = fresh_secret()
    async with our_node(Registry()) as (network, _), js_peer(tmp_path, secret=secret.hex()) as (_js, about):
        peer = await network.connect(about["peer"], (about["address"].split("/p2p/")[0],))
        assert peer.id == about["peer"]
        assert peer.address == LocalSigner(secret).address


async def test_gossip_brings_our_advert_and_js_verifies_it(tmp_path: Path) -> None:
    start = {"secret": fresh_secret().hex(), "topics": [topic_of(BASE)]}
    async with our_node(Registry()) as (network, node), js_peer(tmp_path, **start) as (js, _about):
        (address, *_) = await network.addresses()
        dialled = await js.do("dial", address=address)
        advert = await js.do("advert", domain=JS_DOMAIN, node=node.hex(), peer=dialled["peer"])
        assert advert == {
            "state": 2,
            "bases": [BASE.hex()],
            "inputRate": str(ONLINE.input_rate),
            "addresses": [address.split("/p2p/")[0]],
        }
        elsewhere = JS_DOMAIN | {"chainId": 1}
        with pytest.raises(CommandFailed, match="another key"):
            await js.do("advert", domain=elsewhere, node=node.hex(), peer=dialled["peer"])


async def test_js_finds_our_base_model_and_our_record_in_the_directory(tmp_path: Path) -> None:
    registry = Registry()
    async with our_node(registry) as (first, node), our_node(registry) as (second, _):
        await first.connect(await second.peer_id(), await second.addresses())
        async with js_peer(tmp_path, secret=fresh_secret().hex()) as (js, _about):
            (address, *_) = await second.addresses()
            await js.do("dial", address=address)
            own = await first.peer_id()
            provider = await js.do("findProvider", base=BASE.hex(), peer=own)
            assert provider["peer"] == own
            record = await js.do("findRecord", domain=JS_DOMAIN, node=node.hex(), peer=own)
            assert record["state"] == 1
