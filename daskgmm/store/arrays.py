"""Zarr arrays that are written whole or not at all, and take the place of nothing but others of their kind."""

import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import dask.array as da
import zarr
from fsspec.implementations.local import LocalFileSystem
from zarr.errors import NodeNotFoundError, UnstableSpecificationWarning, ZarrUserWarning

from daskgmm.errors import InUseError, OutputError
from daskgmm.store.aside import aside, check_writable
from daskgmm.store.lock import locked
from daskgmm.store.places import locate

METADATA = {"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"}
CHUNK = re.compile(r"(c/|c\.)?(\d+(?:[./]\d+)*)|c")  # the last, of an array without dimensions
WRITER = "daskgmm predict"  # as outputs say who has written them
MARK: dict[str, Any] = {"complete": False, "writer": WRITER}
ARRAYS = "arrays"  # the attribute of a group with their names and shapes
TOLD = {*MARK, "coordinates"}  # the others: the last is xarray's


@dataclass(frozen=True)
class Claim:
    """A place for an array, whose only writer the holder is."""

    place: str
    options: dict[str, Any] | None
    overwrite: bool
    check: Callable[[], None]  # raises where another has taken over

    @contextmanager
    def new(self, answers: Any, fill_value: Any, chunks: tuple[int, ...]) -> Iterator[Any]:
        """What writes answers to the place, lazily. They are there once the block ends well, else not at all.

        A Dask array becomes a Zarr array, an xarray DataArray a group, as xarray writes one; both in these chunks,
        none of which two chunks of Dask share. On a local file system it grows beside its place, and is put there
        in one step, in exchange for what was there. On a URL it grows in place: what was there is removed first,
        and the attribute ``complete`` becomes true at the end.
        """
        create = partial(_variable if hasattr(answers, "dims") else _array, fill_value)
        fs, path = locate(self.place, self.options)
        if isinstance(fs, LocalFileSystem):
            with aside(path, folder=True) as new:
                yield create(answers, chunks, new, None)
                _finish(new, None)
                self.refuse_others()  # that came meanwhile
            return
        self.refuse_others()
        try:
            self._remove(fs, path)
            lazy = create(answers, chunks, self.place, self.options)
        except Exception as error:  # whatever a file system may raise
            raise OutputError(f"{self.place} cannot be written: {error}") from error
        try:
            yield lazy
            self.check()
            _finish(self.place, self.options)
        except InUseError:  # what is there is another's
            raise
        except BaseException:
            with suppress(Exception):  # the first failure is the one to tell
                self.check()
                self._remove(fs, path)
            raise

    def refuse_others(self) -> None:
        """Raise `OutputError` for what is there, unless it is an output that may be replaced, and that alone."""
        fs, path = locate(self.place, self.options)
        local = isinstance(fs, LocalFileSystem)
        fs.invalidate_cache()
        if not (os.path.lexists(path) if local else fs.exists(path)):
            return
        try:
            node: Any = zarr.open(path if local else self.place, mode="r", storage_options=self.options)
        except Exception:  # a file, a folder of anything, a damaged array
            node = None
        if (arrays := _arrays(node)) is None:
            kind = "a Zarr group" if isinstance(node, zarr.Group) else "no Zarr array, or a damaged one"
            if node is not None and node.attrs.get("writer") == WRITER:
                kind += " with other arrays or attributes than were written"
            raise OutputError(
                f"{self.place} is in the way: it is {kind}, and stays. Name another place, or remove it yourself."
            )
        if foreign := next(
            (name for name, linked in _objects(fs, path) if linked or not _is_own(name, arrays)), None
        ):
            raise OutputError(f"{self.place}/{foreign} is in the way: it is no part of a Zarr array, and stays.")
        unfinished = node.attrs.get("writer") == WRITER and node.attrs.get("complete") is False
        if not (self.overwrite or unfinished):
            raise OutputError(f"{self.place} exists; --overwrite replaces it.")

    def _remove(self, fs: Any, path: str) -> None:
        """Remove an output at a URL, object by object; who dies on the way leaves one that is not complete."""
        fs.invalidate_cache()
        try:
            node = zarr.open(self.place, mode="r+", storage_options=self.options)
        except (FileNotFoundError, NodeNotFoundError):
            return
        arrays = _arrays(node) or {}
        with _as_they_were():
            node.attrs.update(MARK)
        own = [name for name, _ in _objects(fs, path) if _is_own(name, arrays)]
        # Its metadata last: chunks alone would be nobody's. One by one: `rm` takes "?" and "[" for wildcards.
        for name in sorted(own, key=lambda name: (name in METADATA, name.rpartition("/")[2] in METADATA)):
            fs.rm_file(f"{path}/{name}")


