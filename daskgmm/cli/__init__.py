"""The command line, ``daskgmm COMMAND``, which is ``dask gmm``, too."""

import click

import daskgmm
from daskgmm.cli.check import check
from daskgmm.cli.failure import EXIT_CODES, Commands
from daskgmm.cli.fit import fit
from daskgmm.cli.plot import plot
from daskgmm.cli.queries import info, predict, score
from daskgmm.cli.select import select
from daskgmm.cli.update import update

__all__ = ["main"]


# The name under which the `dask` command finds it.
@click.group("gmm", cls=Commands, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(daskgmm.__version__, prog_name="daskgmm")
def main() -> None:
    """Gaussian mixtures for data that does not fit in memory.

    Rows are read block by block: Zarr, HDF5, netCDF, Parquet or .npy. Results go to standard output, progress and
    messages to standard error.
    """


for _command in (check, fit, select, update, predict, score, plot, info):
    main.add_command(_command)
