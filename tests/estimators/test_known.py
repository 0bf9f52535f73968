"""Rows of which it is known to which component they belong: exact EM, in batch and online, whatever the input."""

import warnings
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import zarr
from click.testing import CliRunner
from hypothesis import given, settings

from daskgmm import DataError, GaussianMixture, MiniBatchGaussianMixture, load
from daskgmm.cli import main
from tests import structures
from tests.estimators.test_missing import from_start
from tests.fit.problems import Problem, problems
from tests.structures import KINDS

pytestmark = pytest.mark.filterwarnings("ignore:Best performing initialization")
every_kind = pytest.mark.parametrize("kind", KINDS)
EITHER = (GaussianMixture, MiniBatchGaussianMixture)
K = 3


def rows(n: int = 600, share: float = 0.2, seed: int = 0) -> tuple[Any, Any, Any]:
    """Rows of three clusters that overlap, their components, and those that are known."""
    random = np.random.default_rng(seed)
    labels = random.integers(K, size=n)
    x = np.array([[0.0, 0], [3, 0], [0, 4]])[labels] + random.normal(size=(n, 2))
    return x, labels, np.where(random.random(n) < share, labels, -1)


def clamped_em(x: Any, start: Any, kind: str, steps: int, weight: Any, known: Any) -> tuple[Any, ...]:
    """EM from the definitions, with the responsibilities of known rows fixed; its mean log-likelihoods last."""
    (weights, means, values), trace = start, []
    for _ in range(steps):
        joint = structures.joint(x, weights, means, values, kind)
        log_density, resp = structures.expectation(x, weights, means, values, kind)
        seen = known >= 0
        log_density[seen], resp[seen] = joint[seen, known[seen]], np.eye(len(weights))[known[seen]]
        trace.append(weight @ log_density / weight.sum())
        weights, means, values = structures.maximise(x, weight[:, None] * resp, kind)
    return weights, means, values, trace


