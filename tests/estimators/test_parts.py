"""Marginals, conditionals, regression, clusters and divergences of fitted estimators."""

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr

from daskgmm import GaussianMixture, MiniBatchGaussianMixture
from daskgmm.errors import DataError

NAMES = ("u", "g", "r")


def fitted(kind: Any = GaussianMixture, names: Any = NAMES, **settings: Any) -> Any:
    random = np.random.default_rng(0)
    a = random.normal(size=(2, 3, 3))
    model = kind.from_parameters(
        [0.4, 0.6], 2 * random.normal(size=(2, 3)), a @ np.swapaxes(a, 1, 2) + np.eye(3), feature_names=names
    )
    return model.set_params(random_state=0, **settings)


@pytest.mark.parametrize("kind", [GaussianMixture, MiniBatchGaussianMixture])
def test_marginal_is_the_density_of_some_features(kind: Any) -> None:
    model = fitted(kind, nan_policy="omit")
    part = model.marginal(["r", "u"])
    assert (type(part), [*part.feature_names_in_], part.nan_policy) == (kind, ["r", "u"], "omit")
    np.testing.assert_array_equal(part.means_, model.means_[:, [2, 0]])
    # Draws of the whole have the density of the part: its integral, by Monte Carlo, is that of a histogram.
    x, _ = model.sample(20_000)
    values = pd.DataFrame(x[:, [2, 0]], columns=["r", "u"])
    drawn, _ = part.sample(20_000)
    own = part.score_samples(pd.DataFrame(drawn, columns=["r", "u"]))
    theirs = part.score_samples(values)
    assert abs(own.mean() - theirs.mean()) < 4 * np.sqrt(2 / 20_000) * own.std()
    np.testing.assert_array_equal(model.marginal("g").covariances_[:, 0, 0], model.covariances_[:, 1, 1])


