"""``daskgmm update``: more rows into a saved online model."""

from time import perf_counter
from typing import Any

import click

from daskgmm.cli import cluster, display, inputs, options, output
from daskgmm.cli.failure import EXIT_CODES, Command, say
from daskgmm.compute.sources.paths import within
from daskgmm.errors import DataError
from daskgmm.estimators.minibatch import MiniBatchGaussianMixture

Span = tuple[int | None, int | None]


def _span(ctx: click.Context, param: click.Parameter, value: str | None) -> Span:
    """``START:STOP``, either of which may be left out."""
    if value is None:
        return None, None
    start, colon, stop = value.partition(":")
    if not colon or not all(part == "" or part.isdecimal() for part in (start, stop)):
        raise click.BadParameter(f"{value!r} is not of the form START:STOP.", ctx, param)
    first, last = (int(part) if part else None for part in (start, stop))
    if first is not None and last is not None and first >= last:
        raise click.BadParameter(f"{value!r} holds no row.", ctx, param)
    return first, last


@click.command(cls=Command, epilog=EXIT_CODES, short_help="Learn from rows that came to DATA since.")
@options.model
@options.data
@click.option("--out", required=True, metavar="OUT", help="File to write the model to: .npz; may be MODEL.")
@click.option(
    "--rows",
    metavar="START:STOP",
    callback=_span,
    help="Rows of DATA to learn from. Those learnt already are left out; those between them and START are passed "
    "over for good.  [default: from the row after the last one learnt to the end]",
)
@options.weights
@options.known
@options.noise
@options.store
@options.reading
@options.overwrite
@options.json_output
@options.log
@cluster.options
def update(
    model: str,
    data: str,
    out: str,
    rows: Span,
    weights: str | None,
    known: str | None,
    noise: str | None,
    array: str | None,
    variables: tuple[str, ...] | None,
    storage: tuple[tuple[str, Any], ...],
    overwrite: bool,
    as_json: bool,
    verbose: bool,
    where: dict[str, Any],
    **settings: Any,
) -> None:
    """Learn from rows that were added to DATA since MODEL was saved, and save it to OUT.

    MODEL comes from "fit --online", from "update", or from a stream (partial_fit). It knows how many rows it has
    learnt, and takes them for the first of DATA, so none is learnt twice: to repeat a command changes nothing.
    While it waits for the rows of its start, those of DATA join them.
    """
    place = within(data, array)
    places = inputs.Places.of(storage, variables, data, weights, known, noise)
    output.refuse_overlaps([out], [place, weights, known, noise], places.storage)
    with output.model_file(out, overwrite) as write:
        learner = _learner(model, settings, places)
        x = places.rows(place, learner)
        first, last = _pending(rows, learner.next_row_, int(x.shape[0]), data, model)
        began, spent = perf_counter(), {}
        if first < last:
            beside = places.beside(x, weights, known, noise)
            with cluster.running(**where), display.fitting(verbose, 1) as ledger:
                learner.extend(place, rows=slice(first, last), **beside)
            spent = {"accounting": ledger.to_dict()}
        write(learner)
    result = {
        "out": out,
        "first_row": first,
        "n_rows": last - first,
        **({} if inputs.waits(learner) else {"log_likelihood": float(learner.lower_bound_)}),
        **output.learnt(learner),
        "seconds": round(perf_counter() - began, 3),
        **spent,
    }
    output.show(result, as_json)


def _learner(place: str, reading: dict[str, Any], places: inputs.Places) -> MiniBatchGaussianMixture:
    """The saved model, which must be one that can learn on."""
    model = inputs.load_model(place)
    if not isinstance(model, MiniBatchGaussianMixture):
        raise DataError(
            f"{place} holds a {type(model).__name__}: only models of fit --online learn on. To make one of it: "
            f"fit --online --warm-start {place}"
        )
    return places.read_by(model, reading)


def _pending(rows: Span, learnt: int, n: int, data: str, model: str) -> tuple[int, int]:
    """The rows to learn from: those asked for that were not learnt before."""
    first, last = rows[0] if rows[0] is not None else learnt, rows[1] if rows[1] is not None else n
    if rows == (None, None) and learnt > n:
        raise DataError(
            f"{data} has {n} rows, and the model has learnt {learnt} already: rows were removed, or it learnt "
            f"from others. To learn from all of these: fit --online --warm-start {model}"
        )
    if max(last, first) > n:
        raise DataError(f"{data} has {n} rows, and row {max(last, first)} is asked for.")
    if rows == (None, None) and learnt:
        say(
            f"Beginning at row {learnt}: the rows that the model has learnt, of a store or a stream, count as the "
            "first of DATA. If they are not, fit --online --warm-start learns from all of it."
        )
    if first < learnt:
        say(f"Rows {first} to {min(last, learnt)} were learnt already, and are left out.")
    if learnt < first < last:
        say(f"Rows {learnt} to {first} are passed over.")
    first = max(first, learnt)
    if first >= last:
        say("There is nothing new to learn.")
    return first, max(first, last)
