"""Each parameter is stated once: what the documentation, the checks and the command line say of it agrees."""

import inspect
import re
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from daskgmm import (
    BayesianGaussianMixture,
    GaussianMixture,
    GaussianMixtureSearch,
    MiniBatchGaussianMixture,
    NormalInverseWishart,
    load,
)
from daskgmm.cli import main

X = np.random.default_rng(0).normal(size=(60, 2))
CLASSES: tuple[Any, ...] = (GaussianMixture, MiniBatchGaussianMixture)
PAIRS = [(kind, name) for kind in CLASSES for name in inspect.signature(kind).parameters]
each_parameter = pytest.mark.parametrize(("kind", "name"), PAIRS)
each_class = pytest.mark.parametrize("kind", CLASSES)

# What is written in the documentation for a type, and an example of a value that it tells.
TYPES: dict[str, Any] = {
    "int": 3,
    "float": 1.0,
    "bool": True,
    "str": "1 MiB",
    "PathLike": "fit.npz",
    "array-like": [0.5, 0.5],
    "dict": {},
    "None": None,
    "NormalInverseWishart": NormalInverseWishart(),
    "RandomState": np.random.RandomState(0),
}
# Parameters whose rows are checked with those of X, whatever they are.
ROWWISE = ("labels_init", "responsibilities_init")
# What the command line calls by another name, or tells in its own words; and what it has no use for.
OWN = {
    "n_components": "--n-components",
    "random_state": "--seed",
    "decode_cf": "--raw",
    "variables": "--variables",
    "warm_start": "--warm-start",
    "verbose": "--verbose",
    "verbose_interval": "--verbose-interval",
}
WITHOUT = ("feature_dim", "storage_options")


def section(kind: Any, title: str) -> dict[str, tuple[str, str]]:
    """Head and text of each entry of a section of the docstring, by name."""
    doc = inspect.cleandoc(kind.__doc__)
    body = re.split(rf"^{title}\n-+\n", doc, flags=re.MULTILINE)[1]
    body = re.split(r"^\w+\n-+\n", body, flags=re.MULTILINE)[0]
    entries = re.findall(r"^(\S[^\n]*)\n((?:    [^\n]*\n?|\n)*)", body, flags=re.MULTILINE)
    return {head.partition(" : ")[0]: (head.partition(" : ")[2], text.strip()) for head, text in entries}


def allowed(types: str) -> tuple[list[str], set[str]]:
    """What is documented as allowed: words that are quoted, and names of types."""
    rest = re.sub(r"\{[^}]*\}( or )?|^ or | or $", "", types)
    return re.findall(r'"([^"]*)"', types), {*re.split(r", | or ", rest.removesuffix(" or "))} - {""}


@each_class
def test_parameters_are_documented_in_their_order_and_no_others(kind: Any) -> None:
    names = list(inspect.signature(kind).parameters)
    assert list(section(kind, "Parameters")) == names
    assert sorted(names) == list(kind().get_params())
    assert set(kind._parameter_constraints) == set(names)
    assert "{" + "parameters" not in kind.__doc__


@each_parameter
def test_a_parameter_is_documented_with_type_default_and_text(kind: Any, name: str) -> None:
    head, text = section(kind, "Parameters")[name]
    types, _, default = head.rpartition(", default=")
    assert default == repr(inspect.signature(kind).parameters[name].default) == repr(getattr(kind(), name))
    assert text.endswith(".")
    assert len(text.split()) > 1
    options, others = allowed(types)
    assert options == sorted(options)
    assert others <= set(TYPES), types
    if not others:
        assert getattr(kind(), name) in options


@each_parameter
def test_what_is_documented_is_allowed_and_all_else_is_refused(kind: Any, name: str) -> None:
    model, words = kind(), f"The '{name}' parameter of {kind.__name__} must be"
    types = section(kind, "Parameters")[name][0].rpartition(", default=")[0]
    options, others = allowed(types)
    for value in (*options, *map(TYPES.get, others)):
        kind(**{name: value})._validate_params()
    model.set_params(**{name: object()})  # __init__ and set_params only assign
    with pytest.raises((ValueError, TypeError), match=None if name in ROWWISE else words):
        model.fit(X)
    assert not hasattr(model, "means_")


