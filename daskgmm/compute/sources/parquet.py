"""Parquet, files or folders of them: through Dask's data frames."""

from collections.abc import Sequence
from dataclasses import replace

from daskgmm.compute.sources import dask
from daskgmm.compute.sources.base import Asked, Source
from daskgmm.compute.sources.files import needed
from daskgmm.compute.sources.paths import Place, refuse_missing
from daskgmm.compute.sources.zarr import told
from daskgmm.errors import DataError


def opened(place: Place, asked: Asked) -> Source:
    """The data frame, of the columns that are asked for; nothing but its schema is read."""
    needed("pyarrow", "dataframe", place)
    frames = needed("dask.dataframe", "dataframe", place)
    columns: Sequence[str] | None = None if asked.variables is None else list(asked.variables)
    if place.inside:
        columns = [place.inside]
    fs, path = place.on_disk()
    if not fs.exists(path):
        refuse_missing(place, FileNotFoundError(place.path))
    try:
        frame = frames.read_parquet(place.path, columns=columns, storage_options=place.options)
    except Exception as error:  # whatever a file system or damaged files may raise
        raise DataError(f"{place} cannot be opened as Parquet: {told(error)}") from error
    source = dask.opened(frame[place.inside] if place.inside and not asked.ensure_2d else frame, asked)
    return replace(source, names=tuple(frame.columns))
