"""A Zarr array that is written whole or not at all, and takes the place of nothing but another array."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import zarr
from fsspec.implementations.local import LocalFileSystem
from zarr.errors import NodeNotFoundError

from daskgmm.errors import InUseError, OutputError
from daskgmm.store.aside import aside, check_writable
from daskgmm.store.lock import locked
from daskgmm.store.places import locate

METADATA = {"zarr.json", ".zarray", ".zattrs"}
CHUNK = re.compile(r"(c/|c\.)?(\d+(?:[./]\d+)*)|c")  # the last, of an array without dimensions
WRITER = "daskgmm predict"  # as arrays say who has written them


@dataclass(frozen=True)
class Claim:
    """A place for an array, whose only writer the holder is."""

    place: str
    options: dict[str, Any] | None
    overwrite: bool
    check: Callable[[], None]  # raises where another has taken over

    @contextmanager
    def new(self, **layout: Any) -> Iterator[Any]:
        """A Zarr array that is found at the place once the block ends well, and not at all if it fails.

        On a local file system it grows beside its place, and is put there in one step, in exchange for an array
        that was there. On a URL it grows in place: the array that was there is removed first, and the attribute
        ``complete`` becomes true at the end.
        """
        how: Any = {"attributes": {"complete": False, "writer": WRITER}, **layout}
        how["config"] = {"write_empty_chunks": True}  # a chunk that is missing was never written
        fs, path = locate(self.place, self.options)
        if isinstance(fs, LocalFileSystem):
            with aside(path, folder=True) as new:
                array = zarr.create_array(new, **how)
                yield array
                array.attrs["complete"] = True
                self.refuse_others()  # that came meanwhile
            return
        self.refuse_others()
        try:
            self._remove(fs, path)
            array = zarr.create_array(self.place, storage_options=self.options, **how)
        except Exception as error:  # whatever a file system may raise
            raise OutputError(f"{self.place} cannot be written: {error}") from error
        try:
            yield array
            self.check()
            array.attrs["complete"] = True
        except InUseError:  # what is there is another's
            raise
        except BaseException:
            with suppress(Exception):  # the first failure is the one to tell
                self.check()
                self._remove(fs, path)
            raise

    def refuse_others(self) -> None:
        """Raise `OutputError` for what is there, unless it is an array that may be replaced, and that alone."""
        fs, path = locate(self.place, self.options)
        local = isinstance(fs, LocalFileSystem)
        fs.invalidate_cache()
        if not (os.path.lexists(path) if local else fs.exists(path)):
            return
        try:
            node = zarr.open(path if local else self.place, mode="r", storage_options=self.options)
        except Exception:  # a file, a folder of anything, a damaged array
            node = None
        if not isinstance(node, zarr.Array):
            kind = "a Zarr group" if isinstance(node, zarr.Group) else "no Zarr array, or a damaged one"
            raise OutputError(
                f"{self.place} is in the way: it is {kind}, and stays. Name another place, or remove it yourself."
            )
        if foreign := next(
            (name for name, linked in _objects(fs, path) if linked or not _is_own(name, node.ndim)), None
        ):
            raise OutputError(f"{self.place}/{foreign} is in the way: it is no part of a Zarr array, and stays.")
        unfinished = node.attrs.get("writer") == WRITER and node.attrs.get("complete") is False
        if not (self.overwrite or unfinished):
            raise OutputError(f"{self.place} exists; --overwrite replaces it.")

    def _remove(self, fs: Any, path: str) -> None:
        """Remove an array at a URL, object by object; who dies on the way leaves one that is not complete."""
        fs.invalidate_cache()
        try:
            array = zarr.open_array(self.place, mode="r+", storage_options=self.options)
        except (FileNotFoundError, NodeNotFoundError):
            return
        array.attrs.update(complete=False, writer=WRITER)
        own = [name for name, _ in _objects(fs, path) if _is_own(name, array.ndim)]
        # The metadata last: chunks alone would be nobody's. One by one: `rm` takes "?" and "[" for wildcards.
        for name in sorted(own, key=lambda name: name in METADATA):
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


def _is_own(name: str, ndim: int) -> bool:
    """Whether the name is that of the metadata, or of a chunk, of a Zarr array of so many dimensions."""
    found = CHUNK.fullmatch(name)
    numbers = re.split(r"[./]", found[2]) if found and found[2] else []
    return name in METADATA or (found is not None and (len(numbers) == ndim or ndim == 0 or not numbers))