OF_FACTORS = ("loadings_", "noise_variances_")


@each_class
def test_attributes_are_documented(kind: Any) -> None:
    told = section(kind, "Attributes")
    public = [name for name in dir(kind) if name.endswith("_") and not name.startswith("_")]
    assert list(told) == sorted(public)
    for name, (_, text) in told.items():
        assert text.endswith("."), name
        assert text in inspect.cleandoc(getattr(kind, name).__doc__).replace("\n", "\n    "), name
    model = kind(random_state=0).fit(X)
    assert {name for name in public if not hasattr(model, name)} == {"feature_names_in_", *OF_FACTORS}


# The command line


def option(command: str, name: str) -> click.Option | None:
    flag = OWN.get(name, "--" + name.replace("_", "-"))
    found = [p for p in main.commands[command].params if isinstance(p, click.Option) and flag in p.opts]
    return found[0] if found else None


@each_parameter
def test_fit_has_an_option_for_each_parameter_and_tells_text_and_default(kind: Any, name: str) -> None:
    found = option("fit", name)
    if name in WITHOUT:
        assert found is None
        return
    assert found is not None
    assert not found.required
    if name in OWN:
        return
    assert found.default is None or str(found.default).startswith("Sentinel")
    help, (types, text) = found.help or "", section(kind, "Parameters")[name]
    first = " ".join(text.replace("`", "").split()).partition(". ")[0].rstrip(".")
    assert first in help
    types, _, default = types.rpartition(", default=")
    if default != "None":
        shown = help.rpartition("[default: ")[2].rstrip("]").split("; ")
        assert default.strip("'") in [one.removeprefix("online: ") for one in shown]
    options, others = allowed(types)
    if options and others <= {"None"}:
        assert isinstance(found.type, click.Choice)
        assert list(found.type.choices) == [*options, *(other.lower() for other in others)]


# What a number is where the default is none, or would take long.
NUMBERS: dict[str, Any] = {
    "n_components": 2,
    "n_factors": 1,
    "max_iter": 3,
    "block_size": 500,
    "random_state": 0,
    "batch_size": 20,
    "init_size": 30,
    "half_life": 40,
    "mean_precision_prior": 1.0,
    "degrees_of_freedom_prior": 3.0,
    "weight_concentration_prior": 1.0,
    "refine": 2,
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("whole", "broken"), [(np.int64, np.float64), (np.uint16, np.float32)])
@pytest.mark.parametrize(
    "kind", [GaussianMixture, MiniBatchGaussianMixture, BayesianGaussianMixture, GaussianMixtureSearch]
)
def test_a_number_of_numpy_is_a_number(kind: Any, whole: Any, broken: Any, tmp_path: Path) -> None:
    """One at a time, as Python's: the same fit, a file that can be written and read, and one to go on from."""
    search, tried = kind is GaussianMixtureSearch, list[str]()
    common: dict[str, Any] = {"n_components": [2] if search else 2, "random_state": 0, "max_iter": 3}
    for name, (head, _) in section(kind, "Parameters").items():
        make = whole if "int" in allowed(head)[1] else broken if "float" in allowed(head)[1] else None
        default = inspect.signature(kind).parameters[name].default
        if make is None or "array-like" in allowed(head)[1] or isinstance(default, bool):
            continue
        number = make(NUMBERS.get(name, default if isinstance(default, int | float) else 1))
        more: dict[str, Any] = {**common, "checkpoint": str(tmp_path / f"{name}.npz")}
        if name == "n_factors":
            more |= {"covariance_types": ["factors"]} if search else {"covariance_type": "factors"}
        told = kind(**{**more, name: number}).fit(X)
        found = kind(**{**more, name: number.item()}).fit(X)  # from the checkpoint: of the same settings
        told, found = (getattr(model, "best_estimator_", model) for model in (told, found))
        assert np.array_equal(told.means_, found.means_), name
        told.save(tmp_path / f"{name} model.npz")
        assert np.array_equal(load(tmp_path / f"{name} model.npz").means_, told.means_), name
        tried.append(name)
    assert {"block_size", "max_iter", "random_state", "reg_covar"} <= {*tried}
