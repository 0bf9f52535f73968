"""Frozen values taken apart into JSON and arrays, and put together again, bit for bit.

A class that is to be stored is a dataclass that is entered with `storable`; a new field of it needs nothing else.
What is read fits the annotations of the fields, and passes the class's own ``check``, where it has one.
"""

import hashlib
import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np

from daskgmm import errors
from daskgmm._typing import Array
from daskgmm.compute.block import array_digest
from daskgmm.model.background import Background, Contaminated
from daskgmm.model.covariance import Covariance
from daskgmm.model.frozen import Frozen
from daskgmm.model.loadings import Loadings
from daskgmm.model.mixture import Mixture
from daskgmm.model.posterior import Posterior
from daskgmm.model.prior import NormalInverseWishart
from daskgmm.model.statistics import Statistics
from daskgmm.model.structure import Structure, structure_of
from daskgmm.model.update import Around, Update

C = TypeVar("C")

# Of a field that files of this format did not always have: one that has its default is left out of a file.
LATER: Mapping[str, bool] = types.MappingProxyType({"later": True})

# What a file may hold, by name: nothing else is ever built from one.
TYPES: dict[str, type[Any]] = {}


def storable(kind: type[C]) -> type[C]:
    """Let values of a dataclass be written and read; a class decorator."""
    TYPES[kind.__name__] = kind
    return kind


# A class of a class of these is for what is only tried.
_updates: list[type[Any]] = [kind for kind in Update.__subclasses__() if kind is not Around] + [Frozen, Background]
for _kind in (
    Mixture,
    Contaminated,
    Posterior,
    Statistics,
    NormalInverseWishart,
    *Covariance.__subclasses__(),
    *_updates,
):
    storable(_kind)
storable(Loadings)


# Errors that a run may have ended with, and what they are made of.
ERRORS: dict[str, tuple[type[errors.DataError], list[type[Any]]]] = {
    "DataError": (errors.DataError, [str]),
    "CollapseError": (errors.CollapseError, [str, int]),
}


def pack(value: Any, arrays: dict[str, Array], name: str) -> Any:
    """``value`` as JSON; its arrays go into ``arrays``, under names that begin with ``name``."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.ndarray):
        arrays[name] = value
        return {"array": name}
    if isinstance(value, tuple):
        if value and all(isinstance(entry, float) for entry in value):  # a trace: the header stays small
            arrays[name] = np.array(value)
            return {"floats": name}
        return {"tuple": [pack(entry, arrays, f"{name}.{i}") for i, entry in enumerate(value)]}
    if isinstance(value, dict):
        return {"dict": {key: pack(entry, arrays, f"{name}.{key}") for key, entry in value.items()}}
    if isinstance(value, Structure):
        return {"structure": value.key}
    if isinstance(value, errors.DataError):
        return {"error": type(value).__name__, "args": list(value.args)}
    if is_dataclass(value) and type(value) in TYPES.values():
        held = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        left_out = {f.name for f in fields(value) if f.metadata == LATER and _same(held[f.name], f.default)}
        parts = {key: pack(held[key], arrays, f"{name}.{key}") for key in held if key not in left_out}
        return {"value": type(value).__name__, "parts": parts}
    raise TypeError(f"{type(value).__name__} cannot be written.")


def _same(value: Any, default: Any) -> bool:
    """Whether a value is the default of its field; no array is."""
    return not isinstance(value, np.ndarray) and bool(value == default)


def unpack(packed: Any, arrays: Mapping[str, Array], kind: Any = Any) -> Any:
    """The value that `pack` took apart, of a kind as annotations say it; any exception where there is none."""
    value = _unpacked(packed, arrays, kind)
    if not _is(value, kind):
        raise TypeError(f"{type(value).__name__} stands where {kind} belongs.")
    if (check := getattr(value, "check", None)) is not None:
        check()
    return value


def restored(packed: Any, arrays: Mapping[str, Array], kind: Any = Any) -> Any:
    """The value of which `pack` makes just that, JSON and arrays; any exception where there is none."""
    value = unpack(packed, arrays, kind)
    again: dict[str, Array] = {}
    if json.dumps(pack(value, again, "value")) != json.dumps(packed) or again.keys() != arrays.keys():
        raise ValueError("There is more or less than the value.")
    return value


def floats(array: Array) -> tuple[float, ...]:
    """A trace out of an array; of more axes, one may be empty and another without end."""
    if array.ndim != 1:
        raise ValueError("A trace has one axis.")
    return tuple(array.tolist())


def _unpacked(packed: Any, arrays: Mapping[str, Array], kind: Any) -> Any:
    if not isinstance(packed, dict):
        return packed
    if "array" in packed:
        return arrays[packed["array"]]
    if "floats" in packed:
        return floats(arrays[packed["floats"]])
    if "tuple" in packed:
        kinds = _entries(kind, len(packed["tuple"]))
        return tuple(unpack(entry, arrays, each) for entry, each in zip(packed["tuple"], kinds, strict=True))
    if "dict" in packed:
        return {name: unpack(entry, arrays) for name, entry in packed["dict"].items()}
    if "structure" in packed:
        return structure_of(packed["structure"])
    if "error" in packed:
        found, wanted = ERRORS[packed["error"]]
        if [type(arg) for arg in packed["args"]] != wanted:
            raise TypeError(f"{found.__name__} is not made of {packed['args']}.")
        return found(*packed["args"])
    made: Any = TYPES[packed["value"]]
    hints = _hints(made)
    return made(**{name: unpack(entry, arrays, hints[name]) for name, entry in packed["parts"].items()})


@cache
def _hints(kind: Callable[..., Any]) -> dict[str, Any]:
    """What the fields of a class may be, by name."""
    return typing.get_type_hints(kind, localns={"Structure": Structure})


def _kinds(kind: Any) -> tuple[Any, ...]:
    """The alternatives of an annotation."""
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


def _entries(kind: Any, n: int) -> tuple[Any, ...]:
    """What the n entries of a tuple may be."""
    for each in _kinds(kind):
        if typing.get_origin(each) is tuple:
            args = typing.get_args(each)
            return args[:1] * n if args[-1] is Ellipsis else args
    return (Any,) * n


def _class(kind: Any) -> Any:
    """The class of an annotation, which may be an alias with arguments: NumPy 2.5 has its arrays so."""
    origin = typing.get_origin(kind) or kind
    return _class(origin.__value__) if hasattr(origin, "__value__") else origin


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is what an annotation says."""
    if isinstance(value, tuple):
        kinds = _entries(kind, len(value))
        if len(kinds) != len(value) or not all(map(_is, value, kinds)):
            return False
    for each in _kinds(kind):
        if each is Any:
            return True
        if each in (int, float):  # a whole number stands for a float, too; True for neither
            if isinstance(value, (int, each)) and not isinstance(value, bool):
                return True
        elif isinstance(value, _class(each)):
            return True
    return False


def digest(value: Any) -> str:
    """SHA-256 of a value that a file can hold."""
    arrays: dict[str, Array] = {}
    packed = pack(value, arrays, "value")
    return json_digest({"value": packed, "arrays": [array_digest(array) for array in arrays.values()]})


def json_digest(told: Any) -> str:
    """SHA-256 of JSON."""
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
