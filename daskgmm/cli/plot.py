"""``daskgmm plot``."""

import os
from typing import Any

import click

from daskgmm.cli import cluster, display, inputs, options, output
from daskgmm.cli.failure import EXIT_CODES, Command
from daskgmm.compute.sources.paths import within
from daskgmm.display import ConvergenceDisplay, MixtureDisplay
from daskgmm.errors import DataError
from daskgmm.store.aside import aside

ENDINGS = (".png", ".svg", ".pdf")
KINDS = ("mixture", "convergence")


@click.command(cls=Command, epilog=EXIT_CODES, short_help="Draw MODEL, over the density of DATA.")
@options.model
@click.argument("data", metavar="[DATA]", required=False)
@click.option("--out", required=True, metavar="OUT", help="File to draw: .png, .svg or .pdf.")
@click.option(
    "--features",
    metavar="NAME,NAME,...",
    callback=options.names,
    help="Which to draw, by name or number: two, or more for a grid of pairs, or one.  [default: the first four]",
)
@click.option("--kind", type=click.Choice(KINDS), default=KINDS[0], show_default=True, help="What to draw.")
@click.option("--n-rows", type=click.IntRange(1), default=20_000, show_default=True, help="Rows of DATA to draw.")
@click.option("--dark", is_flag=True, help="On a dark background.")
@options.weights
@options.store
@options.reading
@options.overwrite
@options.json_output
@options.verbose
@cluster.options
def plot(
    model: str,
    data: str | None,
    out: str,
    features: tuple[str, ...] | None,
    kind: str,
    n_rows: int,
    dark: bool,
    weights: str | None,
    array: str | None,
    variables: tuple[str, ...] | None,
    storage: tuple[tuple[str, Any], ...],
    overwrite: bool,
    as_json: bool,
    verbose: bool,
    where: dict[str, Any],
    **settings: Any,
) -> None:
    """Draw MODEL to OUT: ellipses of its components, over the density of DATA, if that is given.

    Components are numbered as "info" lists them, and as "predict" answers. One pass over DATA draws a sample of
    its rows. "--kind convergence" draws the log-likelihood of each iteration instead, and takes no DATA.

    It needs matplotlib, which the extra "plot" brings.
    """
    place = None if data is None else within(data, array)
    places = inputs.Places.of(storage, variables, data, weights)
    if kind != KINDS[0] and (data or features):
        raise click.UsageError(f"--kind {kind} takes neither DATA nor --features.")
    output.refuse_overlaps([out], [place, weights, model], places.storage)
    pyplot = _prepared(out, overwrite)
    mixture = places.read_by(inputs.load_fitted(model), settings)
    with cluster.running(**where), pyplot.style.context("dark_background" if dark else "default"):
        if kind == KINDS[0]:
            asked = None if features is None else [int(f) if f.isdecimal() else f for f in features]
            how = {"features": asked, "n_rows": n_rows, "sample_weight": weights}
            with display.one_pass("plot"):
                figure = _drawn(MixtureDisplay, mixture, place, **how)
        else:
            figure = _drawn(ConvergenceDisplay, mixture)
        with aside(out, replace=overwrite) as new, open(new, "wb") as file:
            figure.savefig(file, format=os.path.splitext(out)[1][1:].lower(), dpi=150)
    pyplot.close(figure)
    output.show({"out": out, "kind": kind}, as_json)


def _prepared(out: str, overwrite: bool) -> Any:
    """What draws without a screen; refuses, before any work, a file that cannot be written."""
    if not out.lower().endswith(ENDINGS):
        raise click.UsageError(f"--out {out}: the ending says the format, one of {', '.join(ENDINGS)}.")
    output.refuse_existing(out, overwrite)
    try:
        import matplotlib
        from matplotlib import pyplot
    except ImportError as error:
        raise click.UsageError('plot needs matplotlib: python -m pip install "daskgmm[plot]"') from error
    matplotlib.use("agg")
    return pyplot


def _drawn(kind: Any, *arguments: Any, **how: Any) -> Any:
    """The figure; what a display refuses are wrong options, or a model that has nothing to draw."""
    try:
        return kind.from_estimator(*arguments, **how).figure_
    except DataError:
        raise
    except ValueError as error:
        raise click.UsageError(str(error)) from error