def test_conditional_and_marginal_make_the_whole() -> None:
    model, x = fitted(names=None), np.array([[0.3, -1.0, 2.0]])
    rest = model.conditional({1: -1.0})
    both = model.marginal(1).score_samples(x[:, [1]]) + rest.score_samples(x[:, [0, 2]])
    np.testing.assert_allclose(both, model.score_samples(x), rtol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda m: m.marginal("z"), "must be different"),
        (lambda m: m.marginal([0, "u"]), "must be different"),
        (lambda m: m.marginal(3), "must be different"),
        (lambda m: m.marginal([]), "must be different"),
        (lambda m: m.marginal(True), "must be different"),
        (lambda m: m.conditional({"u": np.nan}), "finite"),
        (lambda m: m.conditional(dict.fromkeys(NAMES, 0.0)), "none is left"),
        (lambda m: m.regress(np.zeros((2, 2))), "no names"),
        (lambda m: m.regress(np.zeros((2, 1)), given=["u", "g"]), "1 columns"),
        (lambda m: m.regress(np.zeros((2, 1)), given=["u"], of="u"), "needs no regression"),
        (lambda m: m.regress(pd.DataFrame({"g": [1.0]}), given=["u"]), "columns of X"),
        (lambda m: m.merged(np.zeros((2, 3)), 3), "n_clusters"),
        (lambda m: m.merged(np.zeros((2, 3)), sample_weight=np.zeros(2)), "rows that weigh"),
        (lambda m: m.kl_divergence(m, 1), "at least 2"),
    ],
)
@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_what_cannot_be_is_refused(wrong: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        wrong(fitted())


def test_regression_answers_in_kind() -> None:
    model, x = fitted(), np.random.default_rng(1).normal(size=(50, 2))
    mean, std = model.regress(x, given=["r", "u"], return_std=True)
    assert mean.shape == std.shape == (50, 1)
    for row, expected, spread in zip(x, mean, std, strict=True):
        rest = model.conditional({"r": row[0], "u": row[1]})
        np.testing.assert_allclose(rest.weights_ @ rest.means_, expected, rtol=1e-12)
        left = rest.covariances_[:, :, 0] + np.square(rest.means_ - expected)
        np.testing.assert_allclose(np.sqrt(rest.weights_ @ left), spread, rtol=1e-12)
    lazy = model.regress(da.from_array(x, chunks=(20, 2)), given=["r", "u"])
    assert isinstance(lazy, da.Array)
    assert lazy.chunks == ((20, 20, 10), (1,))
    np.testing.assert_array_equal(lazy.compute(), mean)
    np.testing.assert_array_equal(model.regress(pd.DataFrame(x, columns=["r", "u"]), of="g"), mean[:, 0])
    table = xr.DataArray(x, dims=("row", "feature"), coords={"row": np.arange(50), "feature": ["r", "u"]})
    told = model.regress(table)
    assert (told.dims, [*told["feature"].values]) == (("row", "feature"), ["g"])
    np.testing.assert_array_equal(told.values, mean)


def test_regression_after_a_fit_of_chosen_variables(tmp_path: Path) -> None:
    frame = pd.DataFrame(np.random.default_rng(2).normal(size=(60, 3)), columns=list(NAMES))
    group = zarr.create_group(tmp_path / "store.zarr")
    for name in NAMES:
        group.create_array(name, data=frame[name].to_numpy(), chunks=(20,))
    model = GaussianMixture(1, variables=["u", "g"]).fit(tmp_path / "store.zarr")
    expected = model.regress(frame[["u"]].to_numpy(), given=["u"], of="g")
    np.testing.assert_allclose(expected[0], model.conditional({"u": frame["u"][0]}).means_[0, 0], rtol=1e-12)
    for x in (tmp_path / "store.zarr", frame, frame[["u"]]):
        np.testing.assert_array_equal(model.regress(x, given=["u"], of="g"), expected)
    np.testing.assert_array_equal(model.regress(frame[["u"]], of="g"), expected)


def test_regression_leaves_out_what_the_policy_does() -> None:
    model, x = fitted(names=None, nan_policy="omit"), np.array([[0.0], [np.nan]])
    assert np.isnan(model.regress(x, given=[0])).tolist() == [[False, False], [True, True]]
    with pytest.raises(DataError, match="NaN"):
        model.set_params(nan_policy="raise").regress(x, given=[0])


def test_components_of_one_cluster_are_merged() -> None:
    random = np.random.default_rng(3)
    # A cross of two long components, and a round one apart.
    cross = np.concatenate([random.normal(size=(500, 2)) * [5, 0.3], random.normal(size=(500, 2)) * [0.3, 5]])
    x = np.concatenate([cross, 30 + random.normal(size=(500, 2))])
    model = GaussianMixture(3, random_state=0).fit(x)
    merged = model.merged(da.from_array(x, chunks=(400, 2)), 2)
    assert merged.n_clusters == 2
    assert merged.entropies[0] < 1e-12 < merged.entropies[2]
    labels = merged.predict(x)
    assert (len({*labels[:1000]}), len({*labels[1000:]}), len({*labels})) == (1, 1, 2)
    np.testing.assert_allclose(merged.predict_proba(da.from_array(x)).compute().sum(axis=1), 1, rtol=1e-12)
    # What the clusters are is fixed, whatever becomes of the model.
    model.fit(x[:200])
    np.testing.assert_array_equal(merged.predict(x), labels)


def test_divergence_is_that_of_two_gaussians() -> None:
    p = GaussianMixture.from_parameters([1.0], [[0.0, 0.0]], [[1.0, 1.0]], "diag").set_params(random_state=0)
    q = GaussianMixture.from_parameters([1.0], [[1.0, 0.0]], [[2.0, 1.0]], "diag")
    exact = 0.5 * (np.log(2) + 2 / 2 - 1)  # ½(log σ² + (1 + δ²)/σ² − 1)
    found = p.kl_divergence(q)
    assert abs(found.value - exact) < 3 * found.error < 0.02
    assert p.kl_divergence(p) == (0.0, 0.0)
    assert p.kl_divergence(q.to_sklearn()).value == pytest.approx(found.value, rel=1e-12)
