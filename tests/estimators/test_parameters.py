"""Each parameter is stated once: what the documentation, the checks and the command line say of it agrees."""

import inspect
import re
from typing import Any

import click
import numpy as np
import pytest

from daskgmm import GaussianMixture, MiniBatchGaussianMixture, NormalInverseWishart
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
