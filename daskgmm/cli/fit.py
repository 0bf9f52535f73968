"""``daskgmm fit``."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any

import click
from sklearn.utils._param_validation import InvalidParameterError

from daskgmm.cli import cluster, display, inputs, options, output
from daskgmm.cli.failure import EXIT_CODES, HINT, NOT_CONVERGED, Command, option, say
from daskgmm.compute.sources.paths import within
from daskgmm.errors import DataError
from daskgmm.estimators.bayesian import BayesianGaussianMixture
from daskgmm.estimators.checks import array_shapes, check_settings
from daskgmm.estimators.fitting import taken_over
from daskgmm.estimators.gaussian_mixture import GaussianMixture
from daskgmm.estimators.minibatch import MiniBatchGaussianMixture
from daskgmm.estimators.parameters import ARRAYS, ROWWISE, SMALL
from daskgmm.estimators.search import GaussianMixtureSearch
from daskgmm.estimators.summary import facts

# What a warm start takes the place of.
STARTS = (*SMALL, *ROWWISE, "init_params", "n_init", "n_components", "covariance_type")


@click.command(cls=Command, epilog=EXIT_CODES, short_help="Fit a mixture to the rows of DATA.")
@options.data
@click.option("--out", required=True, metavar="OUT", help="File to write the model to: .npz.")
@options.estimator
@options.weights
@options.known
@options.noise
@options.store
@options.overwrite
@options.json_output
@options.log
@cluster.options
@options.verbose_interval
def fit(
    data: str,
    out: str,
    weights: str | None,
    known: str | None,
    noise: str | None,
    array: str | None,
    variables: tuple[str, ...] | None,
    storage: tuple[tuple[str, Any], ...],
    warm_start: str | None,
    online: bool,
    bayesian: bool,
    overwrite: bool,
    as_json: bool,
    verbose: bool,
    verbose_interval: int,
    where: dict[str, Any],
    **settings: Any,
) -> None:
    """Fit a mixture to the rows of DATA, and save it to OUT.

    DATA is the path or URL of an array of shape (n, d): a Zarr array, zipped or not, a .npy, Parquet or
    netCDF file, or a dataset in an HDF5 file, file.h5::/name. So are weights, labels and starts; labels,
    responsibilities and weights are read in step with the rows, never whole.
    """
    given = {
        name: None if value == options.NONE else value for name, value in settings.items() if value is not None
    }
    kind = _kind(online, bayesian)
    _check(given, warm_start, kind)
    place = within(data, array)
    read = [place, weights, known, noise, *(given.get(name) for name in (*ROWWISE, *ARRAYS))]
    places = inputs.Places.of(storage, variables, *read)
    output.refuse_overlaps([out, given.get("checkpoint")], read, places.storage)
    with output.model_file(out, overwrite) as write:
        x = places.rows(place)
        last = None if warm_start is None else _as(kind, inputs.load_fitted(warm_start))
        given |= _arrays(given, places, x, last)
        beside = places.beside(x, weights, known, noise)
        model = _estimator({**given, **places.settings}, last, kind, x.shape)
        cost = followed(model, place, beside, out, where, verbose, verbose_interval)
        # A warm start, a checkpoint and places of starts are of this command, not of the model.
        own = dict.fromkeys(name for name in ("checkpoint", *ROWWISE) if name in model.get_params())
        write(model.set_params(warm_start=False, **own))
    output.show({**_result(model, out, int(x.shape[0])), **cost}, as_json)
    if not online and model.max_iter > 0 and not model.converged_:
        further = f"{'--bayesian ' if bayesian else ''}--warm-start {out}"
        further = "the same command, a larger --max-iter" if "checkpoint" in given else further
        told = f"Not converged after {model.n_iter_} iterations (tol={model.tol}); the model"
        unfinished(told, further, overwrite)


def followed(
    model: inputs.Model | GaussianMixtureSearch,
    place: str,
    beside: dict[str, Any],
    out: str,
    where: dict[str, Any],
    verbose: bool,
    interval: int,
) -> dict[str, Any]:
    """Fit to what lies at a place, and say meanwhile how far it is; what that cost."""
    began = perf_counter()
    with cluster.running(**where), display.fitting(verbose, interval) as ledger, resumable(model, out):
        model.fit(place, **beside)
    return {"seconds": round(perf_counter() - began, 3), "accounting": ledger.to_dict()}


def unfinished(what: str, further: str, overwrite: bool) -> None:
    """End with the status of a fit that did not converge, and say how to go on."""
    say(f"{what} is written. To go on: {further}{'' if overwrite else ' and --overwrite'}")
    raise click.exceptions.Exit(NOT_CONVERGED)


@contextmanager
def resumable(model: inputs.Model | GaussianMixtureSearch, out: str) -> Iterator[None]:
    """Where a fit is stopped, say how to go on: from its checkpoint, or from the best model so far, now saved."""
    before = getattr(model, "mixture_", None)
    stopped = click.get_current_context().meta
    stopped[HINT] = f"The same command goes on from {model.checkpoint}."
    try:
        yield
    except BaseException:
        if model.checkpoint is None:
            stopped[HINT] = "With --checkpoint the same command would go on where it was stopped."
            if getattr(model, "mixture_", None) is not before:
                stopped[HINT] = f"{_saved_so_far(model, out)} {stopped[HINT]}"
        raise


def _saved_so_far(model: inputs.Model | GaussianMixtureSearch, out: str) -> str:
    """Save the best model so far; what to say of it."""
    best = model.best_estimator_ if isinstance(model, GaussianMixtureSearch) else model
    try:
        place = output.saved_beside(best.set_params(warm_start=False), out)
    except OSError as error:
        return f"The best model so far cannot be saved: {error}."
    return f"The best model so far is in {place}: --warm-start goes on from it."


def _kind(online: bool, bayesian: bool) -> type[inputs.Model]:
    """What the options ask for."""
    if online and bayesian:
        raise click.UsageError("Give --online or --bayesian, not both.")
    return MiniBatchGaussianMixture if online else BayesianGaussianMixture if bayesian else GaussianMixture


def _check(given: dict[str, Any], warm_start: str | None, kind: type[inputs.Model]) -> None:
    """Refuse options that do not go together."""
    if clash := [name for name in given if name not in kind._get_param_names()]:
        own = [flag for flag, other in options.FLAGS.items() if other is kind]
        others = [flag for flag, other in options.FLAGS.items() if clash[0] in other._get_param_names()]
        where = f"with {own[0]}" if own else f"without {' or '.join(others)}"
        raise click.UsageError(f"{option(clash[0])} has no meaning {where}.")
    if warm_start is None and "n_components" not in given:
        raise click.UsageError("Missing option '-k' / '--n-components'.")
    if clash := [name for name in STARTS if warm_start is not None and name in given]:
        raise click.UsageError(f"{option(clash[0])} has no meaning beside --warm-start.")
    if all(name in given for name in ROWWISE):
        raise click.UsageError("Give --labels-init or --responsibilities-init, not both.")


def _arrays(given: dict[str, Any], places: inputs.Places, x: Any, last: inputs.Model | None) -> dict[str, Any]:
    """The arrays of starts and priors: small ones read, those that go with the rows opened."""
    named = [name for name in (*ARRAYS, *ROWWISE) if name in given]
    if not named:
        return {}
    told = given if last is None else last.get_params()
    (n, d), k = x.shape, told["n_components"]
    shapes = array_shapes(k, d, told.get("covariance_type", GaussianMixture.covariance_type))
    shapes |= {"labels_init": (n,), "responsibilities_init": (n, k)}
    small = partial(_small, places, given.get("decode_cf", True))
    return {name: (small if name in ARRAYS else places.rowwise)(given[name], shapes[name]) for name in named}


def _small(places: inputs.Places, decode_cf: bool, place: str, shape: tuple[int, ...]) -> Any:
    """A small array, or the number that stands in its place where it has one value."""
    if shape:
        return places.whole(place, shape, decode_cf)
    try:
        return float(place)
    except ValueError as error:
        raise click.UsageError(f"{place!r} is no number, which a spherical covariance is.") from error


def _estimator(
    given: dict[str, Any], last: inputs.Model | None, kind: type[inputs.Model], shape: tuple[float, ...]
) -> inputs.Model:
    """The estimator to fit, its parameters checked; ``last`` is the one that it goes on from."""
    model: inputs.Model
    if last is None:
        model = kind(**given)
    else:
        names = kind._get_param_names()
        cold = dict.fromkeys(
            name for name in (*SMALL, "frozen", "checkpoint") if name in names
        )  # of the fit before
        model = last.set_params(**(cold | given), warm_start=True)
    try:
        check_settings(model, int(shape[1]) if len(shape) == 2 else None)
    except InvalidParameterError as error:
        raise click.UsageError(str(error)) from error
    except ValueError as error:
        raise DataError(str(error)) from error
    return model


def _as(kind: type[inputs.Model], model: inputs.Model) -> inputs.Model:
    """A model as one of this kind, with its parameters and the settings that mean the same to both."""
    if isinstance(model, kind):
        return model
    if kind is BayesianGaussianMixture:
        raise DataError(
            f"--bayesian goes on from a posterior, and the model is a {type(model).__name__}: it has none."
        )
    own: inputs.Model = taken_over(kind, model)
    return own


def _result(model: inputs.Model, out: str, n_rows: int) -> dict[str, Any]:
    told = facts(model)
    return {
        "out": out,
        "n_rows": n_rows,
        "total_weight": getattr(model, "total_weight_", None),  # online EM has no such sum
        "n_features": model.n_features_in_,
        "n_components": model.n_components,
        "covariance_type": model.covariance_type,
        "converged": told.get("converged", None if model.n_iter_ else False),
        "n_iter": model.n_iter_,
        "n_passes": model.n_passes_,
        **output.bound(model),
        **({"background_weight": model.background_weight_} if getattr(model, "background", False) else {}),
        **output.learnt(model),
    }
