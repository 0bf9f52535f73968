"""Fits to rows that are measured with errors: extreme deconvolution of any input; what is told and refused."""

import json
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner

from daskgmm import DataError, GaussianMixture, MiniBatchGaussianMixture
from daskgmm.cli import main
from daskgmm.compute.rows import Rows
from daskgmm.model.structure import STRUCTURES
from tests.data import xdgmm
from tests.model import dense_noisy
from tests.structures import KINDS, draw_covariances, draw_mixture

FAMILIES = sorted({structure.name for structure in STRUCTURES.values()})

pytestmark = pytest.mark.filterwarnings("ignore:Best performing initialization")
EITHER = (GaussianMixture, MiniBatchGaussianMixture)
PARTS = ("weights_", "means_", "covariances_")
WIDTHS = np.array([[1.0, 0.3], [0.5, 2.0]])  # of the two components of `rows`, by feature


def rows(n: int = 600, seed: int = 0, full: bool = False) -> tuple[Any, Any]:
    """Rows of two components apart, with errors as large as these, and the errors' variances or covariances."""
    random = np.random.default_rng(seed)
    component = random.integers(2, size=n)
    noise = random.gamma(2.0, 0.25, size=(n, 2))
    x = 12 * component[:, None] + WIDTHS[component] * random.normal(size=(n, 2))
    x += np.sqrt(noise) * random.normal(size=(n, 2))
    return x, noise[:, :, None] * np.eye(2) if full else noise


def two(kind: Any = GaussianMixture, **settings: Any) -> Any:
    return kind(**{"n_components": 2, "random_state": 0, "covariance_type": "diag", **settings})


def from_start(kind: str, k: int, d: int, x: Any, **settings: Any) -> tuple[Any, Any]:
    """An estimator that is given its start, and the start."""
    weights, means = np.full(k, 1 / k), np.nan_to_num(x[:k]) + np.random.default_rng(d).normal(size=(k, d))
    values = 2 * np.asarray(draw_covariances(kind, k, d, 3), np.float64)
    own = GaussianMixture.from_parameters(weights, means, values, kind)
    how: dict[str, Any] = {"weights_init": weights, "means_init": means, "precisions_init": own.precisions_}
    how |= {"n_components": k, "covariance_type": kind, "reg_covar": 0.0, "max_iter": 20, "tol": 0.0}
    return GaussianMixture(**{**how, **settings}), (weights, means, values)


