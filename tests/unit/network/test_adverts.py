"""Adverts as values: what is refused, and what it costs whom."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora_node.network.advert_table import AdvertTable, Outcome
from openlora_node.network.adverts import Advert, AdvertRefused, OwnState, interval_s, is_material, peek, read_advert
from openlora_node.network.hardware import Hardware, parse_cards, parse_processor, probe
from openlora_node.network.identity import peer_id_of
from openlora_node.network.scores import Fault
from openlora_node.protocol.errors import ProtocolError
from openlora_node.protocol.structs import MAX_ADVERT_BYTES, NodeState
from support.network_adverts import BASE, DOMAIN, NOW, ONLINE, signed
from support.network_peers import Registry, secret

REGISTRY = Registry()
NODE = REGISTRY.register(secret(1))
OTHER = REGISTRY.register(secret(2))


def refused(data: bytes, now: float = NOW) -> Fault:
    with pytest.raises(AdvertRefused) as error:
        read_advert(data, now, DOMAIN, REGISTRY)
    return error.value.fault


def test_an_advert_names_its_node_and_its_peer() -> None:
    data = signed(secret(1), NODE).pack()
    advert = read_advert(data, NOW, DOMAIN, REGISTRY)
    assert advert.node == NODE
    assert advert.peer == peer_id_of(secret(1))
    assert advert.packed == data
    assert peek(data) == (NODE, 1)
    assert advert.is_live(NOW)
    assert not advert.is_live(NOW + 181)


def test_a_full_advert_fits_512_bytes_by_leaving_out_addresses() -> None:
    addresses = tuple(f"/dns4/a-rather-long-name-{i}.example.org/tcp/4001" for i in range(16))
    advert = signed(secret(1), NODE, base_models=(BASE,) * 3, addresses=addresses, hardware=Hardware("x" * 100, 1, 9))
    assert len(advert.pack()) <= MAX_ADVERT_BYTES
    assert advert.value.addresses == addresses[: len(advert.value.addresses)]
    assert len(advert.value.addresses) >= 1
    assert advert.value.memory_free == 1
    with pytest.raises(ProtocolError):
        signed(secret(1), NODE, base_models=(BASE,) * 10)


def test_forged_adverts() -> None:
    assert refused(signed(secret(2), NODE).pack()) is Fault.FORGED  # another node's key
    assert refused(signed(secret(3), NODE).pack()) is Fault.FORGED  # nobody's key
    data = bytearray(signed(secret(1), NODE).pack())
    data[45] ^= 1
    assert refused(bytes(data)) in (Fault.FORGED, Fault.STALE, Fault.FUTURE, Fault.MALFORMED)


def test_adverts_of_unregistered_nodes_cost_little_since_the_view_may_lag() -> None:
    assert refused(signed(secret(3), b"\x77" * 32).pack()) is Fault.STALE


def test_stale_future_and_oversized_adverts() -> None:
    data = signed(secret(1), NODE).pack()
    assert refused(data, NOW + 180) is Fault.STALE
    assert refused(data, NOW - 61) is Fault.FUTURE
    assert read_advert(data, NOW - 60, DOMAIN, REGISTRY)
    assert refused(data + bytes(600)) is Fault.OVERSIZED
    assert refused(data[:-1]) is Fault.MALFORMED
    assert refused(b"") is Fault.MALFORMED


@given(st.binary(max_size=600))
def test_no_bytes_raise_anything_but_a_refusal(data: bytes) -> None:
    refused(data)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_flipped_byte_gets_through(place: int, flip: int) -> None:
    data = bytearray(signed(secret(1), NODE).pack())
    data[place % len(data)] ^= flip
    refused(bytes(data))


def advert(seq: int, node: int = 1, lifetime: int = 180, **changes: object) -> Advert:
    value = signed(secret(node), REGISTRY.register(secret(node)), seq=seq, lifetime=lifetime, **changes)
    return read_advert(value.pack(), NOW, DOMAIN, REGISTRY)


def test_the_newest_seq_counts_and_replays_show() -> None:
    table = AdvertTable()
    old, new = advert(5), advert(6, queue_depth=3)
    assert table.offer(old, NOW) is Outcome.NEW
    assert table.offer(old, NOW) is Outcome.KNOWN
    assert table.offer(new, NOW) is Outcome.NEW
    assert table.offer(old, NOW) is Outcome.REPLAYED
    assert table.offer(advert(6, queue_depth=4), NOW) is Outcome.REPLAYED
    assert table.get(NODE) == new
    assert len(table) == 1


def test_a_node_that_went_offline_is_not_brought_back_by_an_older_advert() -> None:
    table = AdvertTable()
    table.offer(advert(5), NOW)
    table.offer(advert(6, state=NodeState.OFFLINE), NOW)
    assert table.offer(advert(4), NOW) is Outcome.REPLAYED
    assert table.live(BASE, NOW) == ()


def test_the_table_is_bounded_and_makes_room_of_what_expired() -> None:
    table = AdvertTable(max_nodes=3)
    for node in (1, 2, 3):
        assert table.offer(advert(1, node, lifetime=10 * node), NOW) is Outcome.NEW
    assert table.offer(advert(1, 4), NOW) is Outcome.FULL
    assert table.offer(advert(2, 3), NOW) is Outcome.NEW
    assert table.offer(advert(1, 4), NOW + 15) is Outcome.NEW
    assert len(table) == 3
    assert {a.value.node for a in table.live(BASE, NOW + 15)} == {a.node for a in table}
    table.expire(NOW + 10_000)
    assert len(table) == 0
    assert not table._by_base


def test_an_asker_gets_only_what_it_lacks() -> None:
    table, newcomer = AdvertTable(), AdvertTable()
    for node in range(1, 8):
        table.offer(advert(node, node), NOW)
    for data in table.newer_than(newcomer.known(), NOW, 3)[0]:
        newcomer.offer(read_advert(data, NOW, DOMAIN, REGISTRY), NOW)
    assert len(newcomer) == 3
    adverts, more = table.newer_than(newcomer.known(), NOW, 3)
    assert (len(adverts), more) == (3, True)
    table.offer(advert(99, 1), NOW)
    adverts, more = table.newer_than(newcomer.known(), NOW, 10)
    assert (len(adverts), more) == (5, False)
    assert table.newer_than((), NOW + 1000, 10) == ((), False)


def test_the_interval_keeps_a_topics_load_bounded() -> None:
    assert interval_s(60, 20) == 60
    for nodes in (200, 10_000):
        assert nodes / interval_s(60, nodes) <= 2


def test_only_changes_that_matter_are_told_at_once() -> None:
    assert not is_material(ONLINE, ONLINE)
    assert not is_material(ONLINE, replace(ONLINE, queue_depth=5, tokens_per_second=300))
    assert not is_material(ONLINE, replace(ONLINE, hardware=Hardware("NVIDIA L4", 23_034, 1)))
    assert is_material(ONLINE, replace(ONLINE, queue_depth=20))
    assert is_material(ONLINE, replace(ONLINE, tokens_per_second=100))
    assert is_material(ONLINE, replace(ONLINE, state=NodeState.DRAINING))
    assert is_material(ONLINE, replace(ONLINE, input_rate=1))
    assert is_material(ONLINE, replace(ONLINE, adapters=frozenset({BASE})))
    assert is_material(OwnState(), ONLINE)


def test_cards_are_read_from_nvidia_smi() -> None:
    assert parse_cards("NVIDIA L4, 23034, 22478\n") == Hardware("NVIDIA L4", 23034, 22478)
    two = "NVIDIA A100-SXM4-80GB, 81920, 80000\nNVIDIA A100-SXM4-80GB, 81920, 70000\n"
    assert parse_cards(two) == Hardware("2x NVIDIA A100-SXM4-80GB", 163840, 150000)
    assert parse_cards("A, 10, 5\nB, 20, 6\n") == Hardware("A + B", 30, 11)
    for text in ("", "No devices were found\n", "A, [N/A], 3\n"):
        assert parse_cards(text) is None


def test_a_machine_without_cards_is_its_processor() -> None:
    cpuinfo = "processor\t: 0\nmodel name\t: AMD EPYC 7763\n\nprocessor\t: 1\nmodel name\t: AMD EPYC 7763\n"
    meminfo = "MemTotal:       24576000 kB\nMemFree:         1000000 kB\nMemAvailable:   12288000 kB\n"
    assert parse_processor(cpuinfo, meminfo) == Hardware("2x AMD EPYC 7763", 24000, 12000)
    assert parse_processor("", "") == Hardware("CPU", 0, 0)


def test_the_probe_finds_something_and_survives_a_broken_nvidia_smi(tmp_path) -> None:  # type: ignore[no-untyped-def]
    assert probe().memory_total > 0
    broken = tmp_path / "nvidia-smi"
    for script in ("#!/bin/sh\nexit 9\n", "#!/bin/sh\necho nonsense\n"):
        broken.write_text(script)
        broken.chmod(0o755)
        assert probe(nvidia_smi=str(broken)).memory_total > 0
    broken.write_text("#!/bin/sh\necho 'Card, 100, 50'\n")
    assert probe(nvidia_smi=str(broken)) == Hardware("Card", 100, 50)
    assert probe(tmp_path / "none", str(tmp_path / "none")) == Hardware("CPU", 0, 0)
