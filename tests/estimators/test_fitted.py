"""Fitted attributes: what is documented is there, what is there is documented, and means what is said."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from daskgmm import GaussianMixture, MiniBatchGaussianMixture
from tests.apart import D, K, attributes, online, rows_of

X = rows_of(0, 600)
FRAME = pd.DataFrame(X, columns=["a", "b"])
ESTIMATORS = [GaussianMixture, MiniBatchGaussianMixture]
OF_FACTORS = {"loadings_", "noise_variances_"}  # of no other covariance type
EACH = pytest.mark.parametrize("kind", ESTIMATORS)


def documented(kind: type[Any]) -> dict[str, str]:
    """Text of each attribute, by its name, in the class's own documentation."""
    doc = inspect.getdoc(kind) or ""
    (section,) = re.findall(r"^Attributes\n-+\n(.*?)\n\n\S", doc, re.S | re.M)
    return dict(re.findall(r"^(\w+)\n((?:    .*(?:\n|$))+)", section, re.M))


def fit(model: Any, x: Any) -> Any:
    return model.fit(x)


def partial_fit(model: Any, x: Any) -> Any:
    return model.partial_fit(x)


def extend(model: Any, x: Any) -> Any:
    return model.partial_fit(x[:400]).extend(x)


def through_a_file(model: Any, x: Any, place: Path) -> Any:
    fit(model, x).save(place)
    return type(model).load(place)


def from_parameters(model: Any, x: Any) -> Any:
    m, names = fit(model, x), list(x.columns) if hasattr(x, "columns") else None
    return type(m).from_parameters(m.weights_, m.means_, m.covariances_, feature_names=names)


WAYS: list[tuple[type[Any], Callable[[Any, Any], Any]]] = [
    *((kind, way) for kind in ESTIMATORS for way in (fit, from_parameters)),
    (MiniBatchGaussianMixture, partial_fit),
    (MiniBatchGaussianMixture, extend),
]


@pytest.mark.parametrize(("kind", "way"), WAYS)
def test_what_is_documented_is_there_and_nothing_else(kind: type[Any], way: Any) -> None:
    names = set(documented(kind))
    assert {"means_", "n_iter_", "feature_names_in_"} < names
    assert attributes(way(kind(K, random_state=0), FRAME)) == names - OF_FACTORS
    assert attributes(way(kind(K, random_state=0), X)) == names - OF_FACTORS - {"feature_names_in_"}


@EACH
def test_factors_have_loadings(kind: type[Any]) -> None:
    model = kind(K, covariance_type="factors", n_factors=1, random_state=0).fit(FRAME)
    assert attributes(model) == set(documented(kind))


@EACH
def test_a_file_holds_every_attribute(kind: type[Any], tmp_path: Path) -> None:
    found = through_a_file(kind(K, random_state=0), FRAME, tmp_path / "m.npz")
    assert attributes(found) == set(documented(kind)) - OF_FACTORS


@EACH
def test_nothing_is_there_before_a_fit_and_nothing_can_be_set(kind: type[Any]) -> None:
    model = kind(K)
    assert attributes(model) == set()
    model.fit(X)
    for name in documented(kind):
        with pytest.raises(AttributeError, match=name):
            setattr(model, name, 1)


def test_a_stream_that_waits_has_what_is_known_of_its_rows() -> None:
    counts = {"n_samples_seen_", "n_batches_seen_", "n_features_in_", "next_row_", "n_rows_to_start_"}
    assert attributes(online().partial_fit(X[:20])) == counts
    model = online().partial_fit(FRAME[:20])
    assert attributes(model) == counts | {"feature_names_in_"}
    assert (model.n_samples_seen_, model.n_batches_seen_, model.n_features_in_) == (20, 1, D)
    assert model.feature_names_in_.tolist() == ["a", "b"]


def test_what_a_stream_shares_with_batch_fits_is_of_the_mixture_alone() -> None:
    # All others are told by the online estimator in its own words.
    model = online().partial_fit(X)
    other = MiniBatchGaussianMixture.from_parameters(model.weights_, model.means_, model.covariances_)
    batch, own = documented(GaussianMixture), documented(MiniBatchGaussianMixture)
    shared = {name for name, text in own.items() if batch.get(name) == text}
    parameters = {"weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_"}
    assert shared == parameters | OF_FACTORS | {
        "mixture_",
        "background_weight_",
        "decoded_",
        "accounting_",
        "remaining_",
    }
    for name in parameters:
        np.testing.assert_allclose(getattr(other, name), getattr(model, name), rtol=1e-9, atol=1e-12)


def test_counts_of_a_stream() -> None:
    model = online()
    for first in range(0, 600, 100):
        model.partial_fit(X[first : first + 100])
    assert (model.n_iter_, model.n_passes_, model.lower_bounds_, model.converged_) == (0, 0, [], False)
    assert (model.n_samples_seen_, model.n_batches_seen_, model.next_row_) == (600, 6, 600)


def test_counts_of_a_fit_and_of_the_stream_after_it() -> None:
    model = online(max_iter=3).fit(X)
    passes, bounds, batches = model.n_iter_, model.lower_bounds_, model.n_batches_seen_
    held_out = 60
    assert (model.n_passes_, len(bounds)) == (passes + 1, passes)
    assert (model.n_samples_seen_, model.next_row_) == (passes * (600 - held_out), 600)
    assert model.lower_bound_ == bounds[-1]
    model.partial_fit(X[:10])
    assert (model.n_iter_, model.n_passes_, model.lower_bounds_) == (passes, passes + 1, bounds)
    assert (model.n_batches_seen_, model.next_row_) == (batches + 1, 610)


def test_the_online_fit_is_a_value_that_later_batches_leave_alone() -> None:
    model = online().partial_fit(X[:300])
    before = model.online_
    model.partial_fit(X[300:])
    assert (before.n_rows, model.online_.n_rows) == (300, 600)
    assert model.online_.published is model.mixture_
    assert model.effective_sample_size_ == model.online_.effective_rows
