"""What a `model` field and an `adapters` list mean: one base and up to four adapters with weights, by id.

`base`, `base+adapter`, `adapter` (its base is known by the names file or on chain), each part by name or artifact id;
`@sha256:…` behind an adapter pins its content: the digest decides, the name is a label. Pure.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from ..openai import BodyError
from ..protocol.errors import ErrorCode, ProtocolError
from ..protocol.ids import parse_artifact_id
from ..protocol.pipeline import MAX_ADAPTERS, WEIGHT_ONE, WEIGHT_QUANTUM, MixMethod
from .names import Names

MAX_TOLD = 12
"""Names that an error tells."""


@dataclass(frozen=True)
class Part:
    """An adapter and its weight in ten-thousandths."""

    id: bytes
    weight: int = WEIGHT_ONE


@dataclass(frozen=True)
class Wanted:
    """What a request is to run on. `base` is None where only the chain can say: then there is exactly one adapter."""

    base: bytes | None
    adapters: tuple[Part, ...] = ()
    method: MixMethod = MixMethod.CAT


def wanted(model: str | None, adapters: Sequence[tuple[str, float | str]], method: str | None, names: Names) -> Wanted:
    """What these fields of a body mean.

    Raises BodyError MODEL_NOT_FOUND or ADAPTER_NOT_FOUND telling what exists, BAD_PIPELINE for weights between the
    steps, MALFORMED where `model` and `adapters` contradict each other.
    """
    if not model:
        raise BodyError(ErrorCode.MODEL_NOT_FOUND, f"name a model: {known(names)}", "model")
    base, named = _split(model, names)
    parts = [Part(_adapter(name, names), _weight(weight)) for name, weight in adapters]
    if named is not None:
        if parts:
            raise BodyError(
                ErrorCode.MALFORMED, "model names an adapter and so does adapters: name them in one place", "adapters"
            )
        parts = [Part(named)]
    ids = [part.id for part in parts]
    if len(set(ids)) != len(ids):
        raise BodyError(ErrorCode.BAD_PIPELINE, "adapters names one adapter twice: add its weights up", "adapters")
    if len(parts) > MAX_ADAPTERS:
        raise BodyError(ErrorCode.BAD_PIPELINE, f"a pipeline mixes at most {MAX_ADAPTERS} adapters", "adapters")
    for part in parts:
        entry = names.adapter_of(part.id)
        if entry is not None and base is not None and entry.base != base:
            raise BodyError(
                ErrorCode.BAD_PIPELINE, f"the adapter {entry.name} belongs to another base than the one named", "model"
            )
    chosen = MixMethod[method.upper()] if method and len(parts) > 1 else MixMethod.CAT
    return Wanted(base, tuple(parts), chosen)


def known(names: Names) -> str:
    """The names that exist, for an error's message."""
    told = [*names.bases, *(f"{names.name_of(entry.base)}+{name}" for name, entry in names.adapters.items())]
    if not told:
        return "no names are set, so write sha256:<id of the base> or <base>+<adapter>"
    more = f" and {len(told) - MAX_TOLD} more" if len(told) > MAX_TOLD else ""
    return f"there are {', '.join(_short(name) for name in told[:MAX_TOLD])}{more}, and artifact ids"


def _split(model: str, names: Names) -> tuple[bytes | None, bytes | None]:
    """(base, adapter) of a model field."""
    if "+" in model:
        left, right = model.split("+", 1)
        return _base(left, names), _adapter(right, names)
    if model in names.bases:
        return names.bases[model].id, None
    label, _, pin = model.rpartition("@")
    if pin and label:
        adapter = _adapter(model, names)
        entry = names.adapters.get(label) or names.adapter_of(adapter)
        return (entry.base if entry else None), adapter
    if model in names.adapters:
        entry = names.adapters[model]
        return entry.base, entry.id
    identity = _parsed(model)
    if identity is None:
        raise _unknown(ErrorCode.MODEL_NOT_FOUND, model, names, "model")
    if entry := names.adapter_of(identity):
        return entry.base, identity
    # An id that the names do not tell: a base, until the chain says otherwise.
    return (identity, None) if names.base_of(identity) else (None, identity)


def _base(text: str, names: Names) -> bytes:
    if text in names.bases:
        return names.bases[text].id
    identity = _parsed(text)
    if identity is None:
        raise _unknown(ErrorCode.MODEL_NOT_FOUND, text, names, "model")
    return identity


def _adapter(text: str, names: Names) -> bytes:
    """An adapter by name, by id, or by `name@id`, where the id decides."""
    label, _, pin = text.rpartition("@")
    if label:
        pinned = _parsed(pin)
        if pinned is None:
            raise BodyError(ErrorCode.BAD_ID, "behind @ stands the adapter's id: sha256:<64 lower-case hex>", "model")
        return pinned
    if text in names.adapters:
        return names.adapters[text].id
    identity = _parsed(text)
    if identity is None:
        raise _unknown(ErrorCode.ADAPTER_NOT_FOUND, text, names, "adapters")
    return identity


def _parsed(text: str) -> bytes | None:
    try:
        return parse_artifact_id(text)
    except ProtocolError:
        return None


def _weight(given: float | str) -> int:
    """A weight as ten-thousandths. `0.7` means 0.7, whatever its binary neighbour is."""
    try:
        exact = Decimal(str(given)) * WEIGHT_ONE
    except InvalidOperation:
        raise BodyError(ErrorCode.BAD_PIPELINE, "a mix weight is a number such as 0.7", "adapters") from None
    if not exact.is_finite() or exact == 0 or exact % WEIGHT_QUANTUM or abs(exact) >= 1 << 31:
        raise BodyError(ErrorCode.BAD_PIPELINE, "a mix weight is a multiple of 0.05, not 0", "adapters")
    return int(exact)


def _unknown(code: ErrorCode, text: str, names: Names, param: str) -> BodyError:
    close = difflib.get_close_matches(text[:128], [*names.bases, *names.adapters], n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    what = "model" if code is ErrorCode.MODEL_NOT_FOUND else "adapter"
    return BodyError(code, f"no {what} is named {_short(ascii(text[:80]))}{hint}: {known(names)}", param)


def _short(name: str) -> str:
    return name if len(name) <= 90 else f"{name[:87]}…"
