"""What an operator is told of reachability: the state, who could dial back, and the exact fix. JSON values.

The builders take a running `Network`; what they say is decided by pure functions below them.
"""

from __future__ import annotations

import ipaddress
from dataclasses import asdict
from typing import Any

from ..protocol.errors import ErrorCode, OpenLoraError
from ..protocol.ids import format_bytes
from ..protocol.structs import Reach
from .identity import parse_peer_id
from .reach import ReachState
from .reach_addresses import Scope, ip_of, port_of, scope_of
from .reach_links import Link
from .reach_policy import ENOUGH_VOTES
from .service import Network

SHARED_NET = ipaddress.ip_network("100.64.0.0/10")
"""A carrier's NAT: nobody forwards a port of it."""
MAX_BAN_S = 30 * 86_400
BAN_S = 86_400


async def reach_report(network: Network) -> dict[str, Any]:
    """GET /net/reach."""
    return report(await network.reach(), await network.peer_id())


async def address_report(network: Network) -> dict[str, Any]:
    """GET /net/addrs."""
    state, peer = await network.reach(), await network.peer_id()
    listen = await network.addresses()
    return {
        "peer": peer,
        "listen": [address.partition("/p2p/")[0] for address in listen],
        "told": [f"{address}/p2p/{peer}" for address in (state.told if state is not None else ())],
        "observed": list(state.observed) if state is not None else [],
    }


async def peers_report(network: Network) -> dict[str, Any]:
    """GET /peers."""
    return {"peers": [link_value(link) for link in await network.links()]}


async def peer_report(network: Network, peer: str) -> dict[str, Any]:
    """GET /peers/{peer}. Raises NOT_FOUND for a peer that is not connected, BAD_ID."""
    parse_peer_id(peer)
    for link in await network.links():
        if link.peer.id == peer:
            return link_value(link)
    raise OpenLoraError(ErrorCode.NOT_FOUND, "no connection to this peer is open")


async def ban(network: Network, peer: str, seconds: int = BAN_S) -> dict[str, Any]:
    """POST /peers/ban {peer, seconds}: close its connections and keep it out. Raises BAD_ID, MALFORMED."""
    parse_peer_id(peer)
    if not 0 <= seconds <= MAX_BAN_S:
        raise OpenLoraError(ErrorCode.MALFORMED, f"a ban lasts 0 to {MAX_BAN_S} seconds; 0 ends one")
    await network.ban(peer, float(seconds))
    return {"peer": peer, "seconds": seconds}


def report(state: ReachState | None, peer: str) -> dict[str, Any]:
    """The state as JSON values, with what to do about it."""
    if state is None:
        return {"peer": peer, "reach": "unknown", "fix": ["reachability is not looked after in this process"]}
    values = asdict(state)
    verdict, votes = values.pop("verdict"), values.pop("votes")
    return {
        "peer": peer,
        **values,
        "reach": state.reach.name.lower(),
        "dial_backs": {
            "direct": verdict["is_direct"],
            "reached": verdict["reached"],
            "counted": verdict["counted"],
            "wanted": ENOUGH_VOTES,
            "peers": [{**vote, "answer": vote["answer"].value} for vote in votes],
        },
        "fix": list(fixes(state)),
    }


def fixes(state: ReachState) -> tuple[str, ...]:
    """What the operator can do, most useful first; nothing when nothing is wrong."""
    if state.verdict.is_direct is None:
        return _fixes_unknown(state)
    if state.verdict.is_direct:
        if not state.told:
            return ("peers reach this node, yet none told at which address: set network.announce",)
        return ()
    return (*_fixes_closed(state), *_fixes_relay(state))


def _fixes_unknown(state: ReachState) -> tuple[str, ...]:
    if _listens_locally(state):
        return (LOOPBACK_ONLY,)
    announced = {ip_of(address) for address in state.announce}
    elsewhere = next((ip for ip in state.observed if announced and None not in announced and ip not in announced), None)
    if elsewhere is not None:
        named = f"network.announce names {state.announce[0]}, peers see this node at {elsewhere} and dial nothing else"
        return (f"{named}: nobody can say whether it leads here",)
    if state.checked_at:
        return ("the peers asked would not dial back: wait a minute, they limit how often they do",)
    return ("no peer could be asked yet: name a peer in network.bootstrap, or wait until one connects",)


def _fixes_closed(state: ReachState) -> tuple[str, ...]:
    """Nobody dialled back: why, and how to open the way."""
    port = next((port_of(address) for address in state.listen), 0)
    if _listens_locally(state):
        return (LOOPBACK_ONLY,)
    if state.announce:
        named = state.announce[0]
        wrong = (
            f"network.announce names {named} and nobody reaches this node there: correct it, or let TCP port "
            f"{port_of(named)} of that address through to TCP port {port} of this machine"
        )
        return (wrong,)
    outside = next((ip for ip in state.observed if scope_of(ip) is Scope.GLOBAL), None) or next(
        iter(state.observed), None
    )
    inside = next((ip for ip in state.interfaces if ":" not in ip), "") or next(iter(state.interfaces), "")
    if outside is None or outside in state.interfaces:
        return (
            f"open TCP port {port} in this machine's firewall: nft add rule inet filter input tcp dport {port} accept",
            f"where the machine is rented, open TCP port {port} in the provider's firewall (security group) as well",
        )
    if ":" not in outside and ipaddress.ip_address(outside) in SHARED_NET:
        return (f"{outside} is a carrier's shared address: no port of it can be opened. Use a relay, or another line",)
    inside = inside or "this machine"
    return (
        f"forward TCP port {port} of the router at {outside} to {inside}:{port}",
        f"on a Linux router: nft add rule ip nat prerouting iifname <wan> tcp dport {port} dnat to {inside}:{port}",
        f"where another outer port is forwarded, say which: network.announce: [/ip4/{outside}/tcp/<port>]",
    )


def _fixes_relay(state: ReachState) -> tuple[str, ...]:
    if state.reach is Reach.RELAYED:
        return ("until then others reach this node through relays, more slowly: nothing else is broken",)
    if state.relay == "off":
        return ("set network.relay: use, so that others reach this node through a relay until then",)
    return ("until then it needs a relay and has no slot at one yet: while the node runs, it keeps looking",)


LOOPBACK_ONLY = "network.listen names only this machine itself: listen on /ip4/0.0.0.0/tcp/4001"


def _listens_locally(state: ReachState) -> bool:
    ips = [ip_of(address) for address in state.listen]
    return all(ip is not None and scope_of(ip) is Scope.LOOPBACK for ip in ips)


def link_value(link: Link) -> dict[str, Any]:
    """One connected peer as a JSON value."""
    node = link.peer.node
    return {
        "peer": link.peer.id,
        "node": format_bytes(node) if node is not None else None,
        "direct": link.direct,
        "points": round(link.points, 1),
        "connections": [asdict(line) for line in link.lines],
    }
