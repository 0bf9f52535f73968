"""A uniform background beside the components."""

import json
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from hypothesis import given, settings
from scipy.special import logsumexp

from daskgmm import (
    DataError,
    GaussianMixture,
    GaussianMixtureSearch,
    MiniBatchGaussianMixture,
    NormalInverseWishart,
    load,
)
from daskgmm.cli import main
from daskgmm.model.background import Background
from daskgmm.model.moments import moments
from daskgmm.model.structure import FULL
from daskgmm.model.update import Steady
from tests import structures
from tests.fit.problems import Problem, problems
from tests.structures import KINDS

pytestmark = pytest.mark.filterwarnings("ignore:Best performing initialization")
every_kind = pytest.mark.parametrize("kind", KINDS)
EITHER = (GaussianMixture, MiniBatchGaussianMixture)
MEANS, SHARE = np.array([[0.0, 0], [6, 0], [0, 8]]), 0.1
K = len(MEANS)


def rows(n: int = 2000, seed: int = 0) -> tuple[Any, Any]:
    """Rows of three clusters, a tenth of them uniform in a box; and their labels, −1 for those."""
    random = np.random.default_rng(seed)
    labels = np.where(random.random(n) < SHARE, -1, random.integers(K, size=n))
    x = MEANS[labels] + random.normal(size=(n, 2))
    noise = labels < 0
    x[noise] = random.uniform(-20, 20, size=(noise.sum(), 2))
    return x, labels


def logs(model: Any, x: Any) -> Any:
    """log(weight·density) of the components and, in the last column, of the background."""
    values = model.covariances_
    joint = structures.joint(x, model.weights_, model.means_, values, model.covariance_type)
    box: Any = model.mixture_
    widths = box.high - box.low
    last = np.full(len(x), np.log(model.background_weight_) - np.log(widths).sum())
    return np.column_stack([np.asarray(joint, float), last])


@every_kind
def test_queries_are_those_of_the_definitions(kind: Any) -> None:
    x, _ = rows()
    model = GaussianMixture(K, covariance_type=kind, background=True, random_state=0).fit(x)
    assert model.weights_.sum() + model.background_weight_ == pytest.approx(1, abs=1e-15)
    box: Any = model.mixture_
    assert np.array_equal([box.low, box.high], [x.min(axis=0), x.max(axis=0)])
    x = np.concatenate([x, [[1e3, -1e3], [1e150, 0]]])  # far outside of the box, too
    both = logs(model, x[:-1])
    total = logsumexp(both, axis=1)
    np.testing.assert_allclose(model.score_samples(x)[:-1], total, rtol=1e-12)
    resp = np.exp(both - total[:, None])
    np.testing.assert_allclose(model.predict_proba(x)[:-1], resp[:, :-1], atol=1e-12)
    labels = np.where(both.argmax(axis=1) == K, -1, both.argmax(axis=1))
    assert model.predict(x).tolist() == [*labels.tolist(), -1]
    assert model.predict(da.from_array(x, chunks=(100, 2)), dtype="smallest").compute().tolist()[-2:] == [-1, -1]
    entropy = -(resp * np.log(np.maximum(resp, 1e-300))).sum()
    found = model.evaluate(x[:-1], entropy=True)
    assert found.entropy == pytest.approx(entropy, rel=1e-9)
    assert found.n_parameters == structures.n_parameters(kind, K, 2) + 1


