"""What a command leaves behind: an answer on standard output, and files that are always whole."""

import json
import math
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from itertools import accumulate, combinations, count, product
from typing import Any

import click

from daskgmm.cli.failure import say
from daskgmm.cli.inputs import Model, waits
from daskgmm.compute.sources.paths import ENDINGS
from daskgmm.errors import InUseError, OutputError, printable
from daskgmm.estimators.minibatch import MiniBatchGaussianMixture
from daskgmm.estimators.summary import facts
from daskgmm.store.aside import aside, check_writable
from daskgmm.store.lock import locked
from daskgmm.store.places import Options, locate, overlap

Result = Mapping[str, Any]
TITLES = {
    "remaining": "left to gain",
    "n_iter": "iterations",
    "beside": "fitted with",
    "last_log_likelihood": "log likelihood of the last rows",
}


def show(result: Result, as_json: bool) -> None:
    """Print a result: one JSON object, with what it cost, or an aligned table."""
    if as_json:
        # JSON has no infinity: what was not computed is null.
        click.echo(json.dumps(_finite(dict(result)), allow_nan=False))
        return
    result = {name: value for name, value in result.items() if name != "accounting"}
    result = {TITLES.get(name, name).removeprefix("n_").replace("_", " "): value for name, value in result.items()}
    width = max(map(len, result)) + 2
    for name, value in result.items():
        lines = _lines(value, 79 - width)
        click.echo(f"{name:<{width}}" + ("\n" + " " * width).join(lines))


def learnt(model: Model) -> Result:
    """What an online model has learnt; what is left to another."""
    if not isinstance(model, MiniBatchGaussianMixture):
        return {"remaining": float(model.remaining_)}
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


def bound(model: Model) -> Result:
    """What the last E-step of a fit found; of inference, the evidence of all rows together."""
    told, name = facts(model), "log_likelihood" if hasattr(model, "bic") else "lower_bound"
    if "last_log_likelihood" in told:
        name = "last_log_likelihood"
    return {name: told.get(name)}


def standing(model: Model) -> Result:
    """What to say of a model that no fit has made, or not yet."""
    if waits(model):
        return {"status": f"no mixture yet: {model.n_rows_to_start_} more rows are needed to seed it"}
    if isinstance(model, MiniBatchGaussianMixture) and not model.n_passes_ and model.n_batches_seen_:
        return {"status": "learnt from a stream, batch by batch: no passes, and no convergence"}
    return {}


@contextmanager
def model_file(out: str, overwrite: bool) -> Iterator[Callable[[Model], None]]:
    """Be the only writer of a model, which is what this gives; refuses, before any work, a bad file name."""
    if "://" in out:
        raise click.UsageError(f"--out {out}: a model is written to a local file, not to a URL.")
    if os.path.isdir(out):
        raise click.UsageError(f"--out {out} is a directory.")
    if os.path.lexists(out) and not os.path.isfile(out):
        raise click.UsageError(f"--out {out} is no regular file.")
    check_writable(out)
    with locked(out, say, None, "output", InUseError):
        refuse_existing(out, overwrite)
        yield partial(_write, out, overwrite)


def refuse_existing(out: str, overwrite: bool) -> None:
    """Refuse to replace a file unless that is asked for."""
    if os.path.lexists(out) and not overwrite:
        raise click.UsageError(f"{out} exists; --overwrite replaces it.")


def _write(out: str, overwrite: bool, model: Model) -> None:
    """Save a model; where something has come that may not be replaced, beside it."""
    try:
        with aside(out, replace=overwrite) as new:
            model.save(new)
    except FileExistsError as error:
        raise click.UsageError(
            f"{out} exists by now, and stays: the model is in {saved_beside(model, out)}."
        ) from error


def refuse_overlaps(outputs: Iterable[str | None], inputs: Iterable[str | None], options: Options = None) -> None:
    """Refuse an output that is, holds or lies in an input or another output, whatever they are called."""
    written, read = ([place for place in places if place is not None] for places in (outputs, inputs))
    if "" in written:
        raise click.UsageError("--out needs a name.")
    if "-" in written:
        raise click.UsageError("--out -: an output is a file or a store, never standard output. Name a path.")
    for out in written:
        if locate(out, options, OutputError)[0].protocol == "memory":
            raise click.UsageError(f"{out} would be gone with this process: name a path, or the URL of a store.")
    for out, other in (*product(written, read), *combinations(written, 2)):
        if overlap(out, other, options):
            what = "input" if other in read else "output"
            raise click.UsageError(f"{out} overlaps with the {what} {other}.")


def refuse_other_format(out: str) -> None:
    """Refuse the name of a kind of file for what is a Zarr array."""
    root, ending = os.path.splitext(out.rstrip("/"))
    if ending.lower() in ENDINGS:
        raise click.UsageError(
            f"--out {out}: the answers are a Zarr array, which is no {ending} file: {root}.zarr"
        )


def saved_beside(model: Model, out: str) -> str:
    """Save what a fit has reached beside ``out``, under a name that is free; the name."""
    root, ending = os.path.splitext(out)
    for number in count(1):
        place = f"{root}.interrupted{'' if number == 1 else f'-{number}'}{ending}"
        with suppress(FileExistsError), aside(place, replace=False) as new:
            model.save(new)
            break
    return place


def chunk_rows(blocks: tuple[int, ...]) -> int:
    """Rows of the largest equal chunks of which no two blocks share one."""
    return math.gcd(*list(accumulate(blocks))[:-1]) or max(sum(blocks), 1)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines(value: Any, width: int) -> list[str]:
    if isinstance(value, dict):
        # Settings are copied: not rounded.
        value = [f"{printable(name)}={repr(e) if isinstance(e, float) else _text(e)}" for name, e in value.items()]
    if isinstance(value, list):
        joined = ", ".join(map(_text, value))
        return textwrap.wrap(joined, width, break_long_words=False, break_on_hyphens=False) or ["-"]
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
    return printable(str(value))
