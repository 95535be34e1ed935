"""Reachability through real NATs: machines on a bridge, homes behind nftables masquerade, all in namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from support.reach_netns import NET, PATH, Internet, internet
from support.reach_worker import Remote, worker

RELAYS = ("relay1", "relay2", "relay3")
HELPERS = ("helper1", "helper2")
OPENLORA = Path(sys.executable).with_name("openlora")
PROCESSES = ("anna", "bert")
"""Homes with a process of their own; the other hosts share one, each with a thread in its namespace."""
STRANGER = "stranger"
"""Public, and known to no home before it calls one."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@dataclass
class World:
    """An internet with six public hosts and five homes, each in a namespace."""

    net: Internet
    remotes: dict[str, Remote] = field(default_factory=dict)
    peers: dict[str, str] = field(default_factory=dict)
    bootstrap: list[str] = field(default_factory=list)

    def call(self, name: str, do: str, **arguments: Any) -> Any:
        """Ask the process of a host."""
        return self.remotes[name].call(do, name=name, **arguments)

    def start(self, name: str, **arguments: Any) -> None:
        """Start a host."""
        self.peers[name] = self.call(name, "start", **arguments)["peer"]

    def relayed(self, name: str) -> dict[str, Any]:
        """A host's state once it has its two relays."""
        return dict(self.call(name, "until", reach="relayed", relays=2))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with ExitStack() as stack:
        world = World(stack.enter_context(internet()))
        net = world.net
        public = {name: 11 + index for index, name in enumerate((*RELAYS, *HELPERS, STRANGER))}
        spaces = {name: net.public(name, host) for name, host in public.items()}
        homes = {
            "anna": net.home("anna", 31, 1),
            "bert": net.home("bert", 32, 2),
            "carl": net.home("carl", 33, 3, forward=4001),
            "dora": net.home("dora", 34, 4, symmetric=True),
            "fred": net.home("fred", 36, 6, shows=5001),
        }
        shared = stack.enter_context(worker())
        world.remotes = {
            **dict.fromkeys([*public, *homes], shared),
            **{name: stack.enter_context(worker(homes[name])) for name in PROCESSES},
        }
        for name, host in public.items():
            relay = "serve" if name in RELAYS else "use"
            world.start(name, space=spaces[name], relay=relay, bootstrap=list(world.bootstrap))
            if name != STRANGER:
                world.bootstrap.append(f"/ip4/{NET}.{host}/tcp/4001/p2p/{world.peers[name]}")
        for name in RELAYS:
            world.call(name, "until", reach="direct")
        for name, space in homes.items():
            world.start(name, space="" if name in PROCESSES else space, bootstrap=world.bootstrap)
        yield world


def test_a_public_machine_and_one_with_a_forwarded_port_are_direct(world: World) -> None:
    public = world.call("helper1", "until", reach="direct")
    forwarded = world.call("carl", "until", reach="direct")
    print(f"direct {forwarded['known_after']} s after its start, behind a forwarded port")
    assert public["told"] == [f"/ip4/{NET}.14/tcp/4001"]
    assert forwarded["told"] == [f"/ip4/{NET}.33/tcp/4001"]
    assert forwarded["relays"] == []
    assert forwarded["votes"][0]["observed"] == f"{NET}.33"
    assert world.call("carl", "serving")
    world.call(STRANGER, "connect", peer=world.peers["carl"], addresses=forwarded["told"])
    assert world.call(STRANGER, "way", peer=world.peers["carl"])["direct"]


def test_a_home_is_relayed_holds_no_part_of_the_directory_and_says_where_it_is(world: World) -> None:
    state = world.relayed("anna")
    print(f"relayed {state['known_after']} s after its start")
    assert state["verdict"]["reached"] == 0
    assert state["observed"] == [f"{NET}.31"]
    assert f"/ip4/{NET}.31/tcp/4001" in state["claimed"]
    assert len(state["told"]) == 2
    for address, relay in zip(state["told"], state["relays"], strict=True):
        assert address.endswith(f"/p2p/{relay}/p2p-circuit")
    assert not world.call("anna", "serving")