@every_kind
def test_an_iteration_is_that_of_the_definitions(kind: Any) -> None:
    x, _ = rows(300)
    weight = np.random.default_rng(1).choice([0.0, 1.0, 2.0], size=len(x))
    how: dict[str, Any] = {"covariance_type": kind, "background": True, "random_state": 0, "reg_covar": 0.0}
    how["init_params"] = "kmeans"
    begun = GaussianMixture(K, max_iter=0, **how).fit(x, sample_weight=weight)
    assert begun.background_weight_ == pytest.approx(0.05)
    both = logs(begun, x)
    total = logsumexp(both, axis=1)
    share = np.exp(both - total[:, None]) * weight[:, None]
    found = GaussianMixture(K, max_iter=1, block_size=500, **how).fit(x, sample_weight=weight)
    _, means, values = structures.maximise(x, share[:, :-1], kind)
    np.testing.assert_allclose(found.weights_, share.sum(axis=0)[:-1] / weight.sum(), rtol=1e-11)
    assert found.background_weight_ == pytest.approx(share[:, -1].sum() / weight.sum(), rel=1e-11)
    np.testing.assert_allclose(found.means_, np.asarray(means, float), rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(found.covariances_, np.asarray(values, float), rtol=1e-10, atol=1e-11)
    assert found.lower_bound_ == pytest.approx(weight @ total / weight.sum(), rel=1e-13)


@pytest.mark.parametrize("stream", [False, True])
def test_the_rows_of_a_prior_leave_a_background_its_own(stream: bool) -> None:
    # The mode of all K + 1 proportions: the Dirichlet prior adds rows to the components alone. A stream counts
    # each row once, whatever it weighs.
    x, _ = rows(300)
    weight, extra = np.full(300, 2.0), 40.0
    known = NormalInverseWishart(weight_concentration=1 + extra)
    begun = GaussianMixture(K, background=True, max_iter=0, prior=known, random_state=0).fit(x)
    prior = known.on(begun.mixture_.covariance.structure, K, moments(FULL, x), 0.0)
    update = Background(Steady(prior=prior) if stream else prior)
    found = update(begun.mixture_, begun.mixture_.expectation(x, weight))
    both = logs(begun, x)
    counts = (1 if stream else 2) * np.exp(both - logsumexp(both, axis=1, keepdims=True)).sum(axis=0)
    counts[:-1] += extra
    assert found.background_weight == pytest.approx(counts[-1] / counts.sum(), rel=1e-11)
    np.testing.assert_allclose(found.weights, counts[:-1] / counts.sum(), rtol=1e-11)


@given(problem=problems)
@settings(max_examples=8)
def test_what_is_watched_never_falls(problem: Problem) -> None:
    x = np.concatenate([problem.x, problem.random.uniform(-9, 9, size=(20, problem.x.shape[1]))])
    for prior in (None, NormalInverseWishart(x[0], 3.0, weight_concentration=5.0)):
        for frozen in (None, {"weights": [0]}):
            run = problem.fitted(x, background=True, prior=prior, frozen=frozen)
            steps = np.diff(run.trace)
            assert steps.min(initial=0.0) >= -1e-10 * max(1, np.abs(run.trace).max(initial=0.0))


@pytest.mark.parametrize("kind", EITHER)
@pytest.mark.parametrize("seed", range(3))
def test_a_tenth_of_noise_is_recovered(kind: Any, seed: int) -> None:
    n = 20_000
    x, labels = rows(n, seed)
    model = kind(K, background=True, random_state=seed)
    model.set_params(tol=1e-7 if kind is GaussianMixture else model.tol).fit(x)
    error = np.sqrt(SHARE * (1 - SHARE) / n)
    assert abs(model.background_weight_ - (labels < 0).mean()) < 3 * error
    order = np.argmin(np.square(MEANS[:, None] - model.means_).sum(axis=2), axis=1)
    assert sorted(order) == [0, 1, 2]
    apart = (model.means_[order] - MEANS) * np.sqrt(n * (1 - SHARE) / K)
    assert np.abs(apart).max() < (3.5 if kind is GaussianMixture else 5)
    assert np.abs(model.covariances_ - np.eye(2)).max() < 0.1
    plain = kind(K, random_state=seed).fit(x)
    assert np.abs(plain.covariances_ - np.eye(2)).max() > 1


def test_all_kinds_of_input_give_the_same(tmp_path: Path) -> None:
    x, _ = rows(600)
    zarr.save(tmp_path / "x.zarr", x)
    plain = GaussianMixture(K, background=True, random_state=0).fit(x)
    for data in (da.from_array(x, chunks=(100, 2)), str(tmp_path / "x.zarr")):
        same = GaussianMixture(K, background=True, random_state=0).fit(data)
        np.testing.assert_allclose(same.means_, plain.means_, rtol=1e-9)
    ints = (x * 8).round().astype(np.int16)
    one, other = (GaussianMixture(K, background=True, random_state=0).fit(v) for v in (ints, ints.astype(float)))
    np.testing.assert_allclose(one.means_, other.means_, rtol=1e-12)
    single = GaussianMixture(K, background=True, random_state=0).fit(x.astype(np.float32))
    np.testing.assert_allclose(single.means_, plain.means_, atol=1e-3)


@every_kind
def test_values_may_be_missing_beside_a_background(kind: Any) -> None:
    x, _ = rows(3000)
    x[np.random.default_rng(3).random(x.shape) < 0.1] = np.nan
    model = GaussianMixture(K, covariance_type=kind, nan_policy="missing", background=True, random_state=0)
    with pytest.warns(UserWarning, match="no value at all"):
        model.fit(x)
    assert abs(model.background_weight_ - SHARE) < 0.03
    one = model.marginal([0])
    assert one.background_weight_ == pytest.approx(model.background_weight_, abs=1e-15)
    half = np.where([True, False], x, np.nan)
    np.testing.assert_allclose(
        model.score_samples(half), one.set_params(nan_policy="missing").score_samples(x[:, :1])
    )
    assert np.isfinite(model.impute(x)).all()
    assert model.conditional({0: 15.0}).weights_.sum() == pytest.approx(1)


@pytest.mark.parametrize("gone", [0.0, 0.3])
def test_errors_are_seen_through_beside_a_background(gone: float) -> None:
    x, _ = rows(500)
    random = np.random.default_rng(1)
    x[random.random(x.shape) < gone] = np.nan
    x = x[~np.isnan(x).all(axis=1)]
    noise, there = random.gamma(1.0, 0.5, size=x.shape), ~np.isnan(x)
    weight = random.choice([0.0, 1.0, 2.0], size=len(x))
    how: dict[str, Any] = {
        "background": True,
        "random_state": 0,
        "nan_policy": "missing",
        "covariance_type": "diag",
    }
    model = GaussianMixture(K, max_iter=3, tol=0.0, reg_covar=0.0, **how).fit(x, None, weight, noise)
    box: Any = model.mixture_
    level = np.log(model.background_weight_) - there @ np.log(box.high - box.low)
    variances = model.covariances_ + noise[:, None]  # (n, k, d)
    apart = np.nan_to_num(x[:, None] - model.means_)
    terms = np.where(there[:, None], np.log(2 * np.pi * variances) + apart**2 / variances, 0.0)
    both = np.column_stack([np.log(model.weights_) - 0.5 * terms.sum(axis=2), level])
    total = logsumexp(both, axis=1)
    np.testing.assert_allclose(model.score_samples(x, noise=noise), total, rtol=1e-9)
    resp = np.exp(both - total[:, None])
    np.testing.assert_allclose(model.predict_proba(x, noise=noise), resp[:, :-1], atol=1e-9)
    labels = np.where(both.argmax(axis=1) == K, -1, both.argmax(axis=1))
    assert np.array_equal(model.predict(x, noise=noise), labels)
    entropy = -(weight[:, None] * resp * np.log(np.maximum(resp, 1e-300))).sum()
    assert model.evaluate(x, weight, noise=noise, entropy=True).entropy == pytest.approx(entropy, rel=1e-8)
    # The next iteration, with what is expected of the true values.
    gain = np.where(there[:, None], model.covariances_ / variances, 0.0)
    true = model.means_ + gain * apart
    shares = weight[:, None] * resp[:, :-1]
    means = (shares[:, :, None] * true).sum(axis=0) / shares.sum(axis=0)[:, None]
    square = (true - means) ** 2 + (1 - gain) * model.covariances_
    again = model.set_params(warm_start=True, max_iter=1).fit(x, None, weight, noise)
    np.testing.assert_allclose(again.means_, means, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
        again.covariances_, (shares[:, :, None] * square).sum(axis=0) / shares.sum(axis=0)[:, None], rtol=1e-9
    )
    assert again.background_weight_ == pytest.approx(weight @ resp[:, -1] / weight.sum(), rel=1e-9)
    assert again.lower_bound_ == pytest.approx(weight @ total / weight.sum(), rel=1e-9)
    plain, same = (GaussianMixture(K, max_iter=5, **how).fit(x, noise=one) for one in (None, 0 * noise))
    np.testing.assert_allclose(same.covariances_, plain.covariances_, rtol=1e-8)


@pytest.mark.parametrize("kind", EITHER)
def test_labels_beside_a_background_are_of_components(kind: Any) -> None:
    x, labels = rows()
    known = np.where(np.random.default_rng(0).random(len(x)) < 0.2, labels, -1)
    model = kind(K, background=True, random_state=0).fit(x, known=known)
    assert np.mean(model.predict(x) == labels) > 0.95


@pytest.mark.parametrize("kind", EITHER)
def test_saved_and_resumed(kind: Any, tmp_path: Path) -> None:
    x, _ = rows()
    how: dict[str, Any] = {"background": True, "random_state": 0, "tol": 0.0, "block_size": 4000}
    model = kind(K, max_iter=3, checkpoint=tmp_path / "c", **how).fit(x)
    model.save(tmp_path / "m.npz")
    again = load(tmp_path / "m.npz")
    assert np.array_equal(again.score_samples(x), model.score_samples(x))
    assert again.background_weight_ == model.background_weight_
    whole = kind(K, max_iter=5, **how).fit(x)
    resumed = kind(K, max_iter=5, checkpoint=tmp_path / "c", **how).fit(x)
    assert np.array_equal(resumed.means_, whole.means_)
    assert resumed.background_weight_ == whole.background_weight_
    if kind is MiniBatchGaussianMixture:
        model.set_params(checkpoint=None).partial_fit(x[:50])
        assert np.array_equal(again.partial_fit(x[:50]).means_, model.means_)
        assert model.background_weight_ == again.background_weight_ != resumed.background_weight_


def test_a_stream_takes_what_is_far_as_background() -> None:
    x, _ = rows(4000)
    model = MiniBatchGaussianMixture(K, background=True, random_state=0)
    for part in np.array_split(x, 20):
        model.partial_fit(part)
    assert abs(model.background_weight_ - SHARE) < 0.03
    assert np.mean(model.predict(x) == -1) == pytest.approx(SHARE, abs=0.03)
    before = model.means_
    model.partial_fit(np.full((3, 2), 1e6))
    np.testing.assert_allclose(model.means_, before, rtol=0.01, atol=0.01)


def test_a_search_counts_the_groups_beside_a_background(tmp_path: Path) -> None:
    x, _ = rows()
    how: dict[str, Any] = {"random_state": 0, "tol": 1e-6}
    found = GaussianMixtureSearch(range(2, 6), background=True, refine=4, **how).fit(x)
    assert found.best_params_["n_components"] == K
    assert found.background_weight_ == found.best_estimator_.background_weight_ == pytest.approx(SHARE, abs=0.03)
    assert GaussianMixtureSearch(range(2, 6), **how).fit(x).best_params_["n_components"] > K
    for row, k in enumerate(found.results_["n_components"]):
        own = GaussianMixture(k, background=True, **how).fit(x).evaluate(x, entropy=True)
        for name in ("bic", "icl"):
            assert found.results_[name][row] == pytest.approx(getattr(own, name), rel=1e-9)
    found.save(tmp_path / "best.npz")
    again = load(tmp_path / "best.npz").predict(x)
    np.testing.assert_array_equal(again, found.predict(x))
    assert (again == -1).any()


def test_held_out_rows_may_be_of_the_background() -> None:
    x, _ = rows()
    how: dict[str, Any] = {"criterion": "held_out", "random_state": 0}
    scores = [
        GaussianMixtureSearch([K], background=background, **how).fit(x).results_["held_out"][0]
        for background in (False, True)
    ]
    assert scores[1] > scores[0] + 0.3


def test_samples_have_their_share_of_background() -> None:
    model = GaussianMixture(K, background=True, random_state=0).fit(rows()[0])
    x, labels = model.sample(5000)
    assert x.shape == (5000, 2)
    assert np.mean(labels == -1) == pytest.approx(model.background_weight_, abs=0.02)


def test_what_cannot_be_is_refused() -> None:
    x, _ = rows(500)
    model = GaussianMixture(K, background=True, random_state=0)
    with pytest.raises(DataError, match=r"Feature\(s\) 1 do not vary"):
        model.fit(x * [1, 0])
    for kind in KINDS:
        fitted = GaussianMixture(K, covariance_type=kind, background=True, random_state=0).fit(x)
        for bad in (np.where(np.arange(500)[:, None] == 3, v, x) for v in (np.inf, np.nan)):
            for ask in (fitted.expectation, fitted.predict, fitted.score):
                with pytest.raises(DataError, match=r"block 0, row\(s\) 3"):
                    ask(bad)
    with pytest.raises(ValueError, match="scikit-learn's mixture has no background"):
        model.fit(x).to_sklearn()
    plain = GaussianMixture(K, random_state=0, warm_start=True).fit(x)
    with pytest.raises(DataError, match="needs the background of the last fit, and that had none"):
        plain.set_params(background=True).fit(x)
    assert model.set_params(warm_start=True, background=False).fit(x).background_weight_ == 0


def test_the_command_line_has_a_background(tmp_path: Path) -> None:
    x, _ = rows()
    np.save(tmp_path / "x.npy", x)
    how = ["fit", str(tmp_path / "x.npy"), "-k", "3", "--out", str(tmp_path / "m.npz"), "--seed", "0"]
    result = CliRunner().invoke(main, [*how, "--background", "--json"])
    assert result.exit_code == 0, result.output
    assert abs(load(tmp_path / "m.npz").background_weight_ - SHARE) < 0.02
    assert '"background_weight": 0.' in result.stdout
    how = ["select", how[1], "-k", "2:4", "--out", str(tmp_path / "best.npz"), "--seed", "0"]
    result = CliRunner().invoke(main, [*how, "--background", "--json"])
    assert result.exit_code == 0, result.output
    told, best = json.loads(result.stdout), load(tmp_path / "best.npz")
    assert (told["n_components"], told["background_weight"]) == (3, best.background_weight_)
