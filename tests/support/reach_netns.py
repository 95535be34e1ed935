"""A small internet of network namespaces: public machines on one bridge, and homes behind nftables masquerade.

Everything lives in namespaces of a unique name that are deleted at the end; nothing outside of them is touched.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

NET = "45.10.0"
"""Looks public to the node, exists only in here."""
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

_numbers = count()


def run(*command: str, given: str | None = None) -> str:
    """A command that must succeed; its output."""
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, timeout=20, env={**os.environ, "PATH": PATH}, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


@dataclass
class Internet:
    """The bridge and what hangs on it."""

    tag: str
    spaces: list[str] = field(default_factory=list)

    @property
    def bridge(self) -> str:
        """The namespace of the bridge."""
        return f"{self.tag}-wan"

    def space(self, name: str) -> str:
        """A new namespace with its loopback up."""
        full = f"{self.tag}-{name}"
        run("ip", "netns", "add", full)
        self.spaces.append(full)
        run("ip", "-n", full, "link", "set", "lo", "up")
        return full

    def public(self, name: str, host: int) -> str:
        """A namespace on the bridge with the public address 45.10.0.<host>."""
        space = self.space(name)
        self._plug(space, "wan", self.bridge, bridged=True)
        run("ip", "-n", space, "addr", "add", f"{NET}.{host}/24", "dev", "wan")
        run("ip", "-n", space, "route", "add", "default", "via", f"{NET}.254")
        return space

    def home(self, name: str, host: int, lan: int, *, forward: int = 0, symmetric: bool = False, shows: int = 0) -> str:
        """A namespace 192.168.<lan>.2 behind a router with public address 45.10.0.<host>.

        `forward`: a TCP port that the router hands on to it; `symmetric`: the router gives every connection another
        port, so that nobody can guess it; `shows`: the port as which it shows 4001 to everybody.
        """
        router = self.public(f"{name}r", host)
        space = self.space(name)
        self._plug(space, "eth", router, inner="lan")
        run("ip", "-n", router, "addr", "add", f"192.168.{lan}.1/24", "dev", "lan")
        run("ip", "-n", space, "addr", "add", f"192.168.{lan}.2/24", "dev", "eth")
        run("ip", "-n", space, "route", "add", "default", "via", f"192.168.{lan}.1")
        run("ip", "netns", "exec", router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        dnat = f"iifname wan tcp dport {forward} dnat to 192.168.{lan}.2" if forward else ""
        masquerade = "masquerade fully-random" if symmetric else "masquerade"
        shown = f"oifname wan ip saddr 192.168.{lan}.2 tcp sport 4001 masquerade to :{shows}" if shows else ""
        rules = f"""
            table ip home {{
              chain inwards {{
                type nat hook prerouting priority dstnat
                {dnat}
              }}
              chain outwards {{
                type nat hook postrouting priority srcnat
                {shown}
                oifname wan {masquerade}
              }}
              chain door {{
                type filter hook input priority filter; policy accept;
                ct state established,related accept
                iifname wan meta l4proto tcp drop
              }}
              chain through {{
                type filter hook forward priority filter; policy drop;
                ct state established,related accept
                iifname lan accept
                ct status dnat accept
              }}
            }}"""
        run("ip", "netns", "exec", router, "nft", "-f", "-", given=rules)
        return space

    def _plug(self, space: str, outer: str, other: str, *, inner: str = "", bridged: bool = False) -> None:
        """A cable between two namespaces."""
        end = inner or f"p{next(_numbers)}"
        run("ip", "-n", space, "link", "add", outer, "type", "veth", "peer", "name", end, "netns", other)
        if bridged:
            run("ip", "-n", other, "link", "set", end, "master", "switch")
        run("ip", "-n", other, "link", "set", end, "up")
        run("ip", "-n", space, "link", "set", outer, "up")


@contextmanager
def internet() -> Iterator[Internet]:
    """A fresh one; all its namespaces are deleted at the end."""
    _sweep()
    made = Internet(f"olora-{os.getpid()}-{next(_numbers)}")
    try:
        made.space("wan")
        run("ip", "-n", made.bridge, "link", "add", "name", "switch", "type", "bridge")
        run("ip", "-n", made.bridge, "link", "set", "switch", "up")
        yield made
    finally:
        for space in reversed(made.spaces):
            _delete(space)


def _sweep() -> None:
    """Delete what a run left behind that was killed: only of these names, only where that process is gone."""
    for line in run("ip", "netns", "list").splitlines():
        match = re.match(r"olora-(\d+)-\d+-", line)
        if match and not Path(f"/proc/{match[1]}").exists():
            _delete(line.split()[0])


def _delete(space: str) -> None:
    subprocess.run(["ip", "netns", "del", space], capture_output=True, env={**os.environ, "PATH": PATH}, check=False)
