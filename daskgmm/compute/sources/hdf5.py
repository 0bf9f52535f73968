"""HDF5: files, which netCDF-4 files are, too, and the objects of h5py."""

import math
import os
import sys
import threading
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fsspec.implementations.local import LocalFileSystem

from daskgmm._typing import Array
from daskgmm.compute.sources import cf
from daskgmm.compute.sources.base import Asked, Facts, Source, grid
from daskgmm.compute.sources.files import Handle, Layout, needed, reading, values_of
from daskgmm.compute.sources.groups import Group, Member
from daskgmm.compute.sources.paths import Place, refuse_no_file
from daskgmm.errors import DataError

DIMENSION = b"This is a netCDF dimension"  # but not a variable: what the name of such a dataset begins with
HOPS = 32  # links that lead on to links

_lock = threading.Lock()


def _renew_lock() -> None:
    """After a fork: whoever held it may not be there."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


@contextmanager
def alone() -> Iterator[None]:
    """Let no other thread into the library, ours or one in which xarray reads: it is one for all, and not safe."""
    theirs = sys.modules.get("xarray.backends.locks")
    with ExitStack() as held:
        held.enter_context(_lock)
        if theirs is not None:
            held.enter_context(theirs.combine_locks([theirs.NETCDFC_LOCK, theirs.HDF5_LOCK]))
        yield


def opened(place: Place, asked: Asked) -> Source:
    """A dataset in a file; `DataError` for a group, with its datasets."""
    refuse_no_file(place)
    file = File(place)
    group = reading(place, asked.name, _group_at, file, place.inside)
    if group is not None:
        return group.source(asked)
    return values_of(Stored(file, place.inside, asked.fill_missing), asked)


def _group_at(file: "File", inside: str) -> Group | None:
    """The group of a name in a file; None for a dataset."""
    with alone(), file.open() as root:
        try:
            found = file.find(root, inside)
        except KeyError:
            raise DataError(f"{file.place.path} has no {inside!r}. {_group(root, file, '').listing()}") from None
        return None if _is_dataset(found) else _group(found, file, inside)


def opened_object(value: Any, asked: Asked) -> Source:
    """An ``h5py.Dataset``, or some of a group's."""
    if not value:
        raise DataError(f"{asked.name} is of an HDF5 file that is closed: open it anew, or give its path.")
    if _is_dataset(value):
        return values_of(Live(value, asked.fill_missing), asked)
    if not hasattr(value, "visititems"):
        raise DataError(f"{asked.name} is an h5py {type(value).__name__}, expected a Dataset.")
    members = _members(value)
    file, inside = value.file.filename, value.name.strip("/")

    def one(name: str, asked: Asked) -> Source:
        return opened_object(value[name], asked)

    title, joint = (f"{file}::/{inside}", "/") if inside else (file, "::/")
    return Group(title, joint, "an HDF5 group", dict(value.attrs), lambda: members, one).source(asked)


@dataclass(frozen=True)
class File:
    """A file, opened anew for each block: nothing stays open, and any process can."""

    place: Place

    @contextmanager
    def open(self) -> Iterator[Any]:
        h5py = needed("h5py", "hdf5", self.place)
        fs, path = self.place.on_disk()
        with ExitStack() as held:
            source = path if isinstance(fs, LocalFileSystem) else held.enter_context(fs.open(path, "rb"))
            yield held.enter_context(h5py.File(source, "r"))

    def find(self, root: Any, name: str) -> Any:
        """What has a name in the file, which no link may lead out of; `KeyError` where there is none."""
        h5py, left, here, hops = sys.modules["h5py"], name.split("/")[::-1], root, 0
        while left:
            if not (part := left.pop()) or part == ".":
                continue
            link = here.get(part, getlink=True) if hasattr(here, "visititems") else None
            if isinstance(link, h5py.SoftLink) and hops < HOPS:
                hops, here = hops + 1, root if link.path.startswith("/") else here
                left += link.path.split("/")[::-1]
            elif isinstance(link, h5py.HardLink):
                here = here[part]
            elif link is None:
                raise KeyError(name)
            else:
                raise DataError(f"{self.place}: {name!r} is a link out of the file, or in a circle, not followed.")
        return here


class Dataset(Handle):
    """A dataset, once it is open."""

    fill_missing: bool

    @abstractmethod
    def open(self) -> AbstractContextManager[Any]:
        """The dataset of h5py, while no other thread is in the library."""

    def look(self) -> Layout:
        with alone(), self.open() as dataset:
            return _layout(dataset, self, self.fill_missing)

    def facts(self, layout: Layout) -> Facts:
        with alone(), self.open() as dataset:
            return _facts(dataset)

    def read(self, layout: Layout, rows: slice, out: Array) -> None:
        with alone(), self.open() as dataset:
            dataset.read_direct(out, np.s_[rows])


@dataclass(frozen=True)
class Stored(Dataset):
    """A dataset in a file."""

    file: File
    name: str
    fill_missing: bool

    def __str__(self) -> str:
        return str(self.file.place._replace(inside=self.name))

    @contextmanager
    def open(self) -> Iterator[Any]:
        with self.file.open() as root:
            found = self.file.find(root, self.name)
            others = [name for name, *_ in found.external or ()]
            if found.is_virtual:
                others += [source.file_name for source in found.virtual_sources() if source.file_name != "."]
            if others:
                raise DataError(f"{self} has its values in other files ({others[0]}, ...), which are not read.")
            yield found


