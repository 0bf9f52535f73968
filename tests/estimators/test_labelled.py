"""A fit of whatever xarray holds is that of its rows; maps of answers can be stored."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from daskgmm import GaussianMixture, MiniBatchGaussianMixture

RANDOM = np.random.default_rng(0)
CUBE = RANDOM.normal(size=(3, 12, 10)) + np.where(np.arange(10) < 4, 6, 0)
CUBE[:, 2, 3:5] = np.nan  # land
ROWS = CUBE.reshape(3, -1).T
PLACES = {"y": 100.0 - np.arange(12), "x": np.arange(10) / 4}
NAMES = ["chl", "sst", "wind"]
MEANS = [[0.0, 0, 0], [6, 6, 6]]


def cube() -> xr.DataArray:
    return xr.DataArray(CUBE, dims=("band", "y", "x"), coords={"band": NAMES, **PLACES}, attrs={"units": "K"})


KINDS: dict[str, tuple[Any, str | None]] = {
    "array": (cube(), "band"),
    "array, chunked": (cube().chunk({"band": 2, "y": 5, "x": 4}), "band"),
    "array, turned": (cube().transpose("y", "band", "x").chunk({"y": 3}), "band"),
    "dataset": (cube().to_dataset("band"), None),
    "dataset, chunked": (cube().to_dataset("band").chunk({"y": 5}), None),
    "multiindex": (cube().stack(pixel=("y", "x")).transpose("pixel", "band"), None),
    "multiindex, features first": (cube().stack(pixel=("y", "x")).chunk({"pixel": 50}), "band"),
}


def fitted(kind: str, estimator: Any = GaussianMixture, **more: Any) -> Any:
    X, feature_dim = KINDS[kind]
    given = {"means_init": MEANS, "weights_init": [0.5, 0.5], "precisions_init": [np.eye(3)] * 2}
    model = estimator(2, nan_policy="omit", tol=0, max_iter=5, feature_dim=feature_dim, **given, **more)
    return model.fit(X)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_the_fit_is_that_of_the_rows_and_its_answers_are_maps(kind: str, tmp_path: Path) -> None:
    model, X = fitted(kind), KINDS[kind][0]
    plain = GaussianMixture(**{**model.get_params(), "feature_dim": None}).fit(ROWS)
    np.testing.assert_allclose(model.means_, plain.means_, rtol=1e-12)
    np.testing.assert_allclose(model.covariances_, plain.covariances_, rtol=1e-12, atol=1e-14)
    assert model.feature_names_in_.tolist() == NAMES
    labels, proba, score = model.predict(X), model.predict_proba(X), model.score_samples(X)
    for found, expected in (
        (labels, plain.predict(ROWS)),
        (proba, plain.predict_proba(ROWS)),
        (score, plain.score_samples(ROWS)),
    ):
        laid = found.transpose("y", "x", ...).sel(PLACES)
        np.testing.assert_allclose(
            laid.values, expected.reshape(12, 10, *expected.shape[1:]), rtol=1e-10, atol=1e-12
        )
        assert (found.chunks is None) == (X.chunks is None or not X.chunks)
        assert not found.attrs
    assert (labels.dtype, (labels == -1).sum(), np.isnan(score).sum()) == (np.int64, 2, 2)
    xr.Dataset({"labels": labels, "proba": proba}).to_zarr(tmp_path / "map.zarr", consolidated=False)
    again = xr.open_zarr(tmp_path / "map.zarr", consolidated=False)
    xr.testing.assert_equal(again["labels"].compute(), labels.compute())
    assert model.score(X) == pytest.approx(plain.score(ROWS), rel=1e-12)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("estimator", [GaussianMixture, MiniBatchGaussianMixture])
def test_features_are_checked_by_name(estimator: Any) -> None:
    model = fitted("array", estimator)
    with pytest.raises(ValueError, match="must be in the same order"):
        model.predict(cube()[::-1])
    with pytest.raises(ValueError, match="Feature names unseen at fit time:\n- salt"):
        model.score(cube().to_dataset("band").rename(sst="salt"))
    turned = cube().to_dataset("band")[NAMES[::-1]]  # variables of a dataset are in no order
    xr.testing.assert_equal(model.predict(turned), model.predict(cube()))
    if estimator is MiniBatchGaussianMixture:
        with pytest.raises(ValueError, match="must be in the same order"):
            model.partial_fit(cube()[::-1])
        seen = model.n_samples_seen_
        assert model.partial_fit(cube()).n_samples_seen_ == seen + 118


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_saved_model_knows_the_dimension(tmp_path: Path) -> None:
    model = fitted("array, chunked")
    model.save(tmp_path / "m.npz")
    again = GaussianMixture.load(tmp_path / "m.npz")
    assert again.feature_dim == "band"
    xr.testing.assert_identical(again.predict(cube()), model.predict(cube()))
