"""How a command ends: exit codes, and what is said on standard error."""

import atexit
import gc
import logging
import re
import shutil
import signal
import sys
import textwrap
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import click
from sklearn.exceptions import ConvergenceWarning

from daskgmm.errors import ClusterLostError, DataError, InUseError, OutputError, printable
from daskgmm.estimators.bayesian import BayesianGaussianMixture
from daskgmm.estimators.gaussian_mixture import GaussianMixture
from daskgmm.estimators.minibatch import MiniBatchGaussianMixture
from daskgmm.estimators.search import GaussianMixtureSearch

NOT_CONVERGED = 3  # the others are of exceptions; 2 is click's own

EXIT_CODES = """\b
Exit codes:
  0  done: converged, or the asked passes made
  1  unexpected error
  2  wrong usage, or an output that is in the way
  3  not converged; the model is written
  4  bad data: an input that is missing, unreadable or unfit; a checkpoint of
     another fit
  5  interrupted, the cluster was lost, or another process writes the
     checkpoint or OUT: with --checkpoint, run it again

An output appears under its name only once it is whole.
"""

# Parameters as messages of the library name them, outside paths and quotation marks, and what each is set to.
ESTIMATORS = (GaussianMixture, MiniBatchGaussianMixture, BayesianGaussianMixture, GaussianMixtureSearch)
PARAMETERS = {name for kind in ESTIMATORS for name in kind._get_param_names()}
# For some there is no option of that name.
PLAIN = "|".join(
    name
    for name in PARAMETERS - {"n_components", "covariance_types", "decode_cf", "feature_dim", "storage_options"}
    if "_" in name or name == "tol"
)
NAMED = re.compile(rf"(?<![\w/.'\"-])({PLAIN})(?![\w/.'-])(?:=\"(\w+)\")?")

VERBOSE = "daskgmm.verbose"
HINT = "daskgmm.hint"  # how to go on where a command is stopped


class Unexpected(click.ClickException):
    """Nothing that the user could have known."""

    exit_code = 1


class BadData(click.ClickException):
    """An input is missing, unreadable or unfit."""

    exit_code = 4


class Interrupted(click.ClickException):
    """Stopped from outside."""

    exit_code = 5


def plain(text: str) -> str:
    """A message as it may be printed: nothing in it steers a terminal, and no line of it passes for another."""
    return printable(text, keep="\n\t").rstrip().replace("\n", "\n  ")


def option(parameter: str) -> str:
    """The option for a parameter of the estimators."""
    return "--seed" if parameter == "random_state" else f"--{parameter.replace('_', '-')}"


def in_options(error: Exception | str) -> str:
    """What an error, or the text, of the library says, in the words of the command line."""
    return NAMED.sub(lambda found: " ".join(filter(None, (option(found[1]), found[2]))), str(error))


def say(text: str) -> None:
    """Print a message on standard error."""
    click.echo(wrapped(plain(text)), err=True)


def wrapped(text: str) -> str:
    """A message as a terminal shows it best, its lines broken between words; elsewhere as it is."""
    if not sys.stderr.isatty():
        return text
    lines = textwrap.TextWrapper(
        shutil.get_terminal_size().columns - 1,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(map(lines.fill, text.split("\n")))


class Command(click.Command):
    """Tells all missing options and arguments together, and what a wrong value of a choice is near to."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, list(args))
        except click.MissingParameter as error:
            missing = self._missing(ctx, list(args))
            if len(missing) < 2:
                raise
            raise click.UsageError(f"Missing {', '.join(missing)}.", ctx) from error
        except click.BadParameter as error:
            if isinstance(error.param, click.Parameter) and isinstance(error.param.type, click.Choice):
                given = re.search(r"^'(.*?)' is not one of", error.message)
                near = get_close_matches(given[1], map(str, error.param.type.choices), 1) if given else []
                vars(error).update(message=error.message + (f" Did you mean {near[0]!r}?" if near else ""))
            raise

    def _missing(self, ctx: click.Context, args: list[str]) -> list[str]:
        """What is required and not given."""
        given, _, _ = self.make_parser(ctx).parse_args(args)
        params = {param.name or "": param for param in self.get_params(ctx)}
        needed = {name for name, param in params.items() if param.required}
        if "warm_start" in params and not given.get("warm_start"):
            needed.add("n_components")
        return [
            param.get_error_hint(ctx)
            for name, param in params.items()
            if name in needed and not isinstance(given.get(name), str)
        ]


class Commands(click.Group):
    """Turns whatever ends a command into a message and an exit code, under any parent command."""

    def invoke(self, ctx: click.Context) -> Any:
        # Reads that an error leaves under way are dropped as the process ends: asyncio would call that one more.
        atexit.register(logging.getLogger("asyncio").setLevel, logging.CRITICAL)
        # Else Python ends with a search for garbage in all that Numba made, which takes a second.
        atexit.register(gc.freeze)
        try:
            return self._answered(ctx)
        except click.ClickException as error:
            vars(error).update(message=plain(error.message))
            told = wrapped(f"Error: {error.format_message()}").removeprefix("Error: ")
            vars(error).update(format_message=lambda: told)
            raise

    def _answered(self, ctx: click.Context) -> Any:
        try:
            # Batch systems send SIGTERM.
            with handled(signal.SIGTERM, signal.default_int_handler), _plain_warnings():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            raise Interrupted(f"Interrupted. {ctx.meta.get(HINT, '')}".rstrip()) from None
        except ClusterLostError as error:
            raise Interrupted(f"{in_options(error)} {ctx.meta.get(HINT, '')}".rstrip()) from error
        except InUseError as error:
            raise Interrupted(f"{error} Wait until it has ended, or name another.") from error
        except OutputError as error:
            raise click.UsageError(str(error)) from error
        except (DataError, FileNotFoundError) as error:
            raise BadData(in_options(error)) from error
        except BrokenPipeError:  # whoever reads the results has enough: click ends in silence
            raise
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            if ctx.meta.get(VERBOSE):
                say(traceback.format_exc())
            else:
                told += "\nRun again with --verbose to see where."
            raise Unexpected(told) from error


@contextmanager
def handled(number: signal.Signals, handler: Any) -> Iterator[None]:
    """Have a signal handled by something else meanwhile. Only the main thread may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Collect Python's warnings, and tell each once, without file names and source lines."""
    with warnings.catch_warnings(record=True) as seen:
        try:
            yield
        finally:
            for message in dict.fromkeys(str(w.message) for w in seen if not _is_outcome(w)):
                say(f"Warning: {message}")


def _is_outcome(warning: warnings.WarningMessage) -> bool:
    """Whether the exit code says it already."""
    return issubclass(warning.category, ConvergenceWarning) and "did not converge" in str(warning.message)