@dataclass(frozen=True)
class Live(Dataset):
    """A dataset in a file that the user has opened; other processes open it anew."""

    dataset: Any
    fill_missing: bool
    title: str = field(init=False)

    def __post_init__(self) -> None:
        vars(self)["title"] = f"{self.dataset.file.filename}::{self.dataset.name}"

    def __str__(self) -> str:
        return self.title

    def __reduce__(self) -> Any:
        inside = self.dataset.name.strip("/")
        return Stored, (File(Place(os.path.abspath(self.dataset.file.filename))), inside, self.fill_missing)

    @property
    def in_driver(self) -> bool:  # type: ignore[override]
        """Whether other processes cannot open it, or would not see what is written."""
        file = self.dataset.file
        return file.mode != "r" or file.driver in ("core", "fileobj")

    def open(self) -> AbstractContextManager[Any]:
        return nullcontext(self.dataset)


def _is_dataset(value: Any) -> bool:
    return hasattr(value, "read_direct")


def _layout(dataset: Any, handle: Handle, fill_missing: bool) -> Layout:
    """What a dataset is; `DataError` where some of its chunks were never written."""
    shape, dtype, chunks = tuple(dataset.shape or ()), dataset.dtype, dataset.chunks
    if not fill_missing:
        _refuse_missing(dataset, handle)
    each = chunks or (1, *shape[1:])
    attributes = {name: dataset.attrs[name] for name in cf.NAMES if name in dataset.attrs}
    unit, n_bytes = each[0] if shape else 1, math.prod(each) * dtype.itemsize
    return Layout(shape, dtype, unit, n_bytes, attributes, dims=_dims(dataset))


def _dims(dataset: Any) -> tuple[str, ...] | None:
    """The names of its dimensions: labels, or those of their only scales; None unless all have one."""
    try:
        found = [dim.label or dim[0].name.rpartition("/")[2] for dim in dataset.dims if dim.label or len(dim) == 1]
    except Exception:  # a scale is a reference, which may lead nowhere
        return None
    return tuple(found) if len(found) == len(dataset.shape or ()) else None


def _refuse_missing(dataset: Any, title: Any) -> None:
    """Raise `DataError` where chunks of a dataset of numbers were never written."""
    there, wanted = _chunks_of(dataset)
    if there < wanted and dataset.dtype.kind in "biuf":
        raise DataError(
            f"{title} has {there} of {wanted} chunks: the others were never written, and read as the fill value "
            f'{dataset.fillvalue}. Set missing_chunks="fill" to read them so.'
        )


def refuse_unwritten(path: str, name: str) -> None:
    """The same of a dataset in a local file, which may be no HDF5, or in use, where nothing is known of chunks."""
    with suppress(OSError, KeyError), alone(), File(Place(path)).open() as root:
        _refuse_missing(root[name], f"{path}::/{name}")


def _chunks_of(dataset: Any) -> tuple[int, int]:
    """How many chunks were written, and how many there are; all values are one where it has none."""
    if dataset.chunks is None:
        there = dataset.is_virtual or dataset.id.get_storage_size() > 0
        return int(there), int(math.prod(dataset.shape or ()) > 0)
    return dataset.id.get_num_chunks(), math.prod(grid(dataset.shape, dataset.chunks))


def _facts(dataset: Any) -> Facts:
    """What a dataset says of itself."""
    there, wanted = _chunks_of(dataset)
    filters = {"fletcher32": dataset.fletcher32, "shuffle": dataset.shuffle, dataset.compression or "": True}
    return Facts(
        "HDF5 dataset",
        codecs=tuple(name for name, used in filters.items() if name and used),
        chunk_shape=dataset.chunks,
        n_chunks=wanted,
        n_looked_up=wanted,
        n_missing=wanted - there,
        stored_bytes=dataset.id.get_storage_size(),
        checksums=dataset.fletcher32 or dataset.compression == "gzip",  # whose format has one
        one_reader=True,
    )


def _members(group: Any) -> list[Member]:
    """The datasets below a group in its own order, without dimensions of netCDF that have no values."""
    found: list[Member] = []
    listed: dict[str, dict[str, int]] = {}

    def rank(name: str) -> tuple[int, ...]:
        above, _, last = name.rpartition("/")
        if above not in listed:
            listed[above] = {name: number for number, name in enumerate(group[above] if above else group)}
        return *(rank(above) if above else ()), listed[above][last]

    def visit(name: str, value: Any) -> None:
        if _is_dataset(value) and not bytes(value.attrs.get("NAME", b"")).startswith(DIMENSION):
            found.append(Member(name, tuple(value.shape or ()), value.dtype))

    group.visititems(visit)
    return sorted(found, key=lambda member: rank(member.name))


def _group(found: Any, file: File, inside: str) -> Group:
    """What there is to know of a group in a file."""
    attributes: Mapping[str, Any] = dict(found.attrs)
    members = _members(found)

    def one(name: str, asked: Asked) -> Source:
        return opened(file.place._replace(inside=f"{inside}/{name}".strip("/")), asked)

    title, joint = (str(file.place), "/") if inside else (file.place.path, "::/")
    return Group(title, joint, "an HDF5 file or group", attributes, lambda: members, one)
