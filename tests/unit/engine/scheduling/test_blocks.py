"""KV blocks: what is shared, what is kept, what goes first."""

from __future__ import annotations

import itertools

from openlora_engine.scheduling import BlockManager, PrefixHasher, Sequence

_names = itertools.count()


def manager(num_blocks: int = 8, *, caching: bool = True) -> BlockManager:
    return BlockManager(num_blocks, PrefixHasher("model", 4), enable_prefix_caching=caching)


def sequence(tokens: list[int], adapter: str | None = None, salt: str = "") -> Sequence:
    name = f"r{next(_names)}"
    return Sequence(f"{name}/0", name, list(tokens), len(tokens), 8, adapter=adapter, cache_salt=salt)


def compute(blocks: BlockManager, seq: Sequence) -> Sequence:
    """Allocate and compute all tokens."""
    blocks.allocate(seq, blocks.match_prefix(seq))
    blocks.commit(seq, seq.num_uncomputed_tokens)
    return seq


def test_full_blocks_are_shared_while_their_owner_runs() -> None:
    blocks = manager()
    first = compute(blocks, sequence([1, 2, 3, 4, 5, 6, 7, 8, 9]))
    second = sequence([1, 2, 3, 4, 5, 6, 7, 8, 10, 11])
    matched = blocks.match_prefix(second)
    assert matched == first.block_table[:2]
    assert blocks.num_blocks_to_take(second, matched) == 1
    blocks.allocate(second, matched)
    assert second.num_computed_tokens == 8
    assert blocks.num_free_blocks == 4
    assert (blocks.num_queried_tokens, blocks.num_hit_tokens) == (19, 8)
    blocks.check_integrity([first, second])
    blocks.deallocate(first)
    blocks.check_integrity([second])
    assert blocks.num_free_blocks == 5


def test_at_least_one_token_is_computed() -> None:
    blocks = manager()
    first = compute(blocks, sequence([1, 2, 3, 4, 5, 6, 7, 8]))
    assert blocks.match_prefix(sequence([1, 2, 3, 4, 5, 6, 7, 8])) == first.block_table[:1]
    assert blocks.match_prefix(sequence([1, 2, 3, 4])) == []
    assert blocks.match_prefix(sequence([1, 2, 3, 4, 5])) == first.block_table[:1]


def test_blocks_not_computed_yet_are_not_shared() -> None:
    blocks = manager()
    first = sequence([1, 2, 3, 4, 5, 6, 7, 8, 9])
    blocks.allocate(first, [])
    blocks.commit(first, 7)
    assert blocks.match_prefix(sequence(first.token_ids)) == first.block_table[:1]


def test_adapters_and_salts_do_not_share() -> None:
    blocks = manager()
    compute(blocks, sequence([1, 2, 3, 4, 5], adapter="a", salt="s"))
    for adapter, salt in ((None, "s"), ("b", "s"), ("a", ""), ("a", "t")):
        assert not blocks.match_prefix(sequence([1, 2, 3, 4, 5], adapter, salt))
    assert blocks.match_prefix(sequence([1, 2, 3, 4, 5], "a", "s"))


def test_freed_prefixes_stay_until_memory_is_needed_and_the_oldest_ends_go_first() -> None:
    blocks = manager(6)
    old = compute(blocks, sequence([1, 2, 3, 4, 5, 6, 7, 8, 9]))
    new = compute(blocks, sequence([21, 22, 23, 24, 25, 26, 27, 28, 29]))
    old_tokens, new_tokens = old.token_ids, new.token_ids
    blocks.deallocate(old)
    blocks.deallocate(new)
    assert blocks.num_free_blocks == 6
    # Two blocks were never full; the third block taken costs the end of the older prefix.
    taker = compute(blocks, sequence(list(range(40, 52))))
    assert len(blocks.match_prefix(sequence(old_tokens))) == 1
    assert len(blocks.match_prefix(sequence(new_tokens))) == 2
    blocks.check_integrity([taker])
    compute(blocks, sequence([60]))
    assert len(blocks.match_prefix(sequence(old_tokens))) == 0
    assert len(blocks.match_prefix(sequence(new_tokens))) == 2


def test_a_hit_makes_a_prefix_young_again() -> None:
    blocks = manager(4)
    first = compute(blocks, sequence([1, 2, 3, 4]))
    blocks.deallocate(first)
    blocks.deallocate(compute(blocks, sequence([5, 6, 7, 8])))
    blocks.deallocate(compute(blocks, sequence([1, 2, 3, 4, 9])))
    blocks.deallocate(compute(blocks, sequence(list(range(40, 52)))))
    assert len(blocks.match_prefix(sequence([1, 2, 3, 4, 9]))) == 1
    assert len(blocks.match_prefix(sequence([5, 6, 7, 8, 9]))) == 0


def test_generated_tokens_are_cached_too() -> None:
    blocks = manager()
    seq = compute(blocks, sequence([1, 2, 3]))
    for token in (4, 5):
        seq.token_ids.append(token)
        if blocks.needs_block(seq):
            blocks.append(seq)
        blocks.commit(seq, 1)
    assert blocks.match_prefix(sequence([1, 2, 3, 4, 9])) == seq.block_table[:1]


def test_two_that_compute_the_same_at_once_keep_their_own_blocks() -> None:
    blocks = manager()
    first, second = sequence([1, 2, 3, 4, 5]), sequence([1, 2, 3, 4, 5])
    for seq in (first, second):
        blocks.allocate(seq, blocks.match_prefix(seq))
    for seq in (first, second):
        blocks.commit(seq, 5)
    assert not set(first.block_table) & set(second.block_table)
    blocks.check_integrity([first, second])
    blocks.deallocate(second)
    blocks.check_integrity([first])
    assert blocks.match_prefix(sequence([1, 2, 3, 4, 5])) == first.block_table[:1]


def test_without_a_cache_nothing_is_named_or_found() -> None:
    blocks = manager(caching=False)
    first = compute(blocks, sequence([1, 2, 3, 4, 5]))
    assert blocks.match_prefix(sequence([1, 2, 3, 4, 5])) == []
    assert blocks.names_to_compute(first) == []
    assert not first.block_hashes
    blocks.deallocate(first)
    blocks.check_integrity([])
