"""The committed tables."""

from __future__ import annotations

import hashlib
from importlib import resources

import numpy as np
import pytest

from openlora_node.attribution.surprisal import surprisal_table
from openlora_node.protocol.errors import OpenLoraError

SMOLLM2 = bytes.fromhex("7d27c493c729a66ecefc837280b05d948b1ed50d130eebdbf911b1b36cf38ed7")


def test_the_default_models_tokenizer_has_a_table_that_sums_to_about_one() -> None:
    table = surprisal_table(SMOLLM2)
    assert len(table) == 49_152
    assert table.min() > 0
    assert 0.999 < float(np.exp2(-table / 1000).sum()) < 1.001


def test_the_table_is_the_one_that_indexes_name() -> None:
    file = resources.files("openlora_node.attribution") / "tables" / f"{SMOLLM2.hex()}.i4"
    assert (
        hashlib.sha256(file.read_bytes()).hexdigest()
        == "1053fe321945b39a2f78e61cc69a5aab78fe0918cbadad51b693d1e6552bc32e"
    )


def test_an_unknown_tokenizer_is_named() -> None:
    with pytest.raises(OpenLoraError, match="unigrams"):
        surprisal_table(bytes(32))
