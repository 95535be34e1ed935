"""Sources found through adverts: those whose filter has the artifact, then others who are connected."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from openlora_node.network.advertising import AdvertOptions
from openlora_node.network.directory import DirectoryOptions
from openlora_node.network.service import Network
from openlora_node.network.transfer_sources import Finder, of_peers
from openlora_node.protocol.crypto import LocalSigner
from openlora_node.protocol.messages import ARTIFACT
from support.artifacts_folders import ABOUT, adapter_folder, dataset_folder
from support.artifacts_peers import node, open_store
from support.network_adverts import BASE, DOMAIN, ONLINE, adapter
from support.network_peers import QUICK, Registry, fresh_secret

pytestmark = pytest.mark.timeout(60)


async def test_the_holder_is_found_first_by_its_filter(tmp_path: Path) -> None:
    registry = Registry()

    def network(secret: bytes, **advert: object) -> Network:
        return Network(
            secret,
            QUICK,
            registry,
            adverts=AdvertOptions(DOMAIN, debounce=0.05, reconcile=0.2, **advert),  # type: ignore[arg-type]
            directory=DirectoryOptions(DOMAIN),
            serves=(ARTIFACT,),
        )

    secrets = [fresh_secret() for _ in range(2)]
    nodes = [registry.register(secret) for secret in secrets]
    serving = [network(secret, node=each, key=LocalSigner(secret)) for secret, each in zip(secrets, nodes, strict=True)]
    with (
        open_store(tmp_path / "a") as store_a,
        open_store(tmp_path / "b") as store_b,
        open_store(tmp_path / "c") as store,
    ):
        artifact = await store_b.add_folder(adapter_folder(tmp_path / "in"), "adapter", ABOUT)
        data = await store_a.add_folder(dataset_folder(tmp_path / "data"), "dataset")
        async with (
            node(store_a, network=serving[0]) as other,
            node(store_b, network=serving[1]) as holder,
            node(store, network=network(fresh_secret())) as asker,
        ):
            other.network.advertise(replace(ONLINE, adapters=frozenset({adapter(1)})))
            holder.network.advertise(replace(ONLINE, adapters=frozenset({artifact})))
            await asker.network.follow(BASE)
            await asker.meet(other, holder)
            async with asyncio.timeout(20):
                while len(await asker.network.nodes(BASE)) < 2:
                    await asyncio.sleep(0.02)
            finder = Finder(asker.network, lambda: (BASE,))
            found = [peer async for peer in finder.sources(artifact)]
            assert found == [holder.id, other.id], "the filter's word first, then who is merely connected"
            assert (await asker.fetcher.fetch(artifact, finder.sources)).is_dir()
            assert other.sender.sent_bytes == 0
            assert (await asker.fetcher.fetch(data, finder.sources)).is_dir(), "datasets stand in no filter"
            named = of_peers(["somebody"], finder.sources)
            assert [peer async for peer in named(artifact)][:2] == ["somebody", holder.id]