def test_homes_whose_nat_hides_the_port_talk_through_the_relay(world: World) -> None:
    bert = world.relayed("bert")
    way = world.call("dora", "connect", peer=world.peers["bert"], addresses=bert["told"])
    assert not way["direct"]
    assert way["relayed"] == 1
    took = world.call("dora", "ask", peer=world.peers["bert"], times=50)["ms"]
    print(f"relayed: connected in {way['seconds']} s, round trip p50 {took[25]} ms, worst {took[-1]} ms")
    assert not world.call("dora", "way", peer=world.peers["bert"])["direct"]


def test_a_public_caller_is_called_back(world: World) -> None:
    bert = world.relayed("bert")
    world.call(STRANGER, "until", reach="direct")
    world.call(STRANGER, "connect", peer=world.peers["bert"], addresses=bert["told"])
    way = world.call(STRANGER, "until_direct", peer=world.peers["bert"])
    assert way["ip"] == f"{NET}.32"
    assert len(world.call(STRANGER, "ask", peer=world.peers["bert"])["ms"]) == 1


def test_two_homes_punch_through_both_nats(world: World) -> None:
    bert = world.relayed("bert")
    world.relayed("anna")
    found = world.call("anna", "connect", peer=world.peers["bert"], addresses=bert["told"])
    way = world.call("anna", "until_direct", peer=world.peers["bert"])
    assert way["ip"] == f"{NET}.32"
    took = world.call("anna", "ask", peer=world.peers["bert"], times=50)["ms"]
    print(f"punched: connected in {found['seconds']} s, round trip p50 {took[25]} ms, worst {took[-1]} ms")
    assert world.call("bert", "state")["punched"] >= 1


def test_a_port_that_the_nat_changes_is_learnt_from_the_relay(world: World) -> None:
    fred = world.relayed("fred")
    world.relayed("anna")
    world.call("anna", "connect", peer=world.peers["fred"], addresses=fred["told"])
    way = world.call("anna", "until_direct", peer=world.peers["fred"])
    assert way["ip"] == f"{NET}.36"
    assert len(world.call("fred", "ask", peer=world.peers["anna"])["ms"]) == 1


def test_a_dead_relay_is_replaced(world: World) -> None:
    held = world.relayed("bert")["relays"]
    lost = next(name for name in RELAYS if world.peers[name] == held[0])
    spare = next(name for name in RELAYS if world.peers[name] not in held)
    world.call(lost, "stop")
    try:
        state = world.call("bert", "until", holds=world.peers[spare], relays=2)
        print(f"another relay after {state['seconds']} s")
        assert held[0] not in state["relays"]
        way = world.call(
            "dora", "connect", peer=world.peers["bert"], addresses=[a for a in state["told"] if world.peers[spare] in a]
        )
        assert way["direct"] or way["relayed"]
    finally:  # the other tests need three
        space = f"{world.net.tag}-{lost}"
        world.start(lost, space=space, relay="serve", bootstrap=[a for a in world.bootstrap if held[0] not in a])
        address = f"/ip4/{NET}.{11 + RELAYS.index(lost)}/tcp/4001/p2p/{world.peers[lost]}"
        world.bootstrap[RELAYS.index(lost)] = address


def test_net_reach_names_the_port_to_forward(world: World, tmp_path: Path) -> None:
    home = world.net.home("emma", 35, 5)
    config = tmp_path / "node.yaml"
    config.write_text(json.dumps({"node": {"data_dir": str(tmp_path)}, "network": {"bootstrap": world.bootstrap}}))
    done = subprocess.run(
        ["ip", "netns", "exec", home, str(OPENLORA), "net", "reach", "--json", "--wait", "75"],
        env={**os.environ, "PATH": PATH, "OPENLORA_CONFIG": str(config)},
        capture_output=True,
        text=True,
        timeout=140,
        check=False,
    )
    report = json.loads(done.stdout)
    assert done.returncode == 6, done.stderr
    assert report["reach"] == "unknown"
    assert report["dial_backs"]["counted"] >= 1
    assert report["dial_backs"]["reached"] == 0
    assert report["fix"][0] == f"forward TCP port 4001 of the router at {NET}.35 to 192.168.5.2:4001"
