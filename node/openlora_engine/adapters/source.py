"""Where an adapter's files lie, what they are (their digest), and how they get into memory. Knows no names."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import Code, EngineError
from .blob import Blob, Storage
from .digest import adapter_hash, digest_of
from .folder import AdapterRoot
from .peft_config import parse_lora_config
from .plan import plan_weights
from .weights import HashingFile, check_weights, read_weights


@dataclass(frozen=True, slots=True)
class Source:
    """An adapter folder: the root that confines it, and the components below."""

    root: AdapterRoot
    parts: tuple[str, ...]

    def stamp(self) -> bytes | None:
        """Changes when the files do; None while one is missing. Two look-ups, no reading."""
        return self.root.stamp(self.parts)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a source was found to be when its files had this stamp. ranks[t] is the rank at target t of the base."""

    digest: str
    stamp: bytes
    ranks: tuple[int, ...]


def identify(source: Source, storage: Storage) -> Identity:
    """Validate an adapter from its configuration to its last weight, and hash it. Takes no memory of its size.

    Raises ADAPTER_NOT_FOUND, ADAPTER_INVALID, ADAPTER_MISMATCH, ADAPTER_TOO_LARGE, RANK_TOO_LARGE.
    """
    with source.root.open(source.parts) as folder:
        data, config_stamp = folder.read_config()
        config = parse_lora_config(data)
        digest = adapter_hash(config.canonical())
        with folder.open_weights(storage.max_file_bytes) as weights:
            file = HashingFile(weights.file, digest)
            plan = plan_weights(file, weights.size, config, storage)
            check_weights(file, plan, storage.dtype)
            weights.check_unchanged()
            # The placement's tuple: thousands of adapters of one shape share it.
            ranks = storage.place(plan.ranks).ranks
            return Identity(digest_of(digest), config_stamp + weights.stamp, ranks)


def load(source: Source, identity: Identity, storage: Storage) -> Blob:
    """Read an adapter that was identified before. Raises as `identify`; ADAPTER_NOT_FOUND if it has become another."""
    blob = _load(source, identity.stamp, storage)
    if blob is None:
        # Touched or replaced since: only the hash tells which.
        again = identify(source, storage)
        blob = _load(source, again.stamp, storage) if again.digest == identity.digest else None
    if blob is None:
        raise EngineError(
            Code.ADAPTER_NOT_FOUND, f"the files of {identity.digest} were replaced; ask for the adapter by its name"
        )
    return blob


def _load(source: Source, stamp: bytes, storage: Storage) -> Blob | None:
    """None if the files are not those that had this stamp."""
    with source.root.open(source.parts) as folder:
        data, config_stamp = folder.read_config()
        with folder.open_weights(storage.max_file_bytes) as weights:
            if config_stamp + weights.stamp != stamp:
                return None
            file = HashingFile(weights.file)
            plan = plan_weights(file, weights.size, parse_lora_config(data), storage)
            blob = storage.allocate(storage.place(plan.ranks))
            read_weights(file, plan, blob)
            weights.check_unchanged()
            return blob
