"""`openlora net` and `openlora peers` against a running network behind a control socket, and where none runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from typer.testing import CliRunner, Result

from openlora_node.api.control import Command, Parameters, control_app, text_of, whole_of
from openlora_node.cli.app import app
from openlora_node.cli.exits import Exit
from openlora_node.network import reach_probe, reach_report
from openlora_node.network.advertising import AdvertOptions
from openlora_node.network.directory import DirectoryOptions
from openlora_node.network.reach import ReachOptions
from openlora_node.network.service import Network
from support.network_adverts import DOMAIN
from support.network_peers import QUICK, Registry, fresh_secret

runner = CliRunner()


def network(bootstrap: tuple[str, ...] = ()) -> Network:
    return Network(
        fresh_secret(),
        QUICK,
        Registry(),
        adverts=AdvertOptions(DOMAIN),
        directory=DirectoryOptions(DOMAIN, bootstrap=bootstrap),
        reach=ReachOptions(),
    )


def control(of: Network) -> web.Application:
    async def peer(parameters: Parameters) -> object:
        return await reach_report.peer_report(of, text_of(parameters, "peer"))

    async def ban(parameters: Parameters) -> object:
        return await reach_report.ban(of, text_of(parameters, "peer"), whole_of(parameters, "seconds"))

    return control_app(
        [
            Command("GET", "/net/reach", lambda _: reach_report.reach_report(of)),
            Command("GET", "/net/addrs", lambda _: reach_report.address_report(of)),
            Command("GET", "/peers", lambda _: reach_report.peers_report(of)),
            Command("GET", "/peers/{peer}", peer),
            Command("POST", "/peers/ban", ban),
        ]
    )


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[Network, Network]]:
    """A network behind a control socket, and its peer."""
    other = network()
    await other.start()
    own = network(await other.addresses())
    try:
        await own.start()
        web_runner = web.AppRunner(control(own))
        await web_runner.setup()
        await web.UnixSite(web_runner, str(folder / "s")).start()
        try:
            async with asyncio.timeout(60):
                await own.reach(decided=True)
                yield own, other
        finally:
            await web_runner.cleanup()
    finally:
        await own.stop()
        await other.stop()


async def openlora(folder: Path, *arguments: str) -> Result:
    """Run a command against the socket in `folder`."""
    config = folder / "node.yaml"
    if not config.exists():
        listen = {"listen": ["/ip4/127.0.0.1/tcp/0"]}
        values = {"node": {"data_dir": str(folder)}, "network": listen, "api": {"control_socket": str(folder / "s")}}
        config.write_text(json.dumps(values))
    return await asyncio.to_thread(runner.invoke, app, [*arguments, "--config", str(config)])


async def test_a_running_node_tells_how_it_is_reached_and_by_whom(tmp_path: Path) -> None:
    async with running(tmp_path) as (own, other):
        shown = await openlora(tmp_path, "net", "reach")
        assert shown.exit_code == Exit.OK, shown.output
        assert "direct: peers reach this node" in shown.output
        assert "1 of 1 peers could dial back, fewer than the 5 that make it certain" in shown.output
        assert await other.peer_id() in shown.output
        told = f"{(await own.addresses())[0]}"
        report = json.loads((await openlora(tmp_path, "net", "reach", "--json")).stdout)
        assert report["running"]
        assert (report["reach"], report["fix"]) == ("direct", [])
        assert report["told"] == [told.partition("/p2p/")[0]]
        addresses = json.loads((await openlora(tmp_path, "net", "addrs", "--json")).stdout)
        assert addresses["told"] == [told]
        assert addresses["observed"] == ["127.0.0.1"]
        assert "observed" in (await openlora(tmp_path, "net", "addrs")).output


async def test_peers_are_listed_shown_and_kept_out(tmp_path: Path) -> None:
    async with running(tmp_path) as (own, other):
        peer = await other.peer_id()
        listed = json.loads((await openlora(tmp_path, "peers", "list", "--json")).stdout)
        assert [(entry["peer"], entry["direct"]) for entry in listed["peers"]] == [(peer, True)]
        assert peer in (await openlora(tmp_path, "peers", "list")).output
        assert "/ip4/127.0.0.1/tcp/" in (await openlora(tmp_path, "peers", "show", peer)).output
        banned = await openlora(tmp_path, "peers", "ban", peer, "--for", "1h")
        assert banned.exit_code == Exit.OK, banned.output
        await gone(own)
        assert (await openlora(tmp_path, "peers", "show", peer)).exit_code == Exit.REFUSED
        await openlora(tmp_path, "peers", "ban", peer, "--for", "0s")
        await own.connect(peer, await other.addresses())
        assert (await openlora(tmp_path, "peers", "ban", "nobody")).exit_code == Exit.REFUSED
        assert (await openlora(tmp_path, "peers", "ban", peer, "--for", "soon")).exit_code == Exit.USAGE


async def gone(own: Network) -> None:
    """Wait until nobody is connected."""
    async with asyncio.timeout(20):
        while await own.links():
            await asyncio.sleep(0.01)


async def test_where_no_node_runs_peers_are_asked_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach_probe, "MORE_S", 0.1)
    other = network()
    await other.start()
    try:
        await openlora(tmp_path, "net", "addrs")  # writes the configuration
        values: dict[str, Any] = json.loads((tmp_path / "node.yaml").read_text())
        values["network"]["bootstrap"] = list(await other.addresses())
        (tmp_path / "node.yaml").write_text(json.dumps(values))
        report = json.loads((await openlora(tmp_path, "net", "reach", "--json")).stdout)
        assert not report["running"]
        assert report["dial_backs"]["reached"] == 1
        assert report["dial_backs"]["peers"][0]["peer"] == await other.peer_id()
        for command in (["net", "addrs"], ["peers", "list"]):
            refused = await openlora(tmp_path, *command)
            assert refused.exit_code == Exit.REFUSED
            assert "the node is not running here" in refused.stderr
    finally:
        await other.stop()
