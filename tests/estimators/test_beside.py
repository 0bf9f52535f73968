"""What goes with the rows of a fit, their components and errors, and values that they miss: for whatever fits."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import digamma, logsumexp
from scipy.stats import multivariate_normal

from daskgmm import (
    BayesianGaussianMixture,
    DataError,
    GaussianMixture,
    GaussianMixtureSearch,
    MiniBatchGaussianMixture,
)
from tests.strategies import kinds, seeds
from tests.structures import KINDS

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:.*no value at all"),
]
K, D = 3, 2
PRIORS: Any = ("dirichlet_process", "dirichlet_distribution")
PARTS = ("weights_", "means_", "covariances_", "lower_bound_")
EVERY = (GaussianMixture, MiniBatchGaussianMixture, BayesianGaussianMixture, GaussianMixtureSearch)


def rows(n: int = 300, seed: int = 0) -> tuple[Any, Any, Any, Any]:
    """Rows of three clusters that overlap, their components, those that are known, and variances of errors."""
    random = np.random.default_rng(seed)
    labels = random.integers(K, size=n)
    noise = random.gamma(1.0, 0.3, size=(n, D))
    x = np.array([[0.0, 0], [4, 0], [0, 5]])[labels] + random.normal(size=(n, D))
    return (
        x + np.sqrt(noise) * random.normal(size=(n, D)),
        labels,
        np.where(random.random(n) < 0.2, labels, -1),
        noise,
    )


def holed(x: Any) -> Any:
    """Rows of which every fifth value is missing."""
    return np.where(np.random.default_rng(9).random(x.shape) < 0.2, np.nan, x)


def beside(*names: str, n: int = 300) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Rows, what goes with them, and settings."""
    x, _, known, noise = rows(n)
    missing = "missing" in names
    given = {name: value for name, value in (("known", known), ("noise", noise)) if name in names}
    return holed(x) if missing else x, given, {"nan_policy": "missing"} if missing else {}


# Fit, and predict the same rows


@pytest.mark.parametrize("kind", EVERY)
def test_fit_predict_tells_queries_no_labels(kind: Any) -> None:
    x, given, _ = beside("known", "noise")
    given["noise"][::2] *= 9
    weight = np.random.default_rng(1).choice([0.0, 1.0, 2.0], size=len(x))
    model = kind(K, random_state=0, max_iter=3)
    labels = kind(K, random_state=0, max_iter=3).fit_predict(x, None, weight, **given)
    model.fit(x, sample_weight=weight, **given)
    np.testing.assert_array_equal(labels, model.predict(x, noise=given["noise"]))
    assert (labels != model.predict(x)).any()


# Searches


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag"])
@pytest.mark.parametrize(
    "names", [("known",), ("noise",), ("missing",), ("known", "noise", "missing")], ids="-".join
)
def test_a_search_with_one_candidate_is_its_fit_bit_for_bit(names: tuple[str, ...], covariance_type: Any) -> None:
    x, given, how = beside(*names)
    weight = np.random.default_rng(1).choice([1.0, 2.0], size=len(x))
    how |= {"tol": 1e-3, "max_iter": 30, "random_state": 0}
    search = GaussianMixtureSearch([K], covariance_types=covariance_type, **how).fit(x, None, weight, **given)
    model = GaussianMixture(K, covariance_type=covariance_type, **how).fit(x, None, weight, **given)
    for name in (*PARTS, "n_iter_"):
        assert np.array_equal(getattr(search, name), getattr(model, name)), name
    if "known" not in names:
        noise = given.get("noise")
        assert search.results_["icl"][0] == pytest.approx(model.icl(x, weight, noise), rel=1e-12)


def test_candidates_of_a_search_are_fits_by_themselves() -> None:
    x, given, how = beside("known", "noise", "missing")
    how |= {"tol": 1e-3, "max_iter": 30, "random_state": 0}
    types = ("full", "tied", "diag")
    search = GaussianMixtureSearch([3, 4], covariance_types=types, refine=6, **how).fit(x, **given)
    table = search.results_
    for row, (k, kind) in enumerate(zip(table["n_components"], table["covariance_type"], strict=True)):
        model = GaussianMixture(**{"n_components": int(k), "covariance_type": str(kind), **how}).fit(x, **given)
        assert table["n_iter"][row] == model.n_iter_
        found = model.expectation(x, **given).statistics
        assert table["log_likelihood"][row] == pytest.approx(found.log_likelihood / found.total_weight, rel=1e-9)
        if row == search.best_index_:
            assert np.array_equal(search.means_, model.means_)


