"""Options that commands share, and one for each parameter of the estimator."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click
from dask.utils import parse_bytes

from daskgmm.cli.failure import VERBOSE
from daskgmm.estimators.gaussian_mixture import GaussianMixture
from daskgmm.estimators.minibatch import MiniBatchGaussianMixture
from daskgmm.estimators.parameters import INIT_PARAMS
from daskgmm.model.structure import STRUCTURES

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Command], Command]

CONSTANTS = {"True": True, "False": False, "None": None}
ONLINE: dict[str, Any] = MiniBatchGaussianMixture().get_params()
DEFAULTS: dict[str, Any] = ONLINE | GaussianMixture().get_params()


def _bytes(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A number of bytes, such as "1000000" or "64 MiB"; kept as written."""
    if value is not None:
        try:
            size = int(parse_bytes(value))
        except (ValueError, OverflowError):
            size = 0
        if size < 1:
            told = f"{value!r} is no positive number of bytes, such as '64 MiB'."
            raise click.BadParameter(told, ctx, param)
    return value


def _pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[str, Any], ...]:
    """Each ``KEY=VALUE`` in two; the value as JSON or a Python constant, else as text."""
    pairs = []
    for value in values:
        key, equals, text = value.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{value!r} is not of the form KEY=VALUE.", ctx, param)
        pairs.append((key, _literal(text)))
    return tuple(pairs)


def _literal(text: str) -> Any:
    if text in CONSTANTS:
        return CONSTANTS[text]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def together(*decorators: Decorator[Any]) -> Decorator[Any]:
    """One decorator of many, listed in the help in this order."""

    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def _parameter(*names: str, help: str, default: str = "", **how: Any) -> Decorator[Any]:
    """An option for a parameter of the estimator; None where it is left out."""
    name = names[-1].lstrip("-").replace("-", "_")
    default = default or ("" if DEFAULTS[name] is None else str(DEFAULTS[name]))
    told = f"{help}  [default: {default}]" if default else help
    return click.option(*names, name, default=None, help=told, **how)


def _verbose(help: str) -> Decorator[Any]:
    return click.option("-v", "--verbose", is_flag=True, callback=_set_verbose, help=help)


def _reading(default: str = "") -> Decorator[Any]:
    return together(
        _parameter(
            "--block-size",
            metavar="BYTES",
            callback=_bytes,
            default=default,
            help="Bytes per block; a larger stored chunk stays whole.",
        ),
        _parameter(
            "--nan-policy",
            type=click.Choice(["raise", "omit"]),
            default=default,
            help='"omit" leaves rows with NaN out.',
        ),
        _parameter(
            "--missing-chunks",
            type=click.Choice(["raise", "fill"]),
            default=default,
            help='What to do where a chunk is not in the store; "fill" reads its fill value.',
        ),
    )


def _set_verbose(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    ctx.meta[VERBOSE] = value
    return value


data = click.argument("data", metavar="DATA")
model = click.argument("model", metavar="MODEL")
weights = click.option(
    "--weights", metavar="PATH", help="Weight of each row: a Zarr array or .npy file of shape (n,)."
)
json_output = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
overwrite = click.option("--overwrite", is_flag=True, help="Replace an OUT that is there.")
verbose = _verbose("Tell where an unexpected error arose.")
log = _verbose("Log to standard error where it is no terminal; tell where an error arose.")

store = together(
    click.option("--array", metavar="NAME", help="Name of the array, where DATA is a group."),
    click.option(
        "--storage-option",
        "storage",
        metavar="KEY=VALUE",
        callback=_pairs,
        multiple=True,
        help="Option for the file system behind every URL, such as anon=true; repeatable.",
    ),
)

reading = _reading("as in the fit")

estimator = together(
    click.option(
        "-k",
        "--n-components",
        type=click.IntRange(1),
        help="Number of components.  [required without --warm-start]",
    ),
    _parameter("--covariance-type", type=click.Choice(list(STRUCTURES)), help="Their structure."),
    _parameter(
        "--tol",
        type=click.FloatRange(0),
        default=f"{DEFAULTS['tol']}; online {ONLINE['tol']:g}",
        help="Converged when the mean log-likelihood changes by less; online, of held-out rows, rises by less.",
    ),
    _parameter(
        "--reg-covar",
        type=click.FloatRange(0),
        help="Added to the diagonal of every covariance.",
    ),
    _parameter(
        "--max-iter",
        type=click.IntRange(0),
        default=f"{DEFAULTS['max_iter']}; online {ONLINE['max_iter']}",
        help="EM iterations, 0 keeps the start; online, passes.",
    ),
    _parameter("--n-init", type=click.IntRange(1), help="Starts, of which the best wins."),
    _parameter("--init-params", type=click.Choice(sorted(INIT_PARAMS)), help="How to find a start."),
    _parameter("--weights-init", metavar="PATH", help="Proportions (k,) to start from."),
    _parameter("--means-init", metavar="PATH", help="Means (k, d) to start from."),
    _parameter(
        "--precisions-init",
        metavar="PATH",
        help="Inverse covariances to start from, in the shape of the covariance type.",
    ),
    _parameter("--labels-init", metavar="PATH", help="Labels (n,) of the rows to start from."),
    _parameter(
        "--responsibilities-init",
        metavar="PATH",
        help="Responsibilities (n, k) of the rows to start from.",
    ),
    click.option("--seed", "random_state", type=click.IntRange(0, 2**32 - 1), help="Of all random numbers."),
    click.option(
        "--warm-start",
        metavar="MODEL",
        help="Go on from a saved model: its parameters, and its settings unless given here.",
    ),
    _parameter(
        "--checkpoint",
        metavar="PATH",
        help="File that holds where the fit stands after every pass; the same command goes on from it.",
    ),
    _reading(),
)

online = together(
    click.option("--online", is_flag=True, help="Learn in one pass (or --max-iter) from mini-batches."),
    _parameter("--batch-size", type=click.IntRange(1), help="Online: rows of a mini-batch, at least."),
    _parameter(
        "--learning-decay",
        type=click.FloatRange(0.5, 1, min_open=True),
        help="Online: how fast steps fall.",
    ),
    _parameter("--learning-offset", type=click.FloatRange(1), help="Online: makes early steps smaller."),
    _parameter(
        "--half-life",
        type=click.FloatRange(0, min_open=True),
        help="Online: rows after which a row counts half, instead.",
    ),
    _parameter("--init-size", type=click.IntRange(1), help="Online: rows that the start is found on."),
)
