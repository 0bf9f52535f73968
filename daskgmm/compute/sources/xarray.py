"""``xarray.DataArray``: the NumPy or Dask array inside it."""

from typing import Any

from daskgmm.compute.sources.base import Asked
from daskgmm.errors import DataError


def opened(value: Any, asked: Asked) -> Any:
    """The NumPy or Dask array inside a DataArray."""
    name = asked.name
    # Asked of the type: on the value, ``data`` would load a file that was opened lazily.
    if not hasattr(type(value), "data"):
        raise DataError(
            f"{name} is an xarray {type(value).__name__}, expected a DataArray. Select one "
            "variable by its name, or call .to_dataarray()."
        )
    if asked.ensure_2d and value.ndim != 2:
        raise DataError(_stack_recipe(value, name))
    if value.chunks is None and not getattr(value, "_in_memory", True):
        # Opened without chunks: ``.data`` would load the whole file.
        value = value.chunk("auto")
    return value.data


def _stack_recipe(value: Any, name: str) -> str:
    """Say how to make a DataArray two-dimensional, in its own dimension names."""
    rank = "scalar" if value.ndim == 0 else f"{value.ndim}D"
    lead = f"Expected 2D array, got {rank} array instead: dimensions {value.dims}.\n"
    if value.ndim < 2:
        return lead + f'A single feature becomes a column with {name}.expand_dims("feature", -1)'
    # Bands or variables are usually fewer than pixels or times.
    feature = min(value.dims, key=lambda dim: value.sizes[dim])
    others = ", ".join(f'"{dim}"' for dim in value.dims if dim != feature)
    sample = "sample" if "sample" not in value.dims else "stacked_sample"
    return lead + (
        f'Stack all dimensions but the features into rows, for instance with "{feature}" as '
        f'the features:\n    {name}.stack({sample}=[{others}]).transpose("{sample}", "{feature}")'
    )
