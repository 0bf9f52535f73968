"""Options that commands share, and one for each parameter of the estimator."""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from numbers import Integral
from typing import Any, TypeVar

import click
from dask.utils import parse_bytes
from sklearn.utils._param_validation import Interval, StrOptions

from daskgmm.cli.failure import ESTIMATORS, VERBOSE, option
from daskgmm.estimators.bayesian import BayesianGaussianMixture
from daskgmm.estimators.minibatch import MiniBatchGaussianMixture
from daskgmm.estimators.parameters import ARRAYS, ROWWISE
from daskgmm.estimators.search import GaussianMixtureSearch
from daskgmm.model.structure import NAMES

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Command], Command]

CONSTANTS = {"True": True, "False": False, "None": None}
FLAGS: dict[str, type[Any]] = {"--online": MiniBatchGaussianMixture, "--bayesian": BayesianGaussianMixture}
BATCH, ONLINE, BAYESIAN, SEARCH = ({f.name: f for f in fields(kind) if f.metadata} for kind in ESTIMATORS)
KINDS = {"": BATCH, "Online: ": ONLINE, "Bayesian: ": BAYESIAN}
# What has another name or meaning here, or none.
APART = (
    *("n_components", "random_state", "warm_start", "variables", "storage_options", "decode_cf"),
    *("feature_dim", "verbose", "verbose_interval"),
)
NONE = "none"  # what stands for None where that is not the default
CHOICES = 8  # at most in one line of the help
READING = ("block_size", "nan_policy", "missing_chunks")  # and decode_cf, whose option is a flag
DIGESTS = (*ARRAYS, "warm_start")  # of which a checkpoint knows a hash
# What a checkpoint says of arrays that go with the rows, and their options.
OF_ROWS = {
    "sample_weight's dtype": "weights",
    **{f"{title}'s dtype": title for title in ("known", "noise", *ROWWISE)},
}


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
        try:
            pairs.append((key, _literal(text)))
        except RecursionError:
            raise click.BadParameter(f"The value of {key!r} is nested too deeply.", ctx, param) from None
    return tuple(pairs)


def _literal(text: str) -> Any:
    if text in CONSTANTS:
        return CONSTANTS[text]
    try:
        return json.loads(text)
    except ValueError:  # no JSON, or a number of too many digits
        return text


def together(*decorators: Decorator[Any]) -> Decorator[Any]:
    """One decorator of many, listed in the help in this order."""

    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def _parameter(name: str, default: str = "", kinds: Mapping[str, Any] = KINDS) -> Decorator[Any]:
    """An option for a parameter of estimators, told by its first sentences; None where it is left out."""
    told: dict[str, str] = {}
    shown: dict[str, str] = {}
    known = [(title, kind[name]) for title, kind in kinds.items() if name in kind]
    for title, found in known:
        sentence = " ".join(found.metadata["text"].split()).partition(". ")[0].rstrip(".").replace("`", "")
        told.setdefault(sentence, f"{title}{sentence}.")
        if found.default is not None:
            shown.setdefault(str(found.default), f"{title.lower() if shown else ''}{found.default}")
    help, value = " ".join(told.values()), default or "; ".join(shown.values())
    how = _kind(known[0][1].metadata["allowed"])
    if known[0][1].metadata["allowed"] == ["boolean"]:
        how = {"is_flag": True, "default": None}
    if isinstance(how.get("type"), click.Choice) and len(how["type"].choices) > CHOICES:
        how["metavar"], help = "NAME", f"{help} One of {', '.join(how['type'].choices)}."
    if name == "frozen":
        how = {"callback": names, "metavar": "NAME,NAME,..."}
    if name == "block_size":
        how = {"callback": _bytes, "metavar": "BYTES"}
    return click.option(
        f"--{name.replace('_', '-')}", name, help=help + (f"  [default: {value}]" if value else ""), **how
    )


