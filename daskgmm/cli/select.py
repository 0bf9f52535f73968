"""``daskgmm select``."""

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import click
from sklearn.utils._param_validation import InvalidParameterError

from daskgmm.cli import cluster, display, inputs, options, output
from daskgmm.cli.failure import EXIT_CODES, NOT_CONVERGED, Command, say
from daskgmm.cli.fit import resumable
from daskgmm.compute.sources.paths import within
from daskgmm.estimators.checks import check_settings
from daskgmm.estimators.search import GaussianMixtureSearch
from daskgmm.store.aside import aside, check_writable


def _sizes(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """``1:10``, both ends included, or ``2,4,8``."""
    first, colon, last = value.partition(":")
    try:
        sizes = tuple(range(int(first), int(last) + 1)) if colon else tuple(map(int, value.split(",")))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1 or len({*sizes}) < len(sizes):
        raise click.BadParameter(f"{value!r} names no numbers of components, as 1:10 and 2,4,8 do.", ctx, param)
    return sizes


@click.command(cls=Command, epilog=EXIT_CODES)
@options.data
@click.option(
    "-k",
    "--n-components",
    required=True,
    metavar="FIRST:LAST",
    callback=_sizes,
    help="Numbers of components to compare: 1:10 is 1, 2, ... 10; or a list, 2,4,8.",
)
@click.option("--out", required=True, metavar="OUT", help="File to write the best model to: .npz.")
@click.option("--table", metavar="TABLE", help="File to write the table of all candidates to: .csv.")
@options.search
@options.weights
@options.known
@options.noise
@options.store
@options.overwrite
@options.json_output
@options.log
@cluster.options
@options.verbose_interval
def select(
    data: str,
    out: str,
    table: str | None,
    weights: str | None,
    known: str | None,
    noise: str | None,
    array: str | None,
    variables: tuple[str, ...] | None,
    storage: tuple[tuple[str, Any], ...],
    overwrite: bool,
    as_json: bool,
    verbose: bool,
    verbose_interval: int,
    where: dict[str, Any],
    **settings: Any,
) -> None:
    """Choose the number of components, and the covariance type, for the rows of DATA; save the best model to OUT.

    Every number of components with every covariance type is fitted, all of them in the same passes over DATA.
    """
    given = {name: value for name, value in settings.items() if value not in (None, ())}
    place = within(data, array)
    read = [place, weights, known, noise]
    places = inputs.Places.of(storage, variables, *read)
    output.refuse_overlaps([out, table, given.get("checkpoint")], read, places.storage)
    with output.model_file(out, overwrite) as write, _table_file(table, overwrite) as write_table:
        x = places.rows(place)
        beside = {"sample_weight": weights, "known": known}
        beside = {name: places.rowwise(value, x.shape[:1]) for name, value in beside.items()}
        search = _search({**given, **places.settings})
        began = perf_counter()
        with (
            cluster.running(**where),
            display.fitting(verbose, verbose_interval) as ledger,
            resumable(search, out),
        ):
            search.fit(place, **beside, noise=noise)
        seconds = perf_counter() - began
        write_table(search)
        write(search.best_estimator_)
    result = {"out": out, "n_rows": int(x.shape[0]), **_result(search), "seconds": round(seconds, 3)}
    result["accounting"] = ledger.to_dict()
    output.show({**result, "table": _rows(search)} if as_json else result, as_json)
    if not as_json:
        click.echo("\n" + "\n".join(_lines(search)))
    if not search.converged_ and search.max_iter > 0:
        told = f"The best candidate is not converged after {search.n_iter_} iterations; it is written."
        say(f"{told} To go on: the same command, a larger --max-iter{'' if overwrite else ' and --overwrite'}")
        raise click.exceptions.Exit(NOT_CONVERGED)


def _search(given: dict[str, Any]) -> GaussianMixtureSearch:
    """The estimator, its parameters checked."""
    search = GaussianMixtureSearch(**given)
    try:
        check_settings(search, None)
    except InvalidParameterError as error:
        raise click.UsageError(str(error)) from error
    return search


@contextmanager
def _table_file(place: str | None, overwrite: bool) -> Iterator[Any]:
    """What writes the table of a search, whole or not at all; a name that cannot be written is told at once."""

    def write(search: GaussianMixtureSearch) -> None:
        if place is None:
            return
        with aside(place, replace=overwrite) as new, open(new, "w", newline="", encoding="utf-8") as file:
            rows = _rows(search)
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)

    if place is not None:
        if "://" in place or os.path.isdir(place):
            raise click.UsageError(f"--table {place}: it is written to a local file.")
        output.refuse_existing(place, overwrite)
        check_writable(place)
    yield write


def _rows(search: GaussianMixtureSearch) -> list[dict[str, Any]]:
    """The table, row by row."""
    results = search.results_
    return [
        dict(zip(results, row, strict=True)) for row in zip(*(v.tolist() for v in results.values()), strict=True)
    ]


def _lines(search: GaussianMixtureSearch) -> Iterator[str]:
    """The table as text; a star marks the best."""
    held = search.criterion == "held_out"
    names = ("bic", "aic", "icl", *(["held_out"] if held else []), "log_likelihood")
    form = dict.fromkeys(("bic", "aic", "icl"), ("10", "10.1f")) | {"held_out": ("12", "12.8g")}
    form |= {"log_likelihood": ("14", "14.8g")}  # in all 80 columns, and a space even where a number is long
    heads = "".join(f" {name.replace('_', ' '):>{form[name][0]}}" for name in names)
    yield f"{'k':>4}  {'type':<9}{heads}  end, iterations"
    for number, row in enumerate(_rows(search)):
        star = "*" if number == search.best_index_ else " "
        numbers = "".join(f" {row[name]:>{form[name][1]}}" for name in names)
        end = "dropped" if row["dropped"] else "converged" if row["converged"] else "not converged"
        yield f"{star}{row['n_components']:>3}  {row['covariance_type']:<9}{numbers}  {end}, {row['n_iter']}"


def _result(search: GaussianMixtureSearch) -> dict[str, Any]:
    best = _rows(search)[search.best_index_]
    named = ("n_components", "covariance_type", "log_likelihood", "bic", "aic", "icl", "held_out")
    return {
        "n_features": search.n_features_in_,
        "criterion": search.criterion,
        **{name: best[name] for name in named},
        "converged": bool(search.converged_),
        "n_iter": search.n_iter_,
        "n_passes": search.n_passes_,
    }
