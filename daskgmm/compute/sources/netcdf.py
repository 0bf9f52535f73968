"""netCDF: classic files, and the objects of netCDF4; files of its own format are HDF5."""

import math
import os
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskgmm._typing import Array
from daskgmm.compute.sources import hdf5
from daskgmm.compute.sources.base import Asked, Facts, Source, grid
from daskgmm.compute.sources.files import Handle, Layout, needed, reading, values_of
from daskgmm.compute.sources.groups import Group, Member
from daskgmm.compute.sources.paths import Place, refuse_no_file
from daskgmm.errors import DataError

CLASSIC = b"CDF"
CHECKED = {"fletcher32", "zlib"}  # filters that tell of damage


def opened(place: Place, asked: Asked) -> Source:
    """A variable in a file; `DataError` for a file without a name, with its variables."""
    fs, path = place.on_disk()
    refuse_no_file(place)
    with fs.open(path, "rb") as file:
        classic = file.read(len(CLASSIC)) == CLASSIC
    if not classic:
        return hdf5.opened(place, asked)
    if not place.is_local:
        raise DataError(f"{place} is a classic netCDF file, not read from a URL. Copy it to a local disk.")
    file = File(place)
    group = reading(place, asked.name, _group_at, file, place.inside)
    return _one(file, place.inside, asked) if group is None else group.source(asked)


def _group_at(file: "File", inside: str) -> Group | None:
    """A file as a group; None where a variable of it is wanted."""
    with hdf5.alone(), file.open() as root:
        group = _group(root, lambda name, one: _one(file, name, one))
        if inside and inside not in root.variables:
            raise DataError(f"{file.place.path} has no variable {inside!r}. {group.listing()}")
        return None if inside else group


def opened_object(value: Any, asked: Asked) -> Source:
    """A ``netCDF4.Variable``, or some of a Dataset's or a Group's."""
    root = value.group() if hasattr(value, "group") else value
    while root.parent is not None:  # a group does not know
        root = root.parent
    if not root.isopen():
        raise DataError(f"{asked.name} is of a netCDF file that is closed: open it anew, or give its path.")
    if hasattr(value, "set_auto_maskandscale") and hasattr(value, "dimensions") and hasattr(value, "group"):
        return values_of(Live(value, asked.fill_missing), asked)
    with hdf5.alone():
        group = _group(value, lambda name, one: opened_object(_find(value, name), one))
    return group.source(asked)


@dataclass(frozen=True)
class File:
    """A file, opened anew for each block."""

    place: Place

    @contextmanager
    def open(self) -> Iterator[Any]:
        with needed("netCDF4", "netcdf", self.place).Dataset(self.place.path, "r") as root:
            yield root


class Variable(Handle):
    """A variable, once it is open."""

    @abstractmethod
    def open(self) -> AbstractContextManager[Any]:
        """The variable of netCDF4, while no other thread is in the library."""

    def look(self) -> Layout:
        with hdf5.alone(), self.open() as variable:
            return _layout(variable)

    def facts(self, layout: Layout) -> Facts:
        with hdf5.alone(), self.open() as variable:
            return _facts(variable)

    def read(self, layout: Layout, rows: slice, out: Array) -> None:
        with hdf5.alone(), self.open() as variable:
            out[...] = _raw(variable, rows)


@dataclass(frozen=True)
class Stored(Variable):
    """A variable in a file."""

    file: File
    name: str

    def __str__(self) -> str:
        return str(self.file.place._replace(inside=self.name))

    @contextmanager
    def open(self) -> Iterator[Any]:
        with self.file.open() as root:
            yield _find(root, self.name)


@dataclass(frozen=True)
class Live(Variable):
    """A variable of a file that the user has opened; other processes open it anew."""

    variable: Any
    fill_missing: bool

    def __str__(self) -> str:
        return f"{self.variable.group().filepath()}::{_inside(self.variable)}"

    def __reduce__(self) -> Any:
        place = Place(os.path.abspath(self.variable.group().filepath()))
        return Stored, (File(place), _inside(self.variable))

    def look(self) -> Layout:
        if not self.fill_missing:  # as for its path; of a file that is being written, only netCDF4 reads anything
            hdf5.refuse_unwritten(self.variable.group().filepath(), _inside(self.variable))
        return super().look()

    @property
    def in_driver(self) -> bool:  # type: ignore[override]
        """Whether other processes cannot open it."""
        return not os.path.isfile(self.variable.group().filepath())

    def open(self) -> AbstractContextManager[Any]:
        return nullcontext(self.variable)


def _one(file: File, name: str, asked: Asked) -> Source:
    return values_of(Stored(file, name), asked)


def _inside(variable: Any) -> str:
    return f"{variable.group().path}/{variable.name}".strip("/")


def _find(root: Any, name: str) -> Any:
    """A variable of a group, or of one below it; `KeyError` where there is none."""
    *groups, last = name.strip("/").split("/")
    for group in groups:
        root = root.groups[group]
    return root.variables[last]


def _raw(variable: Any, rows: slice) -> Array:
    """Rows as they are stored, whatever the user had it make of them."""
    mask, scale = variable.mask, variable.scale
    variable.set_auto_maskandscale(False)
    try:
        return np.asarray(variable[rows])
    finally:
        variable.set_auto_mask(mask)
        variable.set_auto_scale(scale)


def _layout(variable: Any) -> Layout:
    dtype = np.dtype(variable.dtype)
    chunks = variable.chunking() or "contiguous"
    each = (1, *variable.shape[1:]) if chunks == "contiguous" else tuple(chunks)
    attributes = {name: variable.getncattr(name) for name in variable.ncattrs()}
    n_bytes = int(np.prod(each, dtype=object)) * dtype.itemsize
    unit, dims = each[0] if variable.shape else 1, tuple(variable.dimensions)
    return Layout(tuple(variable.shape), dtype, unit, n_bytes, attributes, dims=dims)


def _facts(variable: Any) -> Facts:
    """What a variable says of itself."""
    used = {name for name, how in (variable.filters() or {}).items() if how and name != "complevel"}
    chunks: Any = variable.chunking() or "contiguous"
    return Facts(
        f"netCDF variable ({variable.group().data_model})",
        codecs=tuple(sorted(used)),
        chunk_shape=None if chunks == "contiguous" else tuple(chunks),
        n_chunks=None if chunks == "contiguous" else math.prod(grid(variable.shape, chunks)),
        checksums=not used.isdisjoint(CHECKED),
        one_reader=True,
    )


def _group(root: Any, one: Any) -> Group:
    """What there is to know of a file or a group."""

    def members(group: Any, prefix: str) -> Iterator[Member]:
        for name, variable in group.variables.items():
            yield Member(prefix + name, tuple(variable.shape), variable.dtype)
        for name, below in group.groups.items():
            yield from members(below, f"{prefix}{name}/")

    found = list(members(root, ""))
    return Group(root.filepath(), "::/", "a netCDF file or group", {}, lambda: found, one)
