"""Frozen values taken apart into JSON and arrays, and put together again, bit for bit.

A class that is to be stored is a dataclass that is entered with `storable`; a new field of it needs nothing else.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import numpy as np

from daskgmm import errors
from daskgmm._typing import Array
from daskgmm.compute.block import array_digest
from daskgmm.model.covariance import Covariance
from daskgmm.model.mixture import Mixture
from daskgmm.model.statistics import Statistics
from daskgmm.model.structure import STRUCTURES, Structure
from daskgmm.model.update import Update

C = TypeVar("C")

# What a file may hold, by name: nothing else is ever built from one.
TYPES: dict[str, type[Any]] = {}


def storable(kind: type[C]) -> type[C]:
    """Let values of a dataclass be written and read; a class decorator."""
    TYPES[kind.__name__] = kind
    return kind


def _subclasses(base: type[Any]) -> Iterator[type[Any]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _subclasses(kind)


for _kind in (Mixture, Statistics, *_subclasses(Covariance), *_subclasses(Update)):
    storable(_kind)


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
        return {"tuple": [pack(entry, arrays, f"{name}.{i}") for i, entry in enumerate(value)]}
    if isinstance(value, dict):
        return {"dict": {key: pack(entry, arrays, f"{name}.{key}") for key, entry in value.items()}}
    if isinstance(value, Structure):
        return {"structure": value.name}
    if isinstance(value, errors.DataError):
        return {"error": type(value).__name__, "args": list(value.args)}
    if is_dataclass(value) and type(value) in TYPES.values():
        parts = {f.name: pack(getattr(value, f.name), arrays, f"{name}.{f.name}") for f in fields(value) if f.init}
        return {"value": type(value).__name__, "parts": parts}
    raise TypeError(f"{type(value).__name__} cannot be written.")


def unpack(packed: Any, arrays: Mapping[str, Array]) -> Any:
    """The value that `pack` took apart."""
    if not isinstance(packed, dict):
        return packed
    if "array" in packed:
        return arrays[packed["array"]]
    if "tuple" in packed:
        return tuple(unpack(entry, arrays) for entry in packed["tuple"])
    if "dict" in packed:
        return {name: unpack(entry, arrays) for name, entry in packed["dict"].items()}
    if "structure" in packed:
        return STRUCTURES[packed["structure"]]
    if "error" in packed:
        return ERRORS[packed["error"]](*packed["args"])
    parts = {name: unpack(entry, arrays) for name, entry in packed["parts"].items()}
    return TYPES[packed["value"]](**parts)


ERRORS: dict[str, type[errors.DataError]] = {
    kind.__name__: kind for kind in (errors.DataError, errors.CollapseError)
}


def digest(value: Any) -> str:
    """SHA-256 of a value that a file can hold."""
    arrays: dict[str, Array] = {}
    found = hashlib.sha256(json.dumps(pack(value, arrays, "value")).encode())
    for array in arrays.values():
        found.update(array_digest(array).encode())
    return found.hexdigest()