@every_kind
def test_iterations_are_those_of_the_definitions(kind: Any) -> None:
    x, _, known = rows(120, 0.3)
    weight = np.random.default_rng(1).choice([0.0, 1.0, 2.0], size=len(x))
    model, start = from_start(kind, K, 2, x, block_size=17 * 16)
    model.set_params(nan_policy="raise", max_iter=6).fit(x, sample_weight=weight, known=known)
    *found, trace = clamped_em(x, start, kind, 6, weight, known)
    for one, other in zip((model.weights_, model.means_, model.covariances_), found, strict=True):
        np.testing.assert_allclose(one, np.asarray(other, float), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(model.lower_bounds_, np.asarray(trace, float), rtol=1e-12)


@pytest.mark.parametrize("acceleration", [None, "lbfgs"])
@given(problem=problems)
@settings(max_examples=8)
def test_what_is_watched_never_falls(problem: Problem, acceleration: Any) -> None:
    k = problem.settings["n_components"]
    known = problem.random.integers(-3, k, size=len(problem.x)).clip(-1)
    run = problem.fitted(acceleration=acceleration, known=known)
    steps = np.diff(run.trace)
    assert steps.min(initial=0.0) >= -1e-10 * max(1, np.abs(run.trace).max(initial=0.0))


@every_kind
def test_all_labels_give_the_classes_own_moments(kind: Any) -> None:
    x, labels, _ = rows()
    for n_init, seed in ((1, 0), (2, 1)):
        model = GaussianMixture(K, covariance_type=kind, reg_covar=0.0, n_init=n_init, random_state=seed)
        model.fit(x, known=labels)
        hot = np.eye(K)[labels]
        for one, other in zip(
            (model.weights_, model.means_, model.covariances_), structures.maximise(x, hot, kind), strict=True
        ):
            np.testing.assert_allclose(one, np.asarray(other, float), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", EITHER)
@pytest.mark.parametrize("how", [{}, {"init_params": "subsample"}, {"nan_policy": "missing"}])
def test_no_label_is_the_plain_fit_bit_for_bit(kind: Any, how: Any) -> None:
    x, _, _ = rows()
    plain = kind(K, random_state=0, **how).fit(x)
    for none in (np.full(len(x), -1), np.full(len(x), np.nan)):
        same = kind(K, random_state=0, **how).fit(x, known=none)
        for name in ("weights_", "means_", "covariances_", "lower_bound_"):
            assert np.array_equal(getattr(plain, name), getattr(same, name)), name


@pytest.mark.parametrize("kind", EITHER)
@pytest.mark.parametrize("init", ["auto", "subsample", "random"])
def test_components_are_numbered_as_the_labels(kind: Any, init: str) -> None:
    x, labels, known = rows(3000, 0.02)
    for order in ([0, 1, 2], [2, 0, 1]):
        some = np.where(known == 2, -1, known)  # one component without a label
        own = np.where(some < 0, -1, np.array(order)[some])
        model = kind(K, init_params=init, random_state=0).fit(x, known=own)
        assert np.mean(np.array(order)[labels] == model.predict(x)) > 0.9


@pytest.mark.parametrize("kind", EITHER)
def test_labels_decide_where_clusters_cannot(kind: Any) -> None:
    # Two classes that halve one cluster: without labels EM has no reason to part them.
    random = np.random.default_rng(0)
    x = random.normal(size=(2000, 2))
    labels = (x[:, 0] > 0).astype(int)
    known = np.where(random.random(len(x)) < 0.5, labels, -1)
    model = kind(2, random_state=0, init_size=50) if kind is MiniBatchGaussianMixture else kind(2, random_state=0)
    assert np.mean(model.set_params(max_iter=20, tol=0.0).fit(x, known=known).predict(x) == labels) > 0.95


def test_all_kinds_of_input_give_the_same(tmp_path: Path) -> None:
    x, _, known = rows()
    zarr.save(tmp_path / "x.zarr", x)
    zarr.save(tmp_path / "known.zarr", known)
    plain = GaussianMixture(K, random_state=0).fit(x, known=known)
    masked = np.ma.masked_array(known, known < 0)
    for data, labels in (
        (da.from_array(x, chunks=(100, 2)), da.from_array(known, chunks=77)),
        (str(tmp_path / "x.zarr"), str(tmp_path / "known.zarr")),
        (pd.DataFrame(x), pd.Series(known)),
        (x, masked),
        (x, known.astype(np.int8)),
    ):
        same = GaussianMixture(K, random_state=0).fit(data, known=labels)
        np.testing.assert_allclose(same.means_, plain.means_, rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_values_may_be_missing_beside_labels(kind: Any) -> None:
    x, _, known = rows(3000)
    x[np.random.default_rng(3).random(x.shape) < 0.2] = np.nan
    for estimator in EITHER:
        model = estimator(K, covariance_type=kind, nan_policy="missing", random_state=0)
        with pytest.warns(UserWarning, match="no value at all"):
            model.fit(x, known=known)
        assert np.abs(model.means_ - [[0, 0], [3, 0], [0, 4]]).max() < 0.5


def test_a_stream_learns_labels_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    x, labels, known = rows(2000)
    model = MiniBatchGaussianMixture(K, random_state=0)
    for first in range(0, 1000, 100):
        part = slice(first, first + 100)
        # Rows that wait for the start keep their labels, and so does a file of them.
        model.partial_fit(x[part], known=known[part] if first else None)
        model.save(tmp_path / "model.npz")
        model = load(tmp_path / "model.npz")
    again = MiniBatchGaussianMixture(K, random_state=0)
    for first in range(0, 1000, 100):
        part = slice(first, first + 100)
        again.partial_fit(x[part], known=known[part] if first else None)
    assert np.array_equal(again.means_, model.means_)
    assert np.mean(model.predict(x) == labels) > 0.9
    batches = iter(np.array_split(x, 10)), iter(np.array_split(known, 10))
    one = MiniBatchGaussianMixture(K, random_state=0).fit(batches[0], known=batches[1])
    assert np.mean(one.predict(x) == labels) > 0.9


def test_a_component_that_has_a_label_is_not_placed_anew() -> None:
    random = np.random.default_rng(0)
    x = np.array([0.0, 10, 20])[random.integers(3, size=4000), None] + random.normal(size=(4000, 1))
    start: dict[str, Any] = {
        "weights_init": [0.4, 0.4, 0.2],
        "means_init": [[0.0], [10.0], [99.0]],
        "precisions_init": np.ones((3, 1, 1)),
    }
    for known, told in ((None, 1), (np.where(x[:, 0] > 5, -1, 0), 0)):
        model = MiniBatchGaussianMixture(3, random_state=0, **start)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            for part in np.array_split(np.arange(4000), 40):
                model.partial_fit(x[part], known=None if known is None else known[part])
        assert sum("starts anew" in str(one.message) for one in heard) == told
        assert (model.means_.max() > 90) == (told == 0)


@pytest.mark.parametrize("kind", EITHER)
def test_a_stopped_fit_goes_on_to_the_same_bits(kind: Any, tmp_path: Path) -> None:
    x, _, known = rows()
    settings: dict[str, Any] = {"random_state": 0, "block_size": 100 * 16, "tol": 0.0, "init_params": "subsample"}
    whole = kind(K, max_iter=4, **settings).fit(x, known=known)
    stopped = tmp_path / "fit.ckpt"
    kind(K, max_iter=2, checkpoint=stopped, **settings).fit(x, known=known)
    resumed = kind(K, max_iter=4, checkpoint=stopped, **settings).fit(x, known=known)
    assert np.array_equal(resumed.means_, whole.means_)
    if kind is GaussianMixture:
        with pytest.raises(DataError, match="their values differ"):
            kind(K, max_iter=8, checkpoint=stopped, **settings).fit(x, known=np.roll(known, 1))
    with pytest.raises(DataError, match="of another fit"):
        kind(K, max_iter=8, checkpoint=stopped, **settings).fit(x)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (np.full(600, K), r"known must lie in 0 ... 2, or be -1: block 0, row\(s\) 0"),
        (np.full(600, -2), r"known must be components, or -1 where none is known: block 0"),
        (np.full(600, 0.5), "known must be integers"),
        (np.full(599, 0), r"known.shape == \(599,\), expected \(600,\)"),
        (np.zeros((600, 1), int), "known should be 1-dimensional"),
    ],
)
@pytest.mark.parametrize("kind", EITHER)
def test_labels_that_cannot_be_are_refused(kind: Any, labels: Any, told: str) -> None:
    x, _, _ = rows()
    with pytest.raises(DataError, match=told):
        kind(K).fit(x, known=labels)


def test_rows_without_weight_may_have_any_label() -> None:
    x, _, known = rows()
    weight = (np.arange(len(x)) % 7 > 0).astype(float)
    wrong = np.where(weight > 0, known, 99)
    one, other = (GaussianMixture(K, random_state=0).fit(x, sample_weight=weight, known=k) for k in (known, wrong))
    assert np.array_equal(one.means_, other.means_)


@pytest.mark.parametrize("online", [[], ["--online"]])
def test_the_command_line_takes_labels(online: list[str], tmp_path: Path) -> None:
    x, labels, known = rows()
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "known.npy", known)
    how = ["fit", str(tmp_path / "x.npy"), "-k", "3", "--out", str(tmp_path / "m.npz"), "--seed", "0", *online]
    result = CliRunner().invoke(main, [*how, "--known", str(tmp_path / "known.npy")])
    assert result.exit_code == 0, result.output
    assert np.mean(load(tmp_path / "m.npz").predict(x) == labels) > 0.9