@contextmanager
def claimed(
    place: str, options: dict[str, Any] | None, overwrite: bool, tell: Callable[[str], None]
) -> Iterator[Claim]:
    """Be the only writer of an array at a path or URL; ``tell`` gets what is waited for.

    Raises
    ------
    OutputError
        If something is there that may not be replaced, or nothing can be written: before any work.
    InUseError
        If another process writes there.
    """
    if "::" in place:
        raise OutputError(f"{place} is no place for an output: name where it lies, not how it is cached.")
    fs, path = locate(place, options, OutputError)
    if isinstance(fs, LocalFileSystem):
        check_writable(path)
    else:
        try:
            fs.exists(path)
        except Exception as error:  # no credentials, or whatever a file system may raise
            raise OutputError(f"{place} cannot be reached: {error}") from error
    with locked(place, tell, options, "output", InUseError) as check:
        claim = Claim(place, options, overwrite, check)
        claim.refuse_others()
        yield claim


def _array(
    fill_value: Any, answers: da.Array, chunks: tuple[int, ...], place: str, options: dict[str, Any] | None
) -> Any:
    """Make a Zarr array; what writes Dask's answers to it. No lock: no chunk is written by two tasks."""
    layout: Any = {"shape": answers.shape, "chunks": chunks, "dtype": answers.dtype, "fill_value": fill_value}
    layout["config"] = {"write_empty_chunks": True}  # a chunk that is missing was never written
    array: Any = zarr.create_array(place, storage_options=options, attributes=MARK, **layout)
    return da.store(answers, array, lock=False, compute=False)


def _variable(
    fill_value: Any, answers: Any, chunks: tuple[int, ...], place: str, options: dict[str, Any] | None
) -> Any:
    """The same for a DataArray, in a group with its coordinates, which tells what arrays it has."""
    whole = answers.to_dataset()
    mark = {**MARK, ARRAYS: json.dumps({str(name): array.shape for name, array in whole.variables.items()})}
    zarr.create_group(place, storage_options=options, attributes=mark, zarr_format=3)
    encoding = {answers.name: {"chunks": chunks, "fill_value": fill_value}}
    how = {"mode": "a", "encoding": encoding, "write_empty_chunks": True}
    with _as_they_were():
        whole = whole.assign_attrs(mark)
        return whole.to_zarr(place, compute=False, consolidated=False, storage_options=options, **how)


def _finish(place: str, options: dict[str, Any] | None) -> None:
    """Say of an output that it is complete; of a group once its metadata are together, where xarray seeks them."""
    node: Any = zarr.open(place, mode="r+", storage_options=options)
    with _as_they_were():
        if isinstance(node, zarr.Group):
            node = zarr.consolidate_metadata(node.store, path=node.path)
        node.attrs["complete"] = True


@contextmanager
def _as_they_were() -> Iterator[None]:
    """Without Zarr's warnings of types that coordinates had before, and of what xarray always writes."""
    with warnings.catch_warnings():
        for category in (UnstableSpecificationWarning, ZarrUserWarning):
            warnings.simplefilter("ignore", category)
        yield


def _objects(fs: Any, path: str) -> Iterator[tuple[str, bool]]:
    """Names below a path, of empty folders too, and whether they are links; what lies at the top comes first."""
    if not isinstance(fs, LocalFileSystem):
        for folder, _, files in fs.walk(path):
            yield from (((f"{folder}/{name}").removeprefix(path).strip("/"), False) for name in files)
        return
    root = os.path.realpath(path)
    for here, folders, files in os.walk(root):
        links = {name for name in (*folders, *files) if os.path.islink(os.path.join(here, name))}
        for name in (*files, *links.difference(files), *([] if folders or files else [""])):
            yield os.path.relpath(os.path.join(here, name), root).replace(os.sep, "/"), name in links


def _arrays(node: Any) -> dict[str, int] | None:
    """The arrays of an output by name, an array itself by none, and their dimensions; None for another's."""
    if isinstance(node, zarr.Array):
        return {"": node.ndim}
    if not isinstance(node, zarr.Group) or node.attrs.get("writer") != WRITER:
        return None
    try:  # xarray copies attributes: what has them may be another's, of other arrays or with more to say
        told = dict(node.attrs)
        written = json.loads(str(told.pop(ARRAYS)))
        bare = zarr.open_group(node.store_path, mode="r", use_consolidated=False)
        found = {name: list(array.shape) for name, array in bare.arrays()}
        whole = found == written or (told["complete"] is False and found.items() <= written.items())
    except Exception:  # whatever a file system or damaged metadata may raise
        return None
    return {name: len(shape) for name, shape in found.items()} if whole and told.keys() <= TOLD else None


def _is_own(name: str, arrays: Mapping[str, int]) -> bool:
    """Whether the name is that of the metadata, or of a chunk, of one of these arrays."""
    if name in METADATA:
        return True
    array, _, rest = ("", "", name) if "" in arrays else name.partition("/")
    if array not in arrays or rest in METADATA:
        return array in arrays
    ndim, found = arrays[array], CHUNK.fullmatch(rest)
    numbers = re.split(r"[./]", found[2]) if found and found[2] else []
    return found is not None and (len(numbers) == ndim or ndim == 0 or not numbers)
