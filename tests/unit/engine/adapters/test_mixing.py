"""Mixes equal PEFT's `add_weighted_adapter`, method by method, on what is stored; recipes have one form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.lora import LoraModel
from torch import Tensor
from transformers import PreTrainedModel

from openlora_engine.adapters.blob import Blob, Storage
from openlora_engine.adapters.folder import AdapterRoot
from openlora_engine.adapters.mixing import build_mix
from openlora_engine.adapters.recipe import DROPPING, AdapterUse, MixMethod, MixRecipe
from openlora_engine.adapters.source import Source, identify, load
from openlora_engine.errors import Code, EngineError
from support.engine_adapters import (
    kernel_deltas,
    llama_targets,
    peft_adapter,
    peft_deltas,
    peft_model_of,
    plain_adapter,
    targets_of,
    tiny_model,
)

EQUAL_RANKS = [MixMethod.LINEAR, MixMethod.TIES, MixMethod.DARE_LINEAR, MixMethod.DARE_TIES, MixMethod.MAGNITUDE_PRUNE]
STORAGE = Storage(targets_of(tiny_model()), torch.float32)

FOLDERS: Mapping[str, dict[str, Any]] = {
    "a": {"seed": 1},
    "b": {"seed": 2, "lora_alpha": 3},
    "c": {"seed": 3, "target_modules": ["q_proj", "up_proj"]},
    "wide": {"seed": 4, "r": 7, "rank_pattern": {"down_proj": 2}},
    "rs": {"seed": 5, "use_rslora": True},
}


class Members:
    """Adapters saved by PEFT, as PEFT's model and as our blobs."""

    def __init__(self, folder: Path) -> None:
        model: PreTrainedModel = tiny_model()
        folders = {name: peft_adapter(folder / name, model, **settings) for name, settings in FOLDERS.items()}
        self._peft = peft_model_of(model, folders)
        self.blobs: dict[str, Blob] = {}
        self.digests: dict[str, str] = {}
        for name, path in folders.items():
            source = Source(AdapterRoot(path), ())
            identity = identify(source, STORAGE)
            self.digests[name], self.blobs[name] = identity.digest, load(source, identity, STORAGE)

    def recipe(self, uses: Mapping[str, float], method: MixMethod, **settings: Any) -> tuple[MixRecipe, list[str]]:
        """The recipe, and the names in its order."""
        recipe = MixRecipe.of(
            [AdapterUse(self.digests[name], weight) for name, weight in uses.items()], method, **settings
        )
        by_digest = {digest: name for name, digest in self.digests.items()}
        return recipe, [by_digest[use.digest] for use in recipe.uses]

    def ours(self, recipe: MixRecipe, names: Sequence[str], storage: Storage = STORAGE) -> dict[str, Tensor]:
        return kernel_deltas(build_mix(recipe, [self.blobs[name] for name in names], storage), storage)

    def pefts(self, recipe: MixRecipe, names: Sequence[str]) -> dict[str, Tensor]:
        """PEFT's result; DARE draws from torch's global generator, seeded after the new adapter was initialised."""
        inject: Callable[..., None] = LoraModel.inject_adapter

        def inject_and_seed(tuner: LoraModel, *args: Any, **kwargs: Any) -> None:
            inject(tuner, *args, **kwargs)
            torch.manual_seed(recipe.mask_seed)

        weights = {use.digest: use.weight for use in recipe.uses}
        with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
            patch.setattr(LoraModel, "inject_adapter", inject_and_seed)
            self._peft.add_weighted_adapter(
                list(names),
                [weights[self.digests[name]] for name in names],
                "mix",
                combination_type=recipe.method.value,
                density=recipe.density,
                majority_sign_method=recipe.majority_sign_method or "total",
                svd_rank=recipe.svd_rank,
            )
        try:
            return peft_deltas(self._peft, "mix")
        finally:
            self._peft.delete_adapter("mix")


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Members:
    return Members(tmp_path_factory.mktemp("members"))


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for path, delta in expected.items():
        torch.testing.assert_close(found[path], delta, rtol=0, atol=tolerance * max(1e-3, float(delta.abs().max())))


@pytest.mark.filterwarnings("ignore:The density 1")
@pytest.mark.parametrize("method", [*EQUAL_RANKS, MixMethod.CAT, MixMethod.SVD])
@pytest.mark.parametrize(
    "uses",
    [{"a": 0.7, "b": 0.3}, {"a": 1.5, "b": -0.8}, {"a": -1.0, "b": -0.5, "c": 0.4}],
    ids=["positive", "one negative", "three, one with fewer targets"],
)
def test_a_mix_equals_pefts(members: Members, method: MixMethod, uses: Mapping[str, float]) -> None:
    recipe, names = members.recipe(uses, method)
    assert_same(members.ours(recipe, names), members.pefts(recipe, names), 1e-4 if method is MixMethod.SVD else 1e-6)


