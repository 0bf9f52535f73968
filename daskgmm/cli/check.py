"""``daskgmm check``."""

from dataclasses import replace
from typing import Any

import click

from daskgmm.cli import cluster, inputs, options, output
from daskgmm.cli.failure import EXIT_CODES, Command, in_options, say
from daskgmm.compute.sources.paths import within
from daskgmm.errors import DataError
from daskgmm.estimators.outlook import check as looked_at
from daskgmm.model.kernels.compiling import while_compiling


@click.command(cls=Command, epilog=EXIT_CODES, short_help="What a fit of DATA would read, need and cost.")
@options.data
@options.outlook
@options.weights
@options.store
@options.json_output
@options.verbose
@cluster.options
def check(
    data: str,
    weights: str | None,
    array: str | None,
    variables: tuple[str, ...] | None,
    storage: tuple[tuple[str, Any], ...],
    as_json: bool,
    verbose: bool,
    where: dict[str, Any],
    **settings: Any,
) -> None:
    """Tell what a fit of DATA would read, need and cost, before it begins.

    One block is read, from the middle; beside it nothing but metadata, and look-ups of stored chunks.
    Times are of that block, on this machine, and for the threads that a fit would have.

    The exit code is 4 where a fit would be refused, as far as one block shows; the table says why.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    place = within(data, array)
    places = inputs.Places.of(storage, variables, data, weights)
    weight = None if weights is None else places.rowwise(weights, places.rows(place).shape[:1])
    with cluster.running(**where), while_compiling(_compiles):
        found = looked_at(place, sample_weight=weight, **given, **places.settings)
    told = replace(found, problems=tuple(map(in_options, found.problems)))
    if as_json:
        output.show(told.to_dict(), as_json)
    else:
        click.echo(str(told))
    if found.problems:
        raise DataError("A fit of these rows would be refused.")


def _compiles() -> None:
    """Say why it takes seconds; once."""
    found = click.get_current_context(silent=True)
    if found is not None and not found.meta.get("daskgmm.compiles"):
        found.meta["daskgmm.compiles"] = True
        say("Compiling the E-step, as the first fit would.")