@pytest.mark.parametrize("noisy", [False, True])
def test_rows_of_known_components_are_certain_to_a_search(noisy: bool) -> None:
    x, labels, known, noise = rows()
    how: dict[str, Any] = {"random_state": 0, "max_iter": 5, "tol": 0.0}
    given = {"noise": noise} if noisy else {}
    search = GaussianMixtureSearch([K], **how).fit(x, known=labels, **given)
    assert search.results_["icl"][0] == pytest.approx(search.results_["bic"][0], rel=1e-12)
    some = GaussianMixtureSearch([K], **how).fit(x, known=known, **given)
    resp = some.predict_proba(x[known < 0], noise=noise[known < 0] if noisy else None)
    entropy = -(resp * np.log(resp, where=resp > 0, out=np.zeros_like(resp))).sum()
    assert some.results_["icl"][0] - some.results_["bic"][0] == pytest.approx(2 * entropy, rel=1e-9)


def test_a_search_holds_out_rows_with_what_goes_with_them() -> None:
    x, given, _ = beside("known", "noise")
    search = GaussianMixtureSearch([3, 4], criterion="held_out", held_out=0.2, random_state=0).fit(x, **given)
    assert np.isfinite(search.results_["held_out"]).all()
    with pytest.raises(
        DataError, match=r"known names component 2, and a candidate has 2 .*: compare .* from 3 on"
    ):
        GaussianMixtureSearch([2, 4], random_state=0).fit(x, known=given["known"])


# Variational inference


def bayes(**settings: Any) -> BayesianGaussianMixture:
    how = {"n_components": K, "random_state": 0, "reg_covar": 0.0, "tol": 0.0, "max_iter": 20}
    return BayesianGaussianMixture(**(how | settings))


@settings(max_examples=12)
@example(kind="full", prior=PRIORS[0], seed=0, gone=True, some=True, errors="none")
@given(
    kind=kinds,
    prior=st.sampled_from(PRIORS),
    seed=seeds,
    gone=st.booleans(),
    some=st.booleans(),
    errors=st.sampled_from(["none", "variances", "covariances"]),
)
def test_the_lower_bound_never_falls(
    kind: Any, prior: Any, seed: int, gone: bool, some: bool, errors: str
) -> None:
    x, _, known, noise = rows(120, seed)
    given = {"known": known} if some else {}
    if errors != "none":
        given["noise"] = noise if errors == "variances" else noise[:, :, None] * np.eye(D)
    model = bayes(
        covariance_type=kind, weight_concentration_prior_type=prior, nan_policy="missing", n_components=4
    )
    bounds = np.array(model.fit(holed(x) if gone else x, **given).lower_bounds_)
    assert np.diff(bounds).min() >= -1e-11 * np.abs(bounds).max()


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("kind", KINDS)
def test_all_labels_give_the_posterior_in_closed_form(kind: Any, prior: Any) -> None:
    x, labels, _, _ = rows()
    weight = np.random.default_rng(1).choice([1.0, 2.0], size=len(x))
    model = bayes(covariance_type=kind, weight_concentration_prior_type=prior, max_iter=2)
    model.fit(x, sample_weight=weight, known=labels)
    hot = weight[:, None] * np.eye(K)[labels]
    count = hot.sum(axis=0)
    means, beta, m0 = hot.T @ x / count[:, None], 1 + count, np.average(x, axis=0, weights=weight)
    np.testing.assert_allclose(model.mean_precision_, beta, rtol=1e-12)
    np.testing.assert_allclose(model.means_, (m0 + count[:, None] * means) / beta[:, None], rtol=1e-10)
    prior_scale, dof = np.cov(x.T, fweights=weight.astype(int)), D + count
    scatter = np.array(
        [
            (hot[:, k, None] * (x - means[k])).T @ (x - means[k])
            + count[k] / beta[k] * np.outer(means[k] - m0, means[k] - m0)
            for k in range(K)
        ]
    )
    scatter, dof = (scatter.mean(axis=0), D + count.mean()) if kind == "tied" else (scatter, dof)
    expected = (scatter + prior_scale) / np.asarray(dof)[..., None, None]
    shown = {"diag": lambda c: np.diagonal(c, axis1=1, axis2=2), "spherical": lambda c: np.trace(c.T) / D}
    np.testing.assert_allclose(model.covariances_, shown.get(kind, np.asarray)(expected), rtol=1e-9)
    if prior == "dirichlet_distribution":
        np.testing.assert_allclose(model.weight_concentration_, 1 / K + count, rtol=1e-12)
    else:
        after = [1 / K + count[1:].sum(), 1 / K + count[2], 1 / K]
        np.testing.assert_allclose(model.weight_concentration_, [1 + count, after], rtol=1e-12)