@pytest.mark.filterwarnings("ignore:The density 1")
@pytest.mark.parametrize("method", sorted(DROPPING))
@pytest.mark.parametrize("density", [0.1, 0.9, 1.0])
def test_density_and_election_are_pefts(members: Members, method: MixMethod, density: float) -> None:
    for majority in ("total", "frequency"):
        recipe, names = members.recipe(
            {"a": 0.6, "b": 0.5, "c": -1.0}, method, density=density, majority_sign_method=majority
        )
        assert_same(members.ours(recipe, names), members.pefts(recipe, names), 1e-6)


@pytest.mark.parametrize("method", [MixMethod.CAT, MixMethod.SVD])
def test_adapters_of_different_ranks_mix_as_pefts_do(members: Members, method: MixMethod) -> None:
    recipe, names = members.recipe({"a": 0.5, "wide": -1.25, "c": 2.0}, method)
    assert_same(members.ours(recipe, names), members.pefts(recipe, names), 1e-4)


@pytest.mark.parametrize("rank", [1, 3, 6, 40])
def test_a_given_svd_rank_is_pefts(members: Members, rank: int) -> None:
    recipe, names = members.recipe({"a": 1.0, "b": 1.0}, MixMethod.SVD, svd_rank=rank)
    if rank == 40:  # beyond the smallest linear's: PEFT cannot, and the sum is exact from 8 on
        exact, _ = members.recipe({"a": 1.0, "b": 1.0}, MixMethod.CAT)
        assert_same(members.ours(recipe, names), members.ours(exact, names), 1e-4)
    else:
        assert_same(members.ours(recipe, names), members.pefts(recipe, names), 1e-4)


def test_cat_is_the_exact_sum(members: Members) -> None:
    """Of all five, rank-stabilised included: PEFT scales a mix whose first member is one by sqrt(rank) once more."""
    uses = {"a": 0.25, "b": -3.0, "c": 1e-3, "rs": 0.5}
    recipe, names = members.recipe(uses, MixMethod.CAT)
    single = {name: kernel_deltas(members.blobs[name], STORAGE) for name in uses}
    expected: dict[str, Tensor] = {}
    for path in single["a"]:
        expected[path] = sum(
            (uses[name] * single[name][path] for name in uses if path in single[name]), torch.zeros(())
        )
    assert_same(members.ours(recipe, names), expected, 1e-6)


def test_cat_moves_stored_weights_untouched(members: Members, tmp_path: Path) -> None:
    """In halves too, a mix of one adapter with itself halved and doubled is that adapter, bit for bit."""
    storage = Storage(llama_targets(), torch.float16)
    blobs = []
    for seed in (1, 2):
        source = Source(AdapterRoot(plain_adapter(tmp_path / str(seed), storage.targets, seed=seed)), ())
        blobs.append(load(source, identify(source, storage), storage))
    recipe = MixRecipe.of([AdapterUse("sha256:" + "0" * 64, 0.3), AdapterUse("sha256:" + "1" * 64, -7.0)])
    mix = build_mix(recipe, blobs, storage)
    for t in range(len(storage.targets)):
        for letter in ("a", "b"):
            parts = [getattr(blob, letter)(storage.targets, t) for blob in blobs]
            assert torch.equal(getattr(mix, letter)(storage.targets, t), torch.cat(parts))
    scales = torch.from_numpy(mix.rank_scales())
    torch.testing.assert_close(scales, torch.tensor(([0.3 * 2.0] * 4 + [-7.0 * 2.0] * 4) * len(storage.targets)))


@pytest.mark.parametrize("method", EQUAL_RANKS)
def test_unequal_ranks_are_refused_where_peft_refuses_them(members: Members, method: MixMethod) -> None:
    recipe, names = members.recipe({"a": 1.0, "wide": 1.0}, method)
    with pytest.raises(EngineError, match="use cat or svd") as refused:
        members.ours(recipe, names)
    assert refused.value.code is Code.MIX_INVALID
    with pytest.raises(ValueError, match="same r value"):
        members.pefts(recipe, names)


@pytest.mark.parametrize("method", [MixMethod.DARE_LINEAR, MixMethod.DARE_TIES])
def test_a_seed_decides_the_masks_and_the_recipe_gives_one(members: Members, method: MixMethod) -> None:
    def mixed(seed: int | None) -> dict[str, Tensor]:
        return members.ours(*members.recipe({"a": 1.0, "b": 1.0}, method, seed=seed))

    assert_same(mixed(None), mixed(None), 0)
    assert_same(mixed(7), mixed(7), 0)
    path = next(iter(mixed(7)))
    assert not torch.equal(mixed(7)[path], mixed(8)[path])
    assert not torch.equal(mixed(7)[path], mixed(None)[path])


