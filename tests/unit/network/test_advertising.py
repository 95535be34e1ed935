"""What an advert that breaks the protocol costs whoever sent it, flood or not."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, cast

from openlora_node.network.advertising import Advertising, AdvertOptions
from openlora_node.network.scores import Fault, Scores
from openlora_node.protocol.crypto import Address
from openlora_node.protocol.eip712 import Domain

DOMAIN = Domain(chain_id=1612, verifying_contract=Address(bytes(20)))


def test_each_malformed_advert_is_charged_so_that_a_flood_closes_the_door() -> None:
    scores = Scores()
    host = SimpleNamespace(id="me", charge=lambda peer, fault: scores.charge(peer, fault, 0.0))
    keys = SimpleNamespace(node_of=lambda _: None, key_of=lambda _: None)
    advertising = Advertising(cast(Any, host), AdvertOptions(DOMAIN), cast(Any, keys), lambda: 1_000.0)
    for count in range(5):
        assert scores.points("flooder", 0.0) == count * Fault.MALFORMED.value
        advertising.judge(os.urandom(60), "flooder")
    assert scores.is_denied("flooder", 0.0)


def test_a_future_date_is_no_malformed_advert() -> None:
    assert Fault.FUTURE.name == "FUTURE"  # not an alias of a fault of equal points
