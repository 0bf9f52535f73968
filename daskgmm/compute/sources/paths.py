"""Paths and URLs: what lies there, and which kind of input it is."""

import os
from collections.abc import Mapping
from glob import escape as glob_escape
from glob import glob
from typing import Any, NamedTuple, NoReturn

import fsspec
import zarr
from fsspec.implementations.local import LocalFileSystem
from zarr.errors import NodeNotFoundError
from zarr.storage import FsspecStore, ZipStore

from daskgmm.compute.sources.base import Asked, Opener
from daskgmm.compute.sources.failures import told
from daskgmm.errors import DataError, printable

CHAINED = {"zip", "tar", "libarchive", "dir", "reference", "cached", "simplecache", "filecache", "blockcache"}
"""Protocols of fsspec whose URLs go on behind ``::``."""

ENDINGS: dict[str, Opener] = {}
"""By how a path or URL ends: what opens it. Any other leads to a Zarr array, unless it is a file."""
FOLDERS = (".parquet", ".parq", ".pq")
"""Those that may be folders, too."""
SIGNATURES = {b"\x89HDF\r\n\x1a\n": ".h5", b"CDF": ".nc", b"\x93NUMPY": ".npy", b"PAR1": ".parquet", b"PK": ".zip"}
"""By the first bytes of a file of any other name: what it is."""
READ_BY = {
    ".csv": "dask.dataframe.read_csv",
    ".tsv": 'dask.dataframe.read_csv(..., sep="\\t")',
    ".txt": "numpy.loadtxt or dask.dataframe.read_csv",
    ".dat": "numpy.memmap or numpy.loadtxt",
    ".json": "dask.dataframe.read_json",
    ".npz": 'numpy.load(...)["name"]',
    ".mat": "scipy.io.loadmat",
    ".feather": "pandas.read_feather",
    ".arrow": "pandas.read_feather",
    ".xlsx": "pandas.read_excel",
    ".fits": "astropy.io.fits",
    ".tif": "rioxarray.open_rasterio",
    ".tiff": "rioxarray.open_rasterio",
    ".grib": 'xarray.open_dataset(..., engine="cfgrib")',
    ".pt": "torch.load",
}
"""What reads files that are no kind of input."""


LACKING = (FileNotFoundError, IsADirectoryError, NotADirectoryError, KeyError)
"""What says that a zip file lacks an object: in fsspec before 2026.9 what zipfile raises, too."""


class Place(NamedTuple):
    """Where a file or store lies, and what is wanted in it."""

    path: str  # absolute, or a URL
    inside: str = ""  # the name of an array or a group in a file
    options: dict[str, Any] | None = None  # for the file system behind a URL

    def __str__(self) -> str:
        return f"{self.path}::/{self.inside}" if self.inside else self.path

    @property
    def is_local(self) -> bool:
        """Whether it is a path of this machine."""
        return "://" not in self.path

    def on_disk(self) -> tuple[Any, str]:
        """Its file system, of fsspec, and its path there."""
        if self.is_local:
            return LocalFileSystem(), self.path
        try:
            return fsspec.core.url_to_fs(self.path, **(self.options or {}))  # type: ignore[no-any-return]
        except Exception as error:  # not installed, not known, or whatever a file system may raise
            raise DataError(f"{self.path} cannot be opened: {told(error)}") from error


def is_file(path: str) -> bool:
    """Whether a path or URL is that of a file, in which arrays have names."""
    return os.path.splitext(path)[1].lower() in ENDINGS or os.path.isfile(os.path.expanduser(path))


def parted(text: str) -> tuple[str, str]:
    """A path or URL, and what is wanted in it: ``file.h5::/group/name`` in two."""
    path, _, inside = text.rpartition("::")
    protocol = path.rpartition("::")[2].partition("://")[0]
    if not path or "://" in inside or protocol in CHAINED or not is_file(path):
        return text, ""
    return path, inside.strip("/")


def within(place: str, name: str | None) -> str:
    """The place of a named array in a group, or in a file."""
    if name is None:
        return place
    return f"{place.rstrip('/')}{'::' if is_file(place) else ''}/{name.strip('/')}"


def located(location: Any, options: Mapping[str, Any] | None) -> tuple[Place, Opener]:
    """Where a path or URL leads, and what opens that."""
    path, inside = os.fspath(location), ""
    if "::" in path:
        path, inside = parted(path)
    if "://" in path:
        place = Place(path, inside, dict(options) if options else None)
    else:
        # Workers of a cluster may run in another directory.
        place = Place(os.path.abspath(os.path.expanduser(path)), inside)
    ending = os.path.splitext(place.path)[1].lower()
    if ending in ENDINGS and (ending in FOLDERS or not os.path.isdir(place.path)):
        return place, ENDINGS[ending]
    return place, opened


