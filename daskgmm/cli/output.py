"""What a command leaves behind: an answer on standard output, and files that are always whole."""

import json
import math
import os
import shutil
import textwrap
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import accumulate
from typing import Any

import click
import zarr
from zarr.core.sync import sync
from zarr.errors import NodeNotFoundError

from daskgmm.cli.inputs import FILE_URL, Model, is_url, waits
from daskgmm.estimators.minibatch import MiniBatchGaussianMixture

Result = Mapping[str, Any]


def show(result: Result, as_json: bool) -> None:
    """Print a result: one JSON object, or an aligned table."""
    if as_json:
        # JSON has no infinity: what was not computed is null.
        click.echo(json.dumps(_finite(dict(result)), allow_nan=False))
        return
    width = max(map(len, result)) + 2
    for name, value in result.items():
        lines = _lines(value, 79 - width)
        click.echo(f"{name.replace('_', ' '):<{width}}" + ("\n" + " " * width).join(lines))


def learnt(model: Model) -> Result:
    """What an online model has learnt; nothing for others."""
    if not isinstance(model, MiniBatchGaussianMixture):
        return {}
    standing = (
        {"n_rows_to_start": model.n_rows_to_start_}
        if waits(model)
        else {"effective_sample_size": float(model.effective_sample_size_)}
    )
    return {
        "n_samples_seen": model.n_samples_seen_,
        "n_batches_seen": model.n_batches_seen_,
        **standing,
        "next_row": model.next_row_,
    }


def check_file(out: str, overwrite: bool) -> None:
    """Refuse, before any work, a file name that cannot be written."""
    if "://" in out:
        raise click.UsageError(f"--out {out}: a model is written to a local file, not to a URL.")
    if os.path.isdir(out):
        raise click.UsageError(f"--out {out} is a directory.")
    _check_free(out, overwrite)


def check_array(out: str, overwrite: bool, options: Any, *inputs: str) -> None:
    """Refuse, before any work, a place where no array can be written without loss."""
    for place in inputs:
        if _within(out, place) or _within(place, out):
            raise click.UsageError(f"--out {out} overlaps with the input {place}.")
    if is_url(out):
        _check_url(out, overwrite, options)
        return
    _check_free(out, overwrite)
    # Whatever else is there is not ours to remove: a group, a folder of other files.
    for place in (_local(out), _partial(out)):
        if os.path.lexists(place) and not _is_array(place):
            raise click.UsageError(f"{place} is in the way: it is no Zarr array, and stays.")


@contextmanager
def new_array(out: str, options: Any, **layout: Any) -> Iterator[Any]:
    """A Zarr array that is found at ``out`` once the block ends well, and not at all if it fails.

    On a local file system it grows as ``OUT.partial`` and is renamed. On a URL its attribute
    ``complete`` becomes true at the end.
    """
    place = out if is_url(out) else _partial(out)
    array = None
    try:
        array = zarr.create_array(
            place,
            attributes={"complete": False},
            config={"write_empty_chunks": True},  # a chunk that is missing was never written
            storage_options=options,
            overwrite=True,  # what was there has been checked
            **layout,
        )
        yield array
        array.attrs["complete"] = True
        if not is_url(out):
            _replace(place, _local(out))
    except BaseException:
        with suppress(Exception):  # the first failure is the one to tell
            if not is_url(out):
                shutil.rmtree(place, ignore_errors=True)
            elif array is not None:
                sync(array.store_path.delete_dir())
        raise


def chunk_rows(blocks: tuple[int, ...]) -> int:
    """Rows of the largest equal chunks of which no two blocks share one."""
    return math.gcd(*list(accumulate(blocks))[:-1]) or max(sum(blocks), 1)


def _check_free(out: str, overwrite: bool) -> None:
    place = _local(out)
    folder = os.path.dirname(place)
    if os.path.lexists(place) and not overwrite:
        raise click.UsageError(f"{out} exists; --overwrite replaces it.")
    if not os.path.isdir(folder):
        raise click.UsageError(f"--out {out}: there is no folder {folder}.")
    if not os.access(folder, os.W_OK):
        raise click.UsageError(f"--out {out}: the folder {folder} is not writable.")


def _check_url(out: str, overwrite: bool, options: Any) -> None:
    try:
        node = zarr.open(out, mode="r", storage_options=options)
    except (FileNotFoundError, NodeNotFoundError):
        return
    except Exception as error:  # whatever a file system may raise
        raise click.UsageError(f"--out {out}: {error}") from error
    if isinstance(node, zarr.Group):
        raise click.UsageError(f"{out} is in the way: it is a Zarr group, and stays.")
    if not overwrite:
        raise click.UsageError(f"{out} exists; --overwrite replaces it.")


def _is_array(place: str) -> bool:
    with suppress(Exception):  # a file, a folder of anything
        return isinstance(zarr.open(place, mode="r"), zarr.Array)
    return False


def _local(place: str) -> str:
    """Absolute path. What a symbolic link leads to is replaced, not the link."""
    return os.path.realpath(place.removeprefix(FILE_URL))


def _partial(out: str) -> str:
    return f"{_local(out)}.partial"


def _within(place: str, other: str) -> bool:
    """Whether ``place`` is ``other`` or lies inside it."""
    a, b = (p.rstrip("/") if is_url(p) else _local(p) for p in (place, other))
    return a == b or a.startswith(b + "/")


def _replace(aside: str, place: str) -> None:
    """Rename a folder; one that was there goes only once the new one has its name."""
    if not os.path.lexists(place):
        os.rename(aside, place)
        return
    old = f"{place}.{uuid.uuid4().hex[:8]}.old"
    os.rename(place, old)
    try:
        os.rename(aside, place)
    except BaseException:
        os.rename(old, place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines(value: Any, width: int) -> list[str]:
    if isinstance(value, dict):
        value = [f"{name}={_text(entry)}" for name, entry in value.items()]
    if isinstance(value, list):
        return textwrap.wrap(", ".join(map(_text, value)), width, break_long_words=False) or ["-"]
    # An output path may be long, and is copied: never broken.
    return [f"{value:.10g}" if isinstance(value, float) and math.isfinite(value) else _text(value)]


def _text(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}" if math.isfinite(value) else "-"
    return str(value)