def assert_same(a: Any, b: Any, tolerance: float = 0.0) -> None:
    for name in PARTS:
        np.testing.assert_allclose(
            getattr(a, name), getattr(b, name), rtol=tolerance, atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize("seed", range(20))
def test_twenty_iterations_are_those_of_the_definitions(seed: int) -> None:
    kind, k, d, full = [*KINDS][seed % 4], 1 + seed % 3, 1 + seed % 5, seed % 8 > 3
    random = np.random.default_rng(seed)
    x = draw_mixture(kind, k, d, seed).sample(80, np.random.RandomState(seed))[0]
    noise = random.gamma(1.0, 0.5, size=x.shape)
    if full:
        a = random.normal(scale=0.5, size=(len(x), d, d))
        noise = a @ np.swapaxes(a, 1, 2)
    weight = random.choice([1.0, 2.0], size=len(x))
    model, start = from_start(kind, k, d, x, block_size=27 * 8 * d * (d if full else 1))
    model.fit(x, sample_weight=weight, noise=noise)
    *expected, trace = dense_noisy.em(x, noise, weight, start, kind, 20)
    np.testing.assert_allclose(model.lower_bounds_, trace, rtol=1e-9, atol=1e-9)
    for name, values in zip(PARTS, expected, strict=True):
        np.testing.assert_allclose(getattr(model, name), values, rtol=1e-9, atol=1e-9)
    assert np.diff(model.lower_bounds_).min(initial=0.0) >= -1e-10  # the likelihood never falls


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_no_errors_give_the_plain_fit(kind: str, full: bool) -> None:
    x = draw_mixture(kind, 3, 3, 2).sample(300, np.random.RandomState(0))[0]
    model, _ = from_start(kind, 3, 3, x)
    plain, _ = from_start(kind, 3, 3, x)
    plain.fit(x)
    model.fit(x, noise=np.zeros((300, 3, 3) if full else (300, 3)))
    assert_same(model, plain, 1e-10)
    np.testing.assert_allclose(model.lower_bounds_, plain.lower_bounds_, rtol=1e-10)


@pytest.mark.parametrize("kind", [*(name for name in FAMILIES if name not in KINDS), "factors"])
def test_families_see_through_errors(kind: Any) -> None:
    x = draw_mixture("full", 2, 3, 2).sample(300, np.random.RandomState(0))[0]
    random = np.random.default_rng(0)
    noise = random.gamma(1.0, 0.3, size=x.shape)
    how: dict[str, Any] = {"n_factors": 1} if kind == "factors" else {}
    models = [GaussianMixture(2, covariance_type=kind, tol=0.0, max_iter=10, random_state=0, **how) for _ in "abc"]
    plain, without, through = models
    plain.fit(x)
    assert_same(without.fit(x, noise=0 * noise), plain, 1e-9)
    noisy = x + np.sqrt(noise) * random.normal(size=x.shape)
    through.fit(noisy, noise=noise)
    assert np.diff(through.lower_bounds_).min() > -1e-6  # reg_covar
    assert through.score(noisy, noise=noise) > through.score(noisy)


def test_one_gaussian_with_equal_errors_is_that_of_the_closed_form() -> None:
    # The covariance of the rows is that of what is behind them plus that of the errors.
    random = np.random.default_rng(1)
    x = random.normal(size=(500, 2)) @ [[2.0, 0.5], [0.0, 1.5]]
    errors = np.array([[0.4, 0.1], [0.1, 0.3]])
    model = GaussianMixture(1, reg_covar=0.0, tol=0.0, max_iter=80).fit(x, noise=np.tile(errors, (500, 1, 1)))
    np.testing.assert_allclose(model.means_[0], x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(model.covariances_[0], np.cov(x.T, bias=True) - errors, rtol=1e-9)


def test_the_widths_behind_the_errors_are_found_in_19_of_20_seeds() -> None:
    found, plain = list[bool](), list[bool]()
    for seed in range(20):
        x, noise = rows(1_000, seed)
        # Of one variance v seen through errors s_i the information is half of the sum of 1/(v + s_i)².
        component = (x[:, 0] > 6).astype(int)
        errors = np.array(
            [np.sqrt(2 / (1 / (WIDTHS[j] ** 2 + noise[component == j]) ** 2).sum(axis=0)) for j in (0, 1)]
        )
        for given, all_within in ((noise, found), (None, plain)):
            model = two(tol="auto", max_iter=300).fit(x, noise=given)
            order = np.argsort(model.means_[:, 0])
            off = np.abs(model.covariances_[order] - WIDTHS**2) / errors
            all_within.append(bool((off < 3).all()))
    assert sum(found) >= 19
    assert sum(plain) == 0


def test_a_row_of_weight_two_is_two_rows() -> None:
    x, noise = rows(200)
    weight = np.random.default_rng(0).choice([0.0, 1.0, 2.0], size=200)
    model, _ = from_start("full", 2, 2, x)
    one, _ = from_start("full", 2, 2, x)
    count = weight.astype(int)
    x[weight == 0], noise[weight == 0] = np.nan, -1.0  # never looked at
    model.fit(x, sample_weight=weight, noise=noise)
    one.fit(np.repeat(x, count, axis=0), noise=np.repeat(noise, count, axis=0))
    assert_same(model, one, 1e-10)


@pytest.mark.parametrize("full", [False, True])
def test_noise_is_of_any_kind_that_rows_have(full: bool, tmp_path: Path) -> None:
    x, noise = rows(300, full=full)
    how: dict[str, Any] = {"block_size": 100 * 16 * (2 if full else 1)}
    expected = two(**how).fit(x, noise=noise)
    chunks = (100, *(1,) * (noise.ndim - 1))
    how_stored: Any = {"chunks": chunks, "config": {"write_empty_chunks": True}}
    store = zarr.create_array(tmp_path / "s.zarr", shape=noise.shape, dtype="f8", **how_stored)
    store[:] = noise
    np.save(tmp_path / "s.npy", noise)
    kept = [
        noise.tolist(),
        da.from_array(noise, chunks=chunks),
        store,
        str(tmp_path / "s.zarr"),
        tmp_path / "s.npy",
    ]
    kept += [xr.DataArray(noise)] + ([] if full else [pd.DataFrame(noise)])
    held = zarr.create_array(tmp_path / "x.zarr", shape=x.shape, chunks=(100, 2), dtype="f8")
    held[:] = x
    for given in kept:
        assert_same(two(**how).fit(x, noise=given), expected, 1e-12)
        for rows_too in (da.from_array(x, chunks=(100, 2)), held):
            model = two(**how).fit(rows_too, noise=given)
            assert_same(model, expected, 1e-12)
            answer = model.predict_proba(rows_too, noise=given)
            assert isinstance(answer, da.Array)
            np.testing.assert_allclose(answer, model.predict_proba(x, noise=noise), rtol=1e-10, atol=1e-12)


def test_queries_take_noise() -> None:
    x, noise = rows()
    model = two().fit(x, noise=noise)
    density = model.score_samples(x, noise=noise)
    deviations = np.sqrt(model.covariances_ + noise[:, None])  # (n, k, d)
    z = (x[:, None] - model.means_) / deviations
    logs = np.log(model.weights_) - np.log(2 * np.pi) - np.log(deviations).sum(axis=2) - 0.5 * (z**2).sum(axis=2)
    np.testing.assert_allclose(density, np.logaddexp(*logs.T), rtol=1e-12)
    np.testing.assert_array_equal(model.predict(x, noise=noise), logs.argmax(axis=1))
    assert model.score(x, noise=noise) == pytest.approx(density.mean(), rel=1e-12)
    assert model.bic(x, noise=noise) == pytest.approx(
        -2 * density.sum() + model.mixture_.n_parameters * np.log(600), rel=1e-12
    )
    assert model.icl(x, noise=noise) >= model.bic(x, noise=noise) > model.aic(x, noise=noise)
    assert model.score(x) < model.score(x, noise=noise)
    next_step = GaussianMixture.from_parameters(model.weights_, model.means_, model.covariances_, "diag")
    halves = (np.s_[:300], np.s_[300:])
    a, b = (next_step.expectation(x[half], noise=noise[half]) for half in halves)
    next_step.maximise(a + b)
    expected = model.bic(x, noise=noise)
    again = model.set_params(max_iter=1, warm_start=True).fit(x, noise=noise)
    assert again.bic_ == pytest.approx(expected, rel=1e-12)
    assert_same(again, next_step, 1e-10)
    threshold = model.threshold(x, 0.1, noise=noise)
    assert np.mean(model.is_outlier(x, threshold, noise=noise)) == pytest.approx(0.1, abs=2 / 600)
    np.testing.assert_array_equal(two().fit_predict(x, noise=noise), model.predict(x, noise=noise))


@pytest.mark.parametrize("full", [False, True])
def test_missing_values_go_together_with_errors(full: bool) -> None:
    x, noise = rows(full=full)
    gone = np.random.default_rng(3).random(x.shape) < 0.2
    gone[gone.all(axis=1)] = [True, False]
    missing, unknown = np.where(gone, np.nan, x), noise.copy()
    unknown[gone] = np.inf
    if full:
        unknown[np.swapaxes(np.broadcast_to(gone[:, None], noise.shape), 1, 2)] = np.inf
        unknown[np.broadcast_to(gone[:, None], noise.shape)] = np.inf
    how: dict[str, Any] = {"nan_policy": "missing"}
    by_value, by_noise = two(**how).fit(missing, noise=noise), two(**how).fit(x, noise=unknown)
    assert_same(by_value, by_noise, 1e-12)
    np.testing.assert_allclose(
        by_value.score_samples(missing, noise=noise), by_noise.score_samples(x, noise=unknown), rtol=1e-10
    )
    model, start = from_start("full", 2, 2, missing, nan_policy="missing", max_iter=3)
    model.fit(missing[:60], noise=noise[:60])
    weights, means, values = start
    for _ in range(3):
        weights, means, values, _ = dense_noisy.step(
            missing[:60], noise[:60], np.ones(60), weights, means, values, "full"
        )
    np.testing.assert_allclose(model.covariances_, np.array(values, float), rtol=1e-9)


def test_rows_whose_noise_is_nan_may_be_left_out() -> None:
    x, noise = rows(300)
    bad, more = noise.copy(), noise.copy()
    bad[[3, 200], 1] = np.nan
    more[[3, 200], 1] = np.inf
    kept = np.delete(np.arange(300), [3, 200])
    model = two(nan_policy="omit").fit(x, noise=bad)
    assert_same(model, two().fit(x[kept], noise=noise[kept]), 1e-10)
    assert np.flatnonzero(model.predict(x, noise=bad) == -1).tolist() == [3, 200]
    with pytest.raises(DataError, match=r"noise holds NaN .*: block 0, row\(s\) 3, 200\."):
        two().fit(x, noise=bad)
    with pytest.raises(DataError, match=r"noise holds infinity .*: block 0, row\(s\) 3, 200\."):
        two().fit(x, noise=more)


@pytest.mark.parametrize("kind", EITHER)
def test_what_cannot_be_is_refused(kind: Any) -> None:
    x, noise = rows(300)
    full = noise[:, :, None] * np.eye(2)
    crossed, askew = full.copy(), full.copy()
    crossed[7, 0, 1] = crossed[7, 1, 0] = 100.0
    askew[8, 0, 1] = 0.01
    negative = np.where(np.arange(300)[:, None] == 9, -noise, noise)
    for given, message in (
        (noise[:299], r"noise\.shape == \(299, 2\), expected \(300, 2\)"),
        (
            noise[:, :1],
            r"noise\.shape == \(300, 1\), expected \(300, 2\), a variance of each value, or \(300, 2, 2\)",
        ),
        (noise[:, 0], r"noise\.shape == \(300,\), expected \(300, 2\)"),
        (full[:, :1], r"noise\.shape == \(300, 1, 2\)"),
        (negative, r"noise has variances below 0: block 0, row\(s\) 9\."),
        (crossed, r"noise is no covariance: .*: block 0, row\(s\) 7\."),
        (askew, r"noise is no covariance: .*: block 0, row\(s\) 8\."),
    ):
        with pytest.raises(DataError, match=message):
            two(kind).fit(x, noise=given)
    three = np.tile(np.array([[1, 0.9, -0.9], [0.9, 1, 0.9], [-0.9, 0.9, 1.0]]), (300, 1, 1))
    with pytest.raises(DataError, match=r"noise is no covariance: it is to be positive semidefinite: block 0"):
        two(kind).fit(np.column_stack([x, x[:, 0]]), noise=three)
    x[5, 1] = np.nan
    with pytest.raises(DataError, match=r"Input X contains NaN: block 0, row\(s\) 5\."):
        two(kind).fit(x, noise=noise)


def test_rows_of_known_components_may_have_errors() -> None:
    x, noise = rows()
    known = np.where(np.arange(600) % 3 == 0, x[:, 0] > 6, -1)
    model = two(tol="auto").fit(x, noise=noise, known=known)
    plain = two(tol="auto").fit(x, noise=noise)  # components lie apart: labels tell nothing new, but the order
    assert model.means_[1, 0] > 6
    for name in PARTS[1:]:
        order = np.argsort(plain.means_[:, 0])
        np.testing.assert_allclose(getattr(model, name), getattr(plain, name)[order], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", EITHER)
def test_a_stopped_fit_goes_on_to_the_same_bits(kind: Any, tmp_path: Path) -> None:
    (x, noise), place = rows(), tmp_path / "fit.npz"
    how: dict[str, Any] = {"tol": 0.0, "block_size": 200 * 16}
    if kind is MiniBatchGaussianMixture:
        how |= {"init_size": 200, "batch_size": 50}
    two(kind, max_iter=2, checkpoint=place, **how).fit(x, noise=noise)
    on = two(kind, max_iter=4, checkpoint=place, **how).fit(x, noise=noise)
    whole = two(kind, max_iter=4, **how).fit(x, noise=noise)
    for name in PARTS:
        assert getattr(on, name).tobytes() == getattr(whole, name).tobytes()
    for given, message in ((None, "noise's columns"), (noise + 1e-3, "their values differ")):
        with pytest.raises(DataError, match=message):
            two(kind, max_iter=5, checkpoint=place, **how).fit(x, noise=given)


def test_a_checkpoint_of_a_fit_without_noise_from_before_there_was_any(tmp_path: Path) -> None:
    (x, noise), place = rows(), tmp_path / "fit.npz"
    how: dict[str, Any] = {"tol": 0.0, "checkpoint": place}
    layout = Rows.layout
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Rows, "layout", lambda self: {k: v for k, v in layout(self).items() if not k.startswith("noise")}
        )
        two(max_iter=2, **how).fit(x)
    with pytest.raises(DataError, match="noise's columns"):
        two(max_iter=4, **how).fit(x, noise=noise)
    assert_same(two(max_iter=4, **how).fit(x), two(max_iter=4, tol=0.0).fit(x))


def test_online_fits_see_through_errors() -> None:
    x, noise = rows(12_000)
    batch = two(tol="auto", max_iter=200).fit(x, noise=noise)
    online = two(MiniBatchGaussianMixture, init_size=400, max_iter=4).fit(x, noise=noise)
    stream = two(MiniBatchGaussianMixture, init_size=400, half_life=4_000)
    for _ in range(3):
        for first in range(0, len(x), 500):
            part = slice(first, first + 500)
            stream.partial_fit(x[part], noise=noise[part])
    plain = two().fit(x)
    assert online.n_iter_ == 4  # without rows to judge by it goes on to the end
    for model in (online, stream):
        assert not len(model.online_.recent.x)  # nor is any looked at, to place a component anew
        assert model.score(x, noise=noise) > batch.score(x, noise=noise) - 0.01
        assert model.score(x, noise=noise) > plain.score(x, noise=noise) + 0.1
    pieces = [slice(first, first + 500) for first in range(0, len(x), 500)]
    of_iterators = two(MiniBatchGaussianMixture, init_size=400, half_life=4_000)
    of_iterators.fit((x[part] for part in pieces), noise=(noise[part] for part in pieces))
    once = two(MiniBatchGaussianMixture, init_size=400, half_life=4_000)
    for part in pieces:
        once.partial_fit(x[part], noise=noise[part])
    assert_same(of_iterators, once)
    with pytest.raises(DataError, match="noise has to be an iterator, too"):
        of_iterators.fit((x[part] for part in pieces), noise=noise)


def test_an_online_fit_without_errors_is_the_plain_one() -> None:
    x, noise = rows(2_000)
    how: dict[str, Any] = {"init_size": 400, "batch_size": 200}
    plain = two(MiniBatchGaussianMixture, **how).fit(x)
    assert_same(two(MiniBatchGaussianMixture, **how).fit(x, noise=0 * noise), plain, 1e-10)


def test_the_command_line_takes_noise(tmp_path: Path) -> None:
    x, noise = rows()
    for name, values in (("x", x), ("s", noise), ("wrong", noise[:, :1])):
        np.save(tmp_path / f"{name}.npy", values)

    def run(*words: Any) -> Any:
        return CliRunner().invoke(main, [str(tmp_path / w) if "." in str(w) else str(w) for w in words])

    fit = ("fit", "x.npy", "-k", 2, "--covariance-type", "diag", "--seed", 0)
    done = run(*fit, "--noise", "s.npy", "--out", "model.npz", "--checkpoint", "at.npz")
    assert done.exit_code == 0, done.output
    model, expected = GaussianMixture.load(tmp_path / "model.npz"), two().fit(x, noise=noise)
    assert_same(model, expected)
    told = json.loads(run("score", "x.npy", "model.npz", "--noise", "s.npy", "--json").stdout)
    assert told["log_likelihood"] == pytest.approx(expected.score(x, noise=noise), rel=1e-12)
    assert run("predict", "x.npy", "model.npz", "--noise", "s.npy", "--out", "y.zarr").exit_code == 0
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "y.zarr")[:], expected.predict(x, noise=noise))
    assert "--noise PATH" in run("info", "at.npz").output
    failed = run(*fit, "--noise", "wrong.npy", "--out", "other.npz")
    assert failed.exit_code == 4
    assert "noise.shape == (600, 1)" in failed.stderr
    online = run(*fit, "--online", "--noise", "s.npy", "--out", "online.npz")
    assert online.exit_code == 0, online.output
    more = run("update", "online.npz", "x.npy", "--noise", "s.npy", "--out", "online.npz", "--overwrite")
    assert more.exit_code == 0, more.output


@pytest.mark.parametrize(("d", "k"), xdgmm.SIZES)
def test_twenty_steps_are_those_of_astroml(d: int, k: int) -> None:
    x, noise, start = xdgmm.problem(d, k)
    own = GaussianMixture.from_parameters(**start)
    how = {"weights_init": start["weights"], "means_init": start["means"], "precisions_init": own.precisions_}
    model = GaussianMixture(k, reg_covar=0.0, tol=0.0, max_iter=xdgmm.STEPS, **how).fit(x, noise=noise)
    theirs = json.loads(xdgmm.PLACE.read_text())[f"{d} {k}"]
    np.testing.assert_allclose(model.lower_bounds_, theirs["trace"], rtol=1e-10)
    for name in ("weights", "means", "covariances"):
        np.testing.assert_allclose(getattr(model, f"{name}_"), theirs[name], rtol=1e-8, atol=1e-8)
