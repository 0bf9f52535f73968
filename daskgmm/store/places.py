"""What a path or URL leads to, under whatever name."""

import os
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import fsspec
from fsspec.implementations.cached import CachingFileSystem
from fsspec.implementations.local import LocalFileSystem

from daskgmm.compute.sources.paths import parted
from daskgmm.errors import DataError

Place: TypeAlias = str | os.PathLike[str]
Options: TypeAlias = Mapping[str, Any] | None


def locate(place: Place, options: Options = None, refusal: type[ValueError] = DataError) -> tuple[Any, str]:
    """File system and path of a local path or an fsspec URL; a ``refusal`` where there is no such system."""
    name = os.fspath(place)
    if "://" not in name:
        return LocalFileSystem(), os.path.abspath(name)
    try:
        fs, path = fsspec.core.url_to_fs(name, **(options or {}))
    except Exception as error:  # not installed, not known, or whatever a file system may raise
        raise refusal(f"{name} cannot be reached: {error}") from error
    return fs, path


def resolved(place: Place, options: Options = None) -> tuple[Any, str]:
    """The same, behind caches and links."""
    fs, path = locate(place, options)
    while isinstance(fs, CachingFileSystem):
        fs = fs.fs
    return fs, os.path.realpath(path) if isinstance(fs, LocalFileSystem) else path.strip("/")


def overlap(one: Place, other: Place, options: Options = None) -> bool:
    """Whether two places are the same, or one lies in the other, whatever they are called."""
    return any(_overlap(a, b) for a, b in product(_links(one, options), _links(other, options)))


def _links(place: Place, options: Options) -> list[tuple[Any, str]]:
    """The place, and what it lies in: ``zip://a::file:///x.zip`` in ``file:///x.zip``."""
    place = os.path.expanduser(parted(os.fspath(place))[0])
    others = place.split("::")[1:]
    return [resolved(place, options), *(resolved("::".join(others[i:]), options) for i in range(len(others)))]


def _overlap(one: tuple[Any, str], other: tuple[Any, str]) -> bool:
    (fs, a), (gs, b) = one, other
    local = isinstance(fs, LocalFileSystem)
    return type(fs) is type(gs) and (_within(a, b, local) or _within(b, a, local))


def _within(path: str, folder: str, local: bool) -> bool:
    if f"{path}/".startswith(f"{folder}/"):
        return True
    # A mount, another case, a second name of one file: what the system takes for the same.
    return local and os.path.exists(folder) and any(_same(p, folder) for p in (Path(path), *Path(path).parents))


def _same(path: Path, folder: str) -> bool:
    return os.path.exists(path) and os.path.samefile(path, folder)