def test_a_mix_beyond_the_storage_dtype_is_refused(members: Members) -> None:
    storage = Storage(STORAGE.targets, torch.float16)
    halves = []
    for name in ("a", "b"):
        blob = storage.allocate(storage.place(members.blobs[name].placement.ranks))
        for t in range(len(storage.targets)):
            blob.a(storage.targets, t).copy_(members.blobs[name].a(STORAGE.targets, t) * 1e4)
            blob.b(storage.targets, t).copy_(members.blobs[name].b(STORAGE.targets, t) * 1e4)
        blob.write_scales([1e6] * len(storage.targets))
        halves.append(blob)
    recipe, _ = members.recipe({"a": 1e4, "b": 1e4}, MixMethod.LINEAR)
    with pytest.raises(EngineError, match="storage dtype"):
        build_mix(recipe, halves, storage)


# Recipes.


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


@given(
    weights=st.dictionaries(
        st.integers(0, 99), st.floats(-9, 9).filter(lambda w: abs(w) > 1e-9), min_size=2, max_size=4
    ),
    method=st.sampled_from(list(MixMethod)),
    shuffled=st.randoms(),
)
def test_the_order_of_uses_and_settings_of_other_methods_do_not_matter(
    weights: dict[int, float], method: MixMethod, shuffled: Any
) -> None:
    uses = [AdapterUse(digest(number), weight) for number, weight in weights.items()]
    first = MixRecipe.of(uses, method)
    shuffled.shuffle(uses)
    settings: dict[str, Any] = {}
    if method is not MixMethod.SVD:
        settings["svd_rank"] = 3
    if method not in DROPPING:
        settings |= {"density": 0.25, "seed": 9}
    again = MixRecipe.of(uses, method.value, **settings)
    assert first == again
    assert first.digest == again.digest


def test_whatever_changes_the_result_changes_the_digest() -> None:
    two = [AdapterUse(digest(1), 1.0), AdapterUse(digest(2), 1.0)]
    recipes = [
        MixRecipe.of(two),
        MixRecipe.of([two[0], AdapterUse(digest(2), math.nextafter(1.0, 2.0))]),
        MixRecipe.of([two[0], AdapterUse(digest(3), 1.0)]),
        *(MixRecipe.of(two, method) for method in MixMethod if method is not MixMethod.CAT),
        MixRecipe.of(two, "ties", density=0.25),
        MixRecipe.of(two, "ties", majority_sign_method="frequency"),
        MixRecipe.of(two, "svd", svd_rank=2),
        MixRecipe.of(two, "dare_ties", seed=2),
        MixRecipe.of(two[:1]),
    ]
    assert len({recipe.digest for recipe in recipes}) == len(recipes)


def test_one_adapter_is_never_mixed() -> None:
    assert MixRecipe.of([AdapterUse(digest(1), 0.5)], "ties").method is MixMethod.CAT


A, B = AdapterUse(digest(1), 1.0), AdapterUse(digest(2), 0.5)


@pytest.mark.parametrize(
    ("uses", "settings", "says"),
    [
        ([], {}, "at least one"),
        ([A, A], {}, "named twice"),
        ([AdapterUse(digest(n), 1.0) for n in range(5)], {}, "--max-mix-adapters"),
        ([A, AdapterUse(digest(2), 0.0)], {}, "zero"),
        ([A, AdapterUse(digest(2), -0.0)], {}, "zero"),
        ([A, AdapterUse(digest(2), math.nan)], {}, "no number"),
        ([A, AdapterUse(digest(2), -math.inf)], {}, "no number"),
        ([A, AdapterUse(digest(2), 1e9)], {}, "too large"),
        ([A, B], {"method": "slerp"}, "not known"),
        ([A, B], {"method": "ties", "density": 0.0}, "density"),
        ([A, B], {"method": "ties", "density": 1.5}, "density"),
        ([A, B], {"method": "ties", "density": math.nan}, "density"),
        ([A, B], {"method": "ties", "majority_sign_method": "loudest"}, "majority_sign_method"),
        ([A, B], {"method": "svd", "svd_rank": 0}, "svd_rank"),
        ([A, B], {"method": "dare_ties", "seed": -1}, "seed"),
        ([A, B], {"method": "dare_ties", "seed": 1 << 64}, "seed"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(uses: list[AdapterUse], settings: dict[str, Any], says: str) -> None:
    with pytest.raises(EngineError, match=says) as refused:
        MixRecipe.of(uses, **settings)
    assert refused.value.code is Code.MIX_INVALID
