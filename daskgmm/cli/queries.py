"""``daskgmm predict``, ``score`` and ``info``: what a saved model answers."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import Any

import click
import dask
import numpy as np
from dask.base import get_scheduler
from dask.system import CPU_COUNT

from daskgmm.cli import cluster, display, inputs, options, output
from daskgmm.cli.failure import EXIT_CODES, Command, say
from daskgmm.compute.engines import compute
from daskgmm.compute.sources.base import Source
from daskgmm.compute.sources.labelled import labelled
from daskgmm.compute.sources.paths import within
from daskgmm.estimators.checks import label_type, share_type
from daskgmm.estimators.summary import Summary
from daskgmm.fit.online import Passes
from daskgmm.fit.run import best
from daskgmm.fit.state import State
from daskgmm.fit.variational import Inference
from daskgmm.store.arrays import Claim, claimed

LABELS, SHARES = ("smallest", "int8", "int16", "int32", "int64"), ("float64", "float32")


@click.command(cls=Command, epilog=EXIT_CODES, short_help="Write the component of each row of DATA.")
@options.data
@options.model
@options.noise
@click.option("--out", required=True, metavar="OUT", help="Zarr array or store to write: a path or URL.")
@click.option("--proba", is_flag=True, help="Write the probability of each component, (n, k).")
@click.option(
    "--dtype",
    type=click.Choice([*LABELS, *SHARES]),
    metavar="TYPE",
    help=f"Of labels one of {', '.join(LABELS)} (int8 for up to 128 components), of probabilities "
    f"{' or '.join(SHARES)}.  [default: int64, float64]",
)
@options.store
@options.reading
@options.overwrite
@options.json_output
@options.verbose
@cluster.options
def predict(
    data: str,
    model: str,
    noise: str | None,
    out: str,
    proba: bool,
    dtype: str | None,
    array: str | None,
    variables: tuple[str, ...] | None,
    storage: tuple[tuple[str, Any], ...],
    overwrite: bool,
    as_json: bool,
    verbose: bool,
    where: dict[str, Any],
    **settings: Any,
) -> None:
    """Write the most probable component of each row of DATA to OUT, block by block.

    A row that --nan-policy omit leaves out has the label -1, or NaN for probabilities. Blocks are made smaller
    where the answers take more bytes than the rows.

    OUT is a Zarr array with a value, or some, for each row. Where rows have coordinates, or several dimensions
    with names, as in stores that xarray has written, OUT is such a store, too: the variable "labels", or
    "responsibilities", along the dimensions of DATA, with their coordinates.

    OUT grows beside its place, and gets its name at the end, in one step. On a URL it grows in place,
    --overwrite removes the old one first, and the attribute "complete" of OUT becomes true at the end.
    Only an array or such a store is ever replaced, and never a folder or prefix with anything else in it.
    """
    content = "probabilities" if proba else "labels"
    place = within(data, array)
    places = inputs.Places.of(storage, variables, data, noise, out)
    output.refuse_overlaps([out], [place, noise, model], places.storage)
    with claimed(out, places.options(out), overwrite, say) as claim:
        output.refuse_other_format(out)
        mixture = places.read_by(inputs.load_fitted(model), settings)
        how = _typed(dtype, content, mixture.n_components)
        with cluster.running(**where):
            x = places.rows(place, mixture)
            result = _written(claim, mixture, x, place, places.storage, content, noise=noise, **how)
    output.show(result, as_json)


# What can be written for each row: the method that answers, the name that its answers have in xarray, and what
# stands where there is none.
ANSWERS = {
    "labels": ("predict", "labels", -1),
    "probabilities": ("predict_proba", "responsibilities", np.nan),
    "log-densities": ("score_samples", "score_samples", np.nan),
}


def _typed(dtype: str | None, content: str, k: int) -> dict[str, Any]:
    """The type of the answers, if it is given, and holds them."""
    if dtype is None:
        return {}
    try:
        label_type(dtype, k) if content == "labels" else share_type(dtype)
    except ValueError as error:
        raise click.UsageError(f"--{error}") from error
    return {"dtype": dtype}


def _written(
    claim: Claim,
    mixture: inputs.Model,
    x: Source,
    place: str,
    storage: Mapping[str, Any],
    content: str,
    **how: Any,
) -> dict[str, Any]:
    """Write the answers for rows x, block by block; what is to be told of that."""
    began = perf_counter()
    method, name, missing = ANSWERS[content]
    values = getattr(mixture, method)(place, **how)
    named = labelled(values, name, missing, place, x, storage)
    answers = values if named is None else named
    chunks = (output.chunk_rows(answers.chunks[0]), *answers.shape[1:])
    with claim.new(answers, missing, chunks) as lazy, _own_threads(), display.one_pass("predict"):
        compute(lazy)
    return {
        "out": claim.place,
        "content": content,
        "n_rows": values.shape[0],
        "n_components": mixture.n_components,
        "dtype": str(values.dtype),
        **({} if named is None else {"dims": list(named.dims)}),
        "chunks": list(chunks),
        "seconds": round(perf_counter() - began, 3),
    }


@click.command(cls=Command, epilog=EXIT_CODES, short_help="Score MODEL on the rows of DATA.")
@options.data
@options.model
@options.weights
@options.noise
@click.option("--icl", is_flag=True, help="Also the integrated completed likelihood (slower).")
@click.option("--out", metavar="OUT", help="Also write the log-density of each row: a path or URL.")
@options.store
@options.reading
@options.overwrite
@options.json_output
@options.verbose
@cluster.options
def score(
    data: str,
    model: str,
    weights: str | None,
    noise: str | None,
    icl: bool,
    out: str | None,
    array: str | None,
    variables: tuple[str, ...] | None,
    storage: tuple[tuple[str, Any], ...],
    overwrite: bool,
    as_json: bool,
    verbose: bool,
    where: dict[str, Any],
    **settings: Any,
) -> None:
    """Score MODEL on the rows of DATA, in one pass.

    The log-likelihood is the mean per unit of weight, in nats. Of AIC, BIC and ICL lower is
    better; their n is the sum of weights.

    With --out a second pass writes the log-density of each row, float64, in nats, NaN for rows left out by
    --nan-policy omit. OUT is written as by "predict".
    """
    place = within(data, array)
    places = inputs.Places.of(storage, variables, data, weights, noise, out)
    output.refuse_overlaps([out], [place, weights, noise, model], places.storage)
    mixture = places.read_by(inputs.load_fitted(model), settings)
    with ExitStack() as held:
        claim = out and held.enter_context(claimed(out, places.options(out), overwrite, say))
        if out:
            output.refuse_other_format(out)
        held.enter_context(cluster.running(**where))
        x = places.rows(place, mixture)
        result = _scored(mixture, place, int(x.shape[0]), places.rowwise(weights, x.shape[:1]), noise, icl)
        if claim:
            told = _written(claim, mixture, x, place, places.storage, "log-densities", noise=noise)
            result["out"] = told["out"]
    output.show(result, as_json)


def _scored(
    mixture: inputs.Model, place: str, n_rows: int, weights: str | None, noise: str | None, icl: bool
) -> dict[str, Any]:
    """What one pass finds."""
    began = perf_counter()
    with display.one_pass("score") as ledger:
        found = mixture.evaluate(place, weights, noise=noise, entropy=icl)
    if told := found.unfinished(mixture.remaining_):
        say(told)
    criteria = ("aic", "bic", "icl") if icl else ("aic", "bic")
    return {
        "log_likelihood": found.mean,
        "n_rows": n_rows,
        "total_weight": found.total_weight,
        **{name: getattr(found, name) for name in criteria if hasattr(mixture, name)},
        "seconds": round(perf_counter() - began, 3),
        "accounting": ledger.to_dict(),
    }


@click.command(cls=Command, epilog=EXIT_CODES, short_help="What is in a saved MODEL or a checkpoint.")
@options.model
@options.json_output
@options.verbose
def info(model: str, as_json: bool, verbose: bool) -> None:
    """Tell what is in a saved MODEL, or where the fit of a checkpoint stands."""
    mixture = inputs.load_either(model)
    if isinstance(mixture, tuple):
        told = {"checkpoint": model, **_standing(*mixture)}
        if not as_json:  # to be copied
            hashes = {name: value for name, value in told.pop("options").items() if "sha256" in str(value)}
            told |= {"goes on with": options.command(model, mixture[0]), "data": {**told.pop("data"), **hashes}}
        output.show(told, as_json)
        return
    plain = (bool, int, float, str)
    shape = ("n_components", "covariance_type")
    settings = {
        name: value
        for name, value in mixture.get_params().items()
        if isinstance(value, plain) and name not in shape
    }
    summary = None if inputs.waits(mixture) else mixture.summary()
    found = {} if summary is None else _found(mixture, summary)
    result = {
        "model": model,
        "estimator": type(mixture).__name__,
        **output.standing(mixture),
        "n_components": mixture.n_components,
        "n_features": mixture.n_features_in_,
        "covariance_type": mixture.covariance_type,
        **found,
        **output.learnt(mixture),
        **(
            {
                "weights": mixture.weights_.tolist(),
                "background_weight": summary.background,
                "components": summary.components(),
            }
            if as_json and summary
            else {}
        ),
        "feature_names": list(mixture.feature_names_in_) if hasattr(mixture, "feature_names_in_") else None,
        **({"decoded": mixture.decoded_} if found else {}),
        "settings": settings,
    }
    output.show(result, as_json)
    if summary and not as_json:
        click.echo(f"\n{summary.table}")


def _found(model: inputs.Model, summary: Summary) -> dict[str, Any]:
    """What a fit has found, in numbers."""
    return {
        "n_parameters": model.mixture_.n_parameters,
        "converged": summary.facts.get("converged"),
        "n_iter": model.n_iter_,
        "n_passes": model.n_passes_,
        **output.bound(model),
        **{name: value for name, value in summary.facts.items() if name in ("rows", "bic", "aic", "beside")},
    }


def _standing(identity: Mapping[str, Any], state: State) -> dict[str, Any]:
    """Where a fit stands, and of what it is."""
    sound = [run for run in state.runs if run.n_iter and run.failure is None]
    leader = best(sound) if sound else None
    seen = [run.run.n_rows for run in state.runs if isinstance(run, Passes)]
    given, rows = options.asked(identity)
    bound = "lower_bound" if isinstance(leader, Inference) else "log_likelihood"
    return {
        "estimator": identity["estimator"],
        "n_components": identity["n_components"],
        "covariance_type": identity.get("covariance_type", identity.get("covariance_types")),
        "n_rows": identity["rows"],
        "finished": state.done,
        "n_passes": state.n_passes,
        "n_runs": len(state.runs),
        "n_runs_ended": sum(run.done for run in state.runs),
        "n_iter": leader.n_iter if leader else 0,
        bound: leader.lower_bound if leader else None,
        **({"n_samples_seen": seen[0]} if seen else {}),
        "options": given,
        "data": rows,
    }


@contextmanager
def _own_threads() -> Iterator[None]:
    """Threads that have all ended afterwards: none writes on while a failed output is removed."""
    if get_scheduler() is not None:  # the user's own choice
        yield
        return
    workers = dask.config.get("num_workers", None) or CPU_COUNT
    with ThreadPoolExecutor(workers) as pool, dask.config.set(pool=pool):
        yield
