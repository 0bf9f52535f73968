"""``daskgmm select``."""

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from sklearn.utils._param_validation import InvalidParameterError

from daskgmm.cli import cluster, inputs, options, output
from daskgmm.cli.failure import EXIT_CODES, Command, say
from daskgmm.cli.fit import followed, unfinished
from daskgmm.compute.sources.paths import within
from daskgmm.estimators.checks import check_settings
from daskgmm.estimators.search import GaussianMixtureSearch
from daskgmm.estimators.summary import WIDTH, aligned
from daskgmm.store.aside import aside, check_writable

FORMS = {"bic": ".1f", "aic": ".1f", "icl": ".1f", "held_out": ".8g", "log_likelihood": ".8g"}


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


@click.command(cls=Command, epilog=EXIT_CODES, short_help="Choose K and the covariance type.")
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
    sizes, types = given["n_components"], given.get("covariance_types", ())
    if len(sizes) == 1 < sizes[0] and len(types) < 2:
        say(f"-k {sizes[0]} is one candidate, compared with none: -k 1:{sizes[0]} compares 1, 2, ... {sizes[0]}.")
    place = within(data, array)
    read = [place, weights, known, noise]
    places = inputs.Places.of(storage, variables, *read)
    output.refuse_overlaps([out, table, given.get("checkpoint")], read, places.storage)
    with output.model_file(out, overwrite) as write, _table_file(table, overwrite) as write_table:
        x = places.rows(place)
        beside = places.beside(x, weights, known, noise)
        search = _search({**given, **places.settings})
        cost = followed(search, place, beside, out, where, verbose, verbose_interval)
        write_table(search)
        write(search.best_estimator_)
    rows = {"n_rows": int(x.shape[0]), "total_weight": search.best_estimator_.total_weight_}
    result = {"out": out, **rows, **_result(search), **cost}
    output.show({**result, "table": _rows(search)} if as_json else result, as_json)
    if not as_json:
        click.echo("\n" + "\n".join(_lines(search)))
    if not as_json and len({*sizes}) > 1 and (most := max(sizes)) == search.best_estimator_.n_components:
        say(f"The best candidate has the most components that were compared. -k {most}:{2 * most} compares more.")
    if not search.converged_ and search.max_iter > 0:
        told = f"The best candidate is not converged after {search.n_iter_} iterations; it"
        unfinished(told, "the same command, a larger --max-iter", overwrite)


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


def _lines(search: GaussianMixtureSearch) -> list[str]:
    """The table as text, with as many criteria as fit a terminal; a star marks the best."""
    rows, decides = _rows(search), search.criterion
    stars = ["*" if number == search.best_index_ else " " for number in range(len(rows))]
    k = ["k", *(f"{star} {row['n_components']:>3}" for star, row in zip(stars, rows, strict=True))]
    types = _left("type", *(row["covariance_type"] for row in rows))
    ends = _left("end, iterations", *(f"{_end(row)}, {row['n_iter']}" for row in rows))
    numbers = {
        name: [name.replace("_", " "), *(format(row[name], form) for row in rows)]
        for name, form in FORMS.items()
        if name != "held_out" or name == decides
    }
    spare = [name for name in ("aic", "icl", "bic") if name != decides]
    for count in range(len(spare)):
        shown = [column for name, column in numbers.items() if name not in spare[:count]]
        lines = [line.rstrip() for line in aligned([k, types, *shown, ends])]
        if max(map(len, lines)) <= WIDTH:
            break
    return lines


def _left(*cells: str) -> list[str]:
    """A column whose cells begin below each other."""
    return [cell.ljust(max(map(len, cells))) for cell in cells]


def _end(row: dict[str, Any]) -> str:
    return "given up" if row["dropped"] else "converged" if row["converged"] else "not converged"


def _result(search: GaussianMixtureSearch) -> dict[str, Any]:
    best = _rows(search)[search.best_index_]
    named = ("n_components", "covariance_type", "log_likelihood", "bic", "aic", "icl", "held_out")
    return {
        "n_features": search.n_features_in_,
        "criterion": search.criterion,
        **{name: best[name] for name in named},
        **({"background_weight": search.background_weight_} if search.background else {}),
        "converged": bool(search.converged_),
        "n_iter": search.n_iter_,
        "n_passes": search.n_passes_,
    }