def opened_upath(value: Any, asked: Asked) -> Any:
    """What lies at a ``UPath``, with the options of its own file system."""
    place, opener = located(str(value), {**value.storage_options, **(asked.storage_options or {})})
    return opener(place, asked)


def opened(place: Place, asked: Asked) -> Any:
    """The Zarr array or group at a path or URL, to read; or what a file holds, whatever it is called.

    `FileNotFoundError` where there is none; `DataError` where a file is that is no input, and where a file system
    or the metadata fail.
    """
    if place.is_local and os.path.isfile(place.path):
        return _file(place, asked)
    try:
        return zarr.open(place.path, mode="r", storage_options=place.options)
    except (FileNotFoundError, NodeNotFoundError) as error:
        if place.is_local and any(glob(os.path.join(glob_escape(place.path), f"*{ending}")) for ending in FOLDERS):
            return ENDINGS[FOLDERS[0]](place, asked)  # of files, whatever it is called
        refuse_missing(place, error)
    except Exception as error:  # whatever a file system or damaged metadata may raise
        raise DataError(f"{place} cannot be opened: {told(error)}") from error


def node_at(location: str, options: Mapping[str, Any] | None) -> zarr.Array[Any] | zarr.Group | None:
    """The Zarr array or group at a path or URL, to read; None where there is none."""
    place, opener = located(location, options)
    if opener not in (opened, zipped):
        return None
    try:
        if opener is zipped:
            return zipped(place, None)  # type: ignore[no-any-return]
        return zarr.open(place.path, mode="r", storage_options=place.options)
    except Exception:  # nothing there, or whatever a file system or damaged metadata may raise
        return None


def zipped(place: Place, asked: Asked | None) -> Any:
    """The Zarr array or group in a zip file; its name is what is wanted in it."""
    fs, path = place.on_disk()
    if not fs.exists(path):
        refuse_missing(place)
    try:
        if place.is_local:
            return zarr.open(ZipStore(path, mode="r", read_only=True), mode="r", path=place.inside)
        url, options = f"zip://{place.inside}::{place.path}", {place.path.partition("://")[0]: place.options or {}}
        store = FsspecStore.from_url(url, storage_options=options, read_only=True, allowed_exceptions=LACKING)
        return zarr.open(store, mode="r")
    except (FileNotFoundError, NodeNotFoundError) as error:
        raise DataError(f"There is no Zarr array at {place}, in the zip file.") from error
    except Exception as error:  # no zip file, or whatever a file system or damaged metadata may raise
        raise DataError(f"{place} cannot be opened as a zipped Zarr store: {told(error)}") from error


def _file(place: Place, asked: Asked) -> Any:
    """What a local file holds, told by its first bytes."""
    try:
        ending = signed(place.path)
    except OSError as error:
        raise DataError(f"{place} cannot be opened: {told(error)}") from error
    if ending is None:
        refuse_file(place)
    return ENDINGS[ending](place, asked)


def signed(path: str) -> str | None:
    """The ending that the first bytes of a local file belong to; None for no kind of input."""
    with open(path, "rb") as file:
        head = file.read(8)
    found = next((ending for signature, ending in SIGNATURES.items() if head.startswith(signature)), None)
    return None if os.path.splitext(path)[1] == ".npz" else found


def refuse_file(place: Place) -> NoReturn:
    """Say of a file that it is no input, and what reads it."""
    reads = READ_BY.get(os.path.splitext(place.path)[1].lower())
    raise DataError(
        f"{place} is a file, and neither a Zarr store nor of a kind that is read: {', '.join(sorted(ENDINGS))}. "
        + (f"Read it with {reads}, and give" if reads else "Read it, and give")
        + " the array or data frame; or write its rows to a Zarr array."
    )


def refuse_missing(place: Place, error: Exception | None = None) -> NoReturn:
    """Say that nothing is at a place, or what is there instead."""
    if place.inside or os.path.splitext(place.path)[1].lower() in ENDINGS:
        raise FileNotFoundError(f"There is no file {printable(place.path)}.") from error
    fs, path = place.on_disk()
    try:
        if fs.isfile(path):
            refuse_file(place)
        found = sorted(name.rstrip("/").rpartition("/")[2] for name in fs.ls(path, detail=False))[:8]
    except DataError:
        raise
    except Exception:  # nothing there, or nothing that may be listed
        found = []
    listed = f" It is a folder of: {printable(', '.join(found))}." if found else ""
    raise FileNotFoundError(f"There is no Zarr array at {printable(str(place))}.{listed}") from error


def refuse_no_file(place: Place) -> None:
    """Raise where there is no file, or something else: to open a pipe may take for ever."""
    fs, path = place.on_disk()
    if not fs.exists(path):
        refuse_missing(place)
    if not fs.isfile(path):
        raise DataError(f"{place.path} is no file.")