def step(model: BayesianGaussianMixture, x: Any, noise: Any, known: Any) -> tuple[Any, ...]:
    """An iteration from the definitions, of rows with errors: sizes, precisions of means, means, covariances."""
    sizes, beta, nu = model.weight_concentration_, model.mean_precision_, model.degrees_of_freedom_
    logs = digamma(sizes) - digamma(sizes.sum())
    logs += 0.5 * (digamma(0.5 * (nu - np.arange(D)[:, None])).sum(axis=0) + D * np.log(2 / nu) - D / beta)
    n, values = len(x), model.covariances_
    joint, gain = np.empty((n, K)), np.empty((n, K, D, D))
    for i in range(n):
        for k in range(K):
            seen = values[k] + np.diag(noise[i])
            joint[i, k] = logs[k] + multivariate_normal(model.means_[k], seen).logpdf(x[i])
            gain[i, k] = values[k] @ np.linalg.inv(seen)
    resp = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
    resp = np.where((known < 0)[:, None], resp, np.eye(K)[known])
    true = model.means_ + np.einsum("nkij,nkj->nki", gain, x[:, None] - model.means_)
    left = values - gain @ values
    count = resp.sum(axis=0)
    means = np.einsum("nk,nki->ki", resp, true) / count[:, None]
    apart, m0 = true - means, model.mean_prior_
    scatter = np.einsum("nk,nki,nkj->kij", resp, apart, apart) + np.einsum("nk,nkij->kij", resp, left)
    shrunk = 1 + count
    scatter += (count / shrunk)[:, None, None] * np.einsum("ki,kj->kij", means - m0, means - m0)
    covariances = (model.covariance_prior_ + scatter) / (D + count)[:, None, None]
    return 1 / K + count, shrunk, (m0 + count[:, None] * means) / shrunk[:, None], covariances


def test_inference_sees_through_errors_as_the_definitions_do() -> None:
    x, _, known, noise = rows(60)
    how: dict[str, Any] = {"weight_concentration_prior_type": "dirichlet_distribution", "block_size": 17 * 32}
    for n_iter in range(1, 5):
        before = bayes(max_iter=n_iter, **how).fit(x, noise=noise, known=known)
        after = bayes(max_iter=n_iter + 1, **how).fit(x, noise=noise, known=known)
        names = ("weight_concentration_", "mean_precision_", "means_", "covariances_")
        for name, expected in zip(names, step(before, x, noise, known), strict=True):
            np.testing.assert_allclose(getattr(after, name), expected, rtol=1e-9, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_inference_without_errors_or_labels_is_the_plain_one(kind: Any) -> None:
    x, _, _, noise = rows()
    plain = bayes(covariance_type=kind).fit(x)
    for none in ({"noise": 0 * noise}, {"known": np.full(len(x), -1)}):
        same = bayes(covariance_type=kind).fit(x, **none)
        np.testing.assert_allclose(same.means_, plain.means_, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(same.covariances_, plain.covariances_, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(same.lower_bounds_, plain.lower_bounds_, rtol=1e-11)


def test_components_of_a_posterior_are_numbered_as_the_labels() -> None:
    x, labels, _, _ = rows(3_000)
    for init in ("auto", "subsample"):
        for order in ([0, 1, 2], [2, 0, 1]):
            own = np.array(order)[labels]
            known = np.where(np.arange(len(x)) % 20 == 0, own, -1)
            model = BayesianGaussianMixture(6, max_iter=30, init_params=init, random_state=0).fit(x, known=known)
            assert np.mean(model.predict(x) == own) > 0.9
    # Two classes that halve one cluster: without labels the start would make one component of them.
    cluster = np.random.default_rng(0).normal(size=x.shape)
    halves = (cluster[:, 0] > 0).astype(int)
    start = BayesianGaussianMixture(2, max_iter=0, init_params="subsample", random_state=0)
    start.fit(cluster, known=np.where(np.arange(len(x)) % 2 == 0, halves, -1))
    assert start.weights_.min() > 0.4
    assert np.mean(start.predict(cluster) == halves) > 0.95


def test_a_posterior_behind_errors_is_narrower_than_the_rows() -> None:
    x, _, _, noise = rows(2_000)
    noise *= 5
    x += np.sqrt(0.8 * noise) * np.random.default_rng(3).normal(size=x.shape)
    how: dict[str, Any] = {"tol": "auto", "max_iter": 200}
    behind, plain = bayes(**how).fit(x, noise=noise), bayes(**how).fit(x)
    trace = np.trace(behind.covariances_.T).T / D
    assert trace.max() < 1.3 < (np.trace(plain.covariances_.T) / D).min()
    assert behind.score(x, noise=noise) > plain.score(x)
    assert (behind.predict(x, noise=noise) != behind.predict(x)).any()
