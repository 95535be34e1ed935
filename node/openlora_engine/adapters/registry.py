"""Names and digests of adapters: which folder a name means, what it was found to be. A few hundred bytes each.

Names are listed cheaply at start; a digest is computed when a name is first asked for, and again when its files have
changed since: a name always means the files as they are now. Thread-safe; reads no file.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import RLock

from ..errors import Code, EngineError
from .digest import is_digest
from .folder import AdapterRoot
from .problems import untraced
from .recipe import MixRecipe
from .source import Identity, Source

MAX_NAMES = 100_000
MAX_RECIPES = 4_096
_UNPRINTABLE = r"\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"
_NAME = re.compile(rf"[^{_UNPRINTABLE}]{{1,256}}")
_FOLDER_NAME = re.compile(rf"[^./{_UNPRINTABLE}][^/{_UNPRINTABLE}]{{0,254}}")


@dataclass(slots=True)
class NamedAdapter:
    """A name: its folder, and what that was when it was looked at last (an identity, or why there is none)."""

    name: str
    source: Source
    created: int
    """Unix seconds: when the name came to be known."""
    identity: Identity | None = None
    error: EngineError | None = None
    error_stamp: bytes | None = None


@dataclass(frozen=True, slots=True)
class KnownAdapter:
    """A digest that some name stands for now, and where to load it from."""

    identity: Identity
    source: Source


class AdapterRegistry:
    """All names, the digests they stand for, and the recipes asked for lately (LRU)."""

    def __init__(self, root: AdapterRoot | None, now: Callable[[], float]) -> None:
        self._root = root
        self._now = now
        self._lock = RLock()
        self._names: dict[str, NamedAdapter] = {}
        self._known: dict[str, dict[str, KnownAdapter]] = {}
        """Digest -> name -> where."""
        self._hidden: set[str] = set()
        """Folders below the root that were unloaded by name."""
        self._recipes: OrderedDict[str, MixRecipe] = OrderedDict()

    def __len__(self) -> int:
        """Names."""
        return len(self._names)

    def scan(self) -> int:
        """List the root's subfolders; gives the number of names. Folders that come later are found when asked for."""
        if self._root is not None:
            for name in self._root.names():
                if name not in self._names and _FOLDER_NAME.fullmatch(name):
                    self._add(name, Source(self._root, (name,)))
        return len(self)

    def find(self, name: str) -> NamedAdapter:
        """What a name means; looks for a folder of that name if it is new. Raises ADAPTER_NOT_FOUND."""
        with self._lock:
            found = self._names.get(name)
            if found is None and self._root is not None and name not in self._hidden and _FOLDER_NAME.fullmatch(name):
                source = Source(self._root, (name,))
                if self._root.holds(source.parts):
                    found = self._add(name, source)
        if found is None:
            raise not_found(name)
        return found

    def put(self, name: str, source: Source, identity: Identity, *, in_place: bool) -> tuple[NamedAdapter, str | None]:
        """Let `name` mean `source`. Gives also the digest that no name stands for any more, if there is one.

        Raises ADAPTER_NAME_TAKEN where the name means another folder, unless `in_place`.
        """
        if not _NAME.fullmatch(name) or is_digest(name):
            raise EngineError(
                Code.BAD_REQUEST, "an adapter's name is 1 to 256 printable characters and no digest", param="lora_name"
            )
        with self._lock:
            named, gone = self._names.get(name), None
            if named is not None and named.source != source:
                if not in_place:
                    raise EngineError(
                        Code.ADAPTER_NAME_TAKEN,
                        f"{name!r} is loaded: unload it first, or set load_inplace to replace it",
                        param="lora_name",
                    )
                gone, named = self.remove(name), None
            named = named or self._add(name, source)
            gone = self.settle(named, identity) or gone
            return named, None if gone == identity.digest else gone

    def settle(self, named: NamedAdapter, identity: Identity) -> str | None:
        """Note what a name's files are. Gives the digest that no name stands for any more, if there is one."""
        with self._lock:
            if self._names.get(named.name) is not named:
                return None  # unloaded meanwhile
            before, named.identity, named.error = named.identity, identity, None
            gone = self._forget(named.name, before) if before and before.digest != identity.digest else None
            self._known.setdefault(identity.digest, {})[named.name] = KnownAdapter(identity, named.source)
            return gone

    def fail(self, named: NamedAdapter, stamp: bytes | None, error: EngineError) -> None:
        """Note why a name's files, while they have this stamp, are no adapter: they are not read again for that."""
        with self._lock:
            named.error, named.error_stamp = untraced(error), stamp

    def remove(self, name: str) -> str | None:
        """Forget a name. Gives the digest that none stands for any more. Raises ADAPTER_NOT_FOUND."""
        with self._lock:
            named = self._names.pop(name, None)
            if named is None:
                raise not_found(name)
            if named.source.root is self._root and named.source.parts == (name,):
                self._hidden.add(name)
            return self._forget(name, named.identity) if named.identity else None

    def known(self, digest: str) -> KnownAdapter | None:
        """Where to load a digest from; None where no name stands for it."""
        with self._lock:
            places = self._known.get(digest)
            return None if places is None else next(iter(places.values()))

    def names(self) -> list[NamedAdapter]:
        """All, in the order of their names."""
        with self._lock:
            return [self._names[name] for name in sorted(self._names)]

    def put_recipe(self, recipe: MixRecipe) -> str:
        """Remember a recipe by its digest, which it gives."""
        digest = recipe.digest
        with self._lock:
            self._recipes[digest] = recipe
            self._recipes.move_to_end(digest)
            if len(self._recipes) > MAX_RECIPES:
                self._recipes.popitem(last=False)
        return digest

    def recipe(self, digest: str) -> MixRecipe | None:
        """The recipe of a mix that was asked for lately."""
        with self._lock:
            return self._recipes.get(digest)

    def _add(self, name: str, source: Source) -> NamedAdapter:
        if len(self._names) >= MAX_NAMES:
            raise EngineError(Code.BAD_REQUEST, f"{MAX_NAMES:,} adapters have names; unload some")
        self._hidden.discard(name)
        named = self._names[name] = NamedAdapter(name, source, int(self._now()))
        return named

    def _forget(self, name: str, identity: Identity) -> str | None:
        places = self._known[identity.digest]
        del places[name]
        if places:
            return None
        del self._known[identity.digest]
        return identity.digest


def not_found(name: str) -> EngineError:
    """The error for a name or digest that means no adapter."""
    return EngineError(Code.ADAPTER_NOT_FOUND, f"no adapter is called {name[:80]!r}: see GET /v1/models", param="model")