class _NumberOr(click.FloatRange):
    """A number in a range, or one of a few words."""

    def __init__(self, words: list[str], *bounds: Any, **how: Any) -> None:
        super().__init__(*bounds, **how)
        self.words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value in self.words else super().convert(value, param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "|".join(["FLOAT", *self.words])


def _kind(allowed: Any) -> dict[str, Any]:
    """How click tells and checks what is allowed."""
    words = [word for a in allowed if isinstance(a, StrOptions) for word in sorted(a.options)]
    for a in allowed:
        if a == "array-like":
            break
        if isinstance(a, Interval) and a.type is Integral:
            return {"type": click.IntRange(a.left, a.right)}
        if isinstance(a, Interval):
            kind = click.FloatRange if not words else partial(_NumberOr, words)
            ends = {"min_open": a.closed in ("right", "neither"), "max_open": a.closed in ("left", "neither")}
            return {"type": kind(a.left, a.right, **ends)}
    if words:
        return {"type": click.Choice([*words, *([NONE] if None in allowed else [])])}
    return {"metavar": "PATH"}


def _verbose(help: str) -> Decorator[Any]:
    return click.option("-v", "--verbose", is_flag=True, callback=_set_verbose, help=help)


def _set_verbose(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    ctx.meta[VERBOSE] = value
    return value


def asked(identity: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options that go on from a checkpoint, as far as they are given, and what the rows have to be."""
    flags = [flag for flag, kind in FLAGS.items() if kind.__name__ == identity["estimator"]]
    given: dict[str, Any] = dict.fromkeys(flags, True)
    rest = {parameter: value for parameter, value in identity.items() if value is not None}
    del rest["estimator"]
    if not rest.pop("decode_cf", True):
        given["--raw"] = True
    if not flags and identity.get("acceleration") is None:
        given["--acceleration"] = NONE
    if types := rest.pop("covariance_types", None):  # of a search
        given["--covariance-type"], rest["n_components"] = types, ",".join(map(str, rest["n_components"]))
    # A search has no option of that name.
    for parameter in ((BATCH | ONLINE | BAYESIAN | SEARCH).keys() & rest.keys()) - {"feature_dim"}:
        if (value := rest.pop(parameter)) is False:  # a flag that is not given
            continue
        if isinstance(value, dict):  # what is frozen
            value = ",".join(name for name, numbers in value.items() if numbers)
        value = ",".join(value) if parameter == "variables" and not isinstance(value, str) else value
        given[option(parameter)] = f"sha256 {value}" if parameter in DIGESTS else value
    if nan := rest.pop("omit_nan", False):
        given["--nan-policy"] = "omit" if nan is True else nan
    return dict(sorted(given.items())), rest


def command(place: str, identity: Mapping[str, Any]) -> str:
    """The command that goes on from a checkpoint, but for the names of DATA, OUT and what it knows a hash of.

    For an estimator that no command fits, Python.
    """
    if (found := identity["estimator"]) not in {kind.__name__ for kind in ESTIMATORS}:
        return f"{found}(..., checkpoint={place!r}).fit(...)"
    given, rest = asked(identity)
    verb = "select" if identity["estimator"] == GaussianMixtureSearch.__name__ else "fit"
    words = ["daskgmm", verb, "DATA", "--out", "OUT", "--checkpoint", place]
    for name, values in given.items():
        for value in values if isinstance(values, list) else [values]:
            hashed = str(value).startswith("sha256 ")
            words += [name] if value is True else [name, "PATH" if hashed else str(value)]
    words += [word for title in rest.keys() & OF_ROWS.keys() for word in (option(OF_ROWS[title]), "PATH")]
    return shlex.join(words)


data = click.argument("data", metavar="DATA")
model = click.argument("model", metavar="MODEL")
weights = click.option(
    "--weights", metavar="PATH", help="Weight of each row: an array of shape (n,), of any kind that DATA may be."
)
known = click.option(
    "--known",
    metavar="PATH",
    help="Component of each row whose component is known, -1 of others: integers of shape (n,), likewise.",
)
noise = click.option(
    "--noise",
    metavar="PATH",
    help="Error variances of each row, an array of shape (n, d), or covariances, (n, d, d); of any kind that DATA "
    "may be.",
)
json_output = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
overwrite = click.option("--overwrite", is_flag=True, help="Replace an OUT that is there.")
verbose = _verbose("Tell where an unexpected error arose.")
log = _verbose("Log to standard error where it is no terminal; tell where an error arose.")


def names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Names between commas."""
    found = None if value is None else tuple(name.strip() for name in value.split(","))
    if found is not None and ("" in found or len({*found}) < len(found)):
        raise click.BadParameter(f"{value!r} is no list of different names, such as t,s.", ctx, param)
    return found


store = together(
    click.option("--array", metavar="NAME", help="Name of the array, where DATA is a group or an HDF5 file."),
    click.option(
        "--variables",
        metavar="NAME,NAME,...",
        callback=names,
        help="Arrays of one shape in the group DATA, or columns of Parquet, each of which is a feature; or names "
        "for the columns of an array that has none.",
    ),
    click.option(
        "--storage-option",
        "storage",
        metavar="KEY=VALUE",
        callback=_pairs,
        multiple=True,
        help="Option for the file system behind every URL, such as anon=true; repeatable.",
    ),
)

verbose_interval = click.option(
    "--verbose-interval",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Iterations per line that is displayed or logged.",
)

_raw = click.option(
    "--raw/--decode-cf",
    "decode_cf",
    default=None,
    callback=lambda ctx, param, raw: None if raw is None else not raw,
    help="Read the numbers of a store as they are, or as its attributes say (scale_factor, _FillValue, ...), "
    "with xarray.  [default: as in the fit, which decodes]",
)
reading = together(*(_parameter(name, "as in the fit") for name in READING), _raw)

_seed = click.option("--seed", "random_state", type=click.IntRange(0, 2**32 - 1), help="Of all random numbers.")

outlook = together(
    click.option("-k", "--n-components", type=click.IntRange(1), default=1, show_default=True, help="Components."),
    *(_parameter(name) for name in ("covariance_type", "n_factors", *READING)),
    _raw,
)

estimator = together(
    click.option(
        "-k",
        "--n-components",
        type=click.IntRange(1),
        help="Number of components.  [required without --warm-start]",
    ),
    click.option("--online", is_flag=True, help="Learn in one pass (or --max-iter) from mini-batches."),
    click.option(
        "--bayesian", is_flag=True, help="Variational inference: components that rows do not need lose them."
    ),
    *(_parameter(name) for name in BATCH | ONLINE | BAYESIAN if name not in APART),
    _raw,
    _seed,
    click.option(
        "--warm-start",
        metavar="MODEL",
        help="Go on from a saved model: its parameters, and its settings unless given here.",
    ),
)

search = together(
    click.option(
        "--covariance-type",
        "covariance_types",
        type=click.Choice(sorted(NAMES)),
        multiple=True,
        metavar="NAME",
        callback=lambda ctx, param, types: tuple(dict.fromkeys(types)),
        help="Covariance type to compare, as `daskgmm fit --help` lists them; repeatable.  [default: full]",
    ),
    *(_parameter(name, kinds={"": SEARCH}) for name in SEARCH if name not in (*APART, "covariance_types")),
    _raw,
    _seed,
)
