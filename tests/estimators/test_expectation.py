"""Statistics as values: added, taken away, kept in files, and made parameters of."""

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from click.testing import CliRunner

from daskgmm import DataError, Expectation, GaussianMixture, MiniBatchGaussianMixture, load
from daskgmm.cli import main
from daskgmm.errors import ModelFileError
from tests.estimators.test_known import rows
from tests.structures import KINDS

pytestmark = pytest.mark.filterwarnings("ignore:Best performing initialization")
every_kind = pytest.mark.parametrize("kind", KINDS)
SUMS = ("weight", "shift", "scatter", "log_likelihood", "total_weight", "n_rows")


def fitted(kind: Any = "full", **settings: Any) -> tuple[Any, Any, Any]:
    """A model that has not come to rest, and rows."""
    x, _, known = rows(900)
    how: dict[str, Any] = {"covariance_type": kind, "max_iter": 2, "random_state": 0, "tol": 0.0}
    return GaussianMixture(3, **(how | settings)).fit(x), x, known


def close(one: Expectation, other: Expectation, rtol: float = 1e-12) -> bool:
    """Whether two have the same sums about the same points, to rounding."""
    a, b = one.statistics, other.statistics.about(one.statistics.reference)
    for name in SUMS:
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=rtol, atol=1e-10)
    return True


@every_kind
def test_sums_are_those_of_all_rows_and_differences_give_them_back(kind: Any) -> None:
    model, x, _ = fitted(kind)
    weight = np.random.default_rng(0).choice([0.0, 1.0, 3.0], size=len(x))
    parts = [model.expectation(p, w) for p, w in zip(np.array_split(x, 5), np.array_split(weight, 5), strict=True)]
    whole = model.expectation(x, weight)
    assert close(sum(parts[1:], parts[0]), whole)
    assert close(whole - parts[3], parts[0] + parts[1] + parts[2] + parts[4])
    assert close(whole - parts[3] + parts[3], whole)
    assert whole.n_rows == np.count_nonzero(weight)
    assert whole.score == pytest.approx(model.score(x, sample_weight=weight))
    assert repr(whole) == f"Expectation({whole.n_rows} rows, 3 components, 2 features)"


@every_kind
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"prior": "weak"},
        {"background": True},
        {"frozen": "weights", "weights_init": [0.2, 0.3, 0.5]},
    ],
)
def test_a_step_from_an_expectation_is_an_iteration(kind: Any, how: Any) -> None:
    model, x, _ = fitted(kind, **how)
    again, _, _ = fitted(kind, max_iter=3, **how)
    assert model.maximise(model.expectation(x[:400]) + model.expectation(x[400:])) is model
    tolerance = 1e-6 if how.get("prior") else 1e-11  # a prior that is taken from the rows, or from their moments
    np.testing.assert_allclose(model.means_, again.means_, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(model.covariances_, again.covariances_, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(model.weights_, again.weights_, rtol=tolerance)
    assert (model.n_iter_, model.converged_) == (3, False)
    assert model.lower_bounds_ == pytest.approx(again.lower_bounds_, rel=1e-9)


def test_labels_count() -> None:
    model, x, known = fitted()
    found = model.expectation(x, known=known)
    again = model.set_params(max_iter=1, warm_start=True).fit(x, known=known).means_
    np.testing.assert_allclose(fitted()[0].maximise(found).means_, again, rtol=1e-11)


def test_a_day_comes_and_one_goes() -> None:
    model, x, _ = fitted()
    days = np.array_split(x, 3)
    parts = model.weights_, model.means_, model.covariances_
    one, other = (GaussianMixture.from_parameters(*parts) for _ in range(2))
    kept = one.expectation(days[0]) + one.expectation(days[1])
    one.maximise(kept - one.expectation(days[0]) + one.expectation(days[2]))
    other.maximise(other.expectation(np.concatenate(days[1:])))
    np.testing.assert_allclose(one.covariances_, other.covariances_, rtol=1e-10, atol=1e-11)


@every_kind
def test_files_hold_the_same_bits(kind: Any, tmp_path: Path) -> None:
    model, x, _ = fitted(kind)
    found = model.expectation(x)
    found.save(tmp_path / "day.npz")
    again = load(tmp_path / "day.npz")
    assert isinstance(again, Expectation)
    for name in (*SUMS, "reference"):
        assert np.array_equal(getattr(again.statistics, name), getattr(found.statistics, name))
    assert np.array_equal(model.maximise(again + again).means_, fitted(kind)[0].maximise(found + found).means_)
    with pytest.raises(ModelFileError, match="holds a Expectation, not a GaussianMixture"):
        GaussianMixture.load(tmp_path / "day.npz")
    result = CliRunner().invoke(main, ["info", str(tmp_path / "day.npz")])
    assert (result.exit_code, "holds an Expectation, not a model" in result.stderr) == (4, True)


def test_all_kinds_of_input_give_the_same(tmp_path: Path) -> None:
    model, x, _ = fitted()
    zarr.save(tmp_path / "x.zarr", x)
    for data in (da.from_array(x, chunks=(100, 2)), str(tmp_path / "x.zarr")):
        assert close(model.expectation(data), model.expectation(x))
    x[::7] = np.nan
    left = GaussianMixture.from_parameters(model.weights_, model.means_, model.covariances_)
    assert close(left.set_params(nan_policy="omit").expectation(x), model.expectation(x[np.isfinite(x[:, 0])]))


def test_what_cannot_be_is_refused() -> None:
    model, x, _ = fitted()
    part, whole = model.expectation(x[:100]), model.expectation(x)
    of = model.predict(x)
    some, others = model.expectation(x[of == 0]), model.expectation(x[of == 1][:20])
    for one, other in ((some, others), (part, whole), (part, part), (part, model.expectation(x[:99]) + part)):
        with pytest.raises(DataError, match="are not a part of these"):
            one - other
    for other in (fitted("diag")[0], GaussianMixture(2, random_state=0).fit(x)):
        with pytest.raises(DataError, match="other components, covariances or features"):
            whole + other.expectation(x)
        with pytest.raises(DataError, match="other components, covariances or features"):
            model.maximise(other.expectation(x))
    with pytest.raises(DataError, match="block 0, row"):
        model.expectation(np.full((4, 2), np.nan))
    with pytest.raises(DataError, match="Sample weights must contain"):
        model.expectation(x, np.zeros(len(x)))
    with pytest.raises(DataError, match="n_samples = 2"):
        model.maximise(model.expectation(x[:2]))
    with pytest.raises(ValueError, match="not fitted yet"):
        GaussianMixture(3).expectation(x)


def test_a_component_of_which_nothing_is_left_is_empty() -> None:
    x = np.concatenate([np.random.default_rng(0).normal(size=(100, 1)), np.full((50, 1), 1e6)])
    model = GaussianMixture.from_parameters([0.5, 0.5], [[0.0], [1e6]], [[[1.0]], [[1.0]]])
    left = model.expectation(x) - model.expectation(x[100:])
    assert left.weight.tolist() == pytest.approx([100, 0])
    assert model.maximise(left).means_[1, 0] == pytest.approx(1e6)
    assert not hasattr(MiniBatchGaussianMixture, "maximise")
