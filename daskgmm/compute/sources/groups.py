"""Groups of arrays, in whatever holds them: some of their arrays, side by side, are rows of features."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, NoReturn

import numpy as np

from daskgmm._typing import Array
from daskgmm.compute.memory import Spare
from daskgmm.compute.sources.base import Asked, Chunks, Facts, Source
from daskgmm.compute.sources.failures import memory_for
from daskgmm.errors import DataError, printable

LISTED = 20  # arrays that a message names
SPARSE = {"csr_matrix", "csc_matrix"}  # of AnnData's attribute "encoding-type"


class Member(NamedTuple):
    """An array in a group."""

    name: str
    shape: tuple[int, ...]
    dtype: Any

    def __str__(self) -> str:
        return f"{printable(self.name)} {self.shape} {printable(str(self.dtype))}"


@dataclass(frozen=True)
class Group:
    """What there is to know of a group, to refuse it or to take arrays out of it."""

    title: str  # where it is
    joint: str  # what stands between that and the name of an array
    kind: str  # what it is, such as "a Zarr group"
    attributes: Mapping[str, Any]
    members: Callable[[], Iterable[Member]]  # all arrays below it, in its own order, of names where it has none
    open: Callable[[str, Asked], Source]  # one of them; `KeyError` where there is none

    def source(self, asked: Asked) -> Source:
        """Its variables that are asked for, as columns; `DataError` where none are, or they do not go together."""
        if self.attributes.get("encoding-type") in SPARSE:
            self.refuse_sparse(asked)
        names = asked.variables or self._known(asked)
        if not names:
            self.refuse(asked)
        one = asked._replace(ensure_2d=False, variables=None)
        parts = []
        for name in names:
            try:
                parts.append(self.open(name, one._replace(name=f"{asked.name}[{name!r}]")))
            except KeyError:
                raise DataError(f"{self.title} has no array {name!r}. {self.listing()}") from None
            except (DataError, FileNotFoundError):
                raise
            except Exception as error:  # whatever a file system or damaged metadata may raise
                raise DataError(f"{self.title}: {name!r} cannot be opened: {error}") from error
        if len(shapes := {part.shape for part in parts}) > 1:
            told = ", ".join(f"{name} {part.shape}" for name, part in zip(names, parts, strict=True))
            raise DataError(
                f"The variables of {asked.name} differ in shape: {told}. Choose some of one shape, or broadcast "
                "them: open the group with xarray, and give the Dataset of these variables."
            )
        if len({part.dims for part in parts if part.dims}) > 1:
            self._refuse_turned(asked, names, parts)
        if not shapes or () in shapes or 0 in next(iter(shapes)):
            raise DataError(f"The variables of {asked.name} hold no rows: their shape is {shapes.pop()}.")
        return SideBySide.of(names, parts)

    def _known(self, asked: Asked) -> tuple[str, ...]:
        """The names of the features that are expected, where the group has arrays of all these names."""
        names = asked.features if asked.ensure_2d and isinstance(asked.features, tuple) else ()
        return names if {*names} <= {array.name for array in self.arrays()} else ()

    def _refuse_turned(self, asked: Asked, names: tuple[str, ...], parts: list[Source]) -> NoReturn:
        """Say which arrays have their dimensions by which names."""
        named = [(name, part.dims) for name, part in zip(names, parts, strict=True) if part.dims]
        alike = len({frozenset(dims) for _, dims in named}) == 1
        told = ", ".join(f"{name} {dims}" for name, dims in named)
        raise DataError(
            f"The variables of {asked.name} differ in {'the order of ' * alike}their dimensions: {told}. Choose "
            "some of the same, or open the group with xarray, and give the Dataset of these variables."
        )

    def refuse(self, asked: Asked) -> NoReturn:
        """Say which arrays the group holds, and how to name one, or some as features."""
        arrays, ways = self.arrays(), []
        whole = [array.name for array in arrays if len(array.shape) == (2 if asked.ensure_2d else 1)]
        if whole:
            ways.append(f"\nFor one of them, append its name: {self.title}{self.joint}{printable(whole[0])}")
        shapes = Counter(array.shape for array in arrays if array.shape)
        if asked.ensure_2d and shapes and (max(shapes.values()) > 1 or not whole):
            (shape, _), *_ = shapes.most_common(1)
            names = [printable(array.name) for array in arrays if array.shape == shape][:3]
            ways.append(
                f"\nFor some of one shape as the features, name them: variables={names} "
                f"(--variables {','.join(names)})"
            )
        raise DataError(f"{self.title} is {self.kind}, not an array. {self.listing(arrays)}{''.join(ways)}")

    def arrays(self) -> list[Member]:
        """All arrays below it, as far as they can be read."""
        try:
            return list(self.members())
        except Exception as error:  # whatever a file system or damaged metadata may raise
            raise DataError(f"{self.title} is {self.kind}, and cannot be listed: {error}") from error

    def listing(self, arrays: Sequence[Member] | None = None) -> str:
        """Names, shapes and types of the arrays."""
        arrays = self.arrays() if arrays is None else arrays
        if not arrays:
            return "It holds no array."
        more = f"\n  and {len(arrays) - LISTED} more" if len(arrays) > LISTED else ""
        return "Its arrays are:" + "".join(f"\n  {array}" for array in arrays[:LISTED]) + more

    def refuse_sparse(self, asked: Asked) -> NoReturn:
        """Say how a sparse matrix becomes rows."""
        shape = tuple(int(size) for size in np.ravel(self.attributes.get("shape", ())))
        raise DataError(
            f"{self.title} is a sparse matrix ({self.attributes['encoding-type']}, shape {shape}), and "
            f"{asked.name} has to be dense. Reduce its columns first (PCA, for instance), or write it as a dense "
            "array, block by block: array[i:j] = matrix[i:j].toarray()."
        )


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SideBySide(Source):
    """Arrays of one shape as columns; their values in C order are the rows, cut along the first axis alone."""

    parts: tuple[Source, ...]
    spare: Spare = field(default_factory=Spare)
    keepable: ClassVar[bool] = True
    waits: ClassVar[bool] = True

    @classmethod
    def of(cls, names: tuple[str, ...], parts: Sequence[Source]) -> "SideBySide":
        """Arrays of these names, not yet cut."""
        n = math.prod(parts[0].shape)
        return cls(
            shape=(n, len(parts)),
            dtype=np.result_type(*(part.dtype for part in parts)),
            chunks=(n,),
            in_driver=any(part.in_driver for part in parts),
            chunk_bytes=max(part.chunk_bytes for part in parts),
            names=names,
            decoded="; ".join(f"{n} {part.decoded}" for n, part in zip(names, parts, strict=True) if part.decoded),
            parts=tuple(parts),
        )

    @cached_property
    def inner(self) -> int:
        """Rows of each step along the first axis."""
        return int(math.prod(self.parts[0].shape[1:]))

    @property
    def read_bytes(self) -> float:
        return sum(part.read_bytes for part in self.parts) / self.inner

    def plan(self, block_bytes: int) -> Chunks:
        share = self.inner * self.row_bytes
        plans = [part.plan(block_bytes * part.row_bytes // share) for part in self.parts]
        # Of fewest blocks: the largest chunks decide, and those of other arrays are read in parts or together.
        return tuple(size * self.inner for size in min(plans, key=len))

    def cut(self, chunks: Chunks) -> "SideBySide":
        steps = tuple(size // self.inner for size in chunks)
        return replace(self, chunks=chunks, parts=tuple(part.cut(steps) for part in self.parts))

    def as_stored(self) -> "SideBySide":
        return self.cut(tuple(size * self.inner for size in self.parts[0].as_stored().chunks))

    def reader(self, index: int, part: Any) -> Array:
        shape = (int(self.chunks[index]), len(self.parts))
        what, asks = f"The variables {list(self.names or ())} cannot be read", f": block {index} takes"
        values = memory_for(self.spare, shape, self.dtype, what, asks)
        for column, one in enumerate(self.parts):
            values[:, column] = np.ravel(one.reader(index, None))
        return values

    def facts(self) -> Facts:
        told = [part.facts() for part in self.parts]
        counts: dict[str, Any] = {}
        for name in ("n_chunks", "n_looked_up", "n_missing", "stored_bytes"):
            values = [getattr(one, name) for one in told]
            counts[name] = None if None in values else sum(values)
        checked = [one.checksums for one in told]
        kind = f"{len(told)} columns, each a {told[0].kind}"
        return told[0]._replace(kind=kind, checksums=None if None in checked else all(checked), **counts)

    def check_unchanged(self, title: str) -> None:
        for name, part in zip(self.names or (), self.parts, strict=True):
            part.check_unchanged(f"{title}[{name!r}]")
