"""GaussianMixture: starts, restarts, criteria and what a fit reports."""

import itertools
import threading
import warnings
from typing import Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import adjusted_rand_score

from daskgmm import DataError, GaussianMixture, watching
from daskgmm.fit.accounting import Spent
from daskgmm.fit.events import Event, Progress, Reached, Stage
from tests.listeners import Heard
from tests.strategies import kinds
from tests.structures import KINDS, matrices, n_parameters

N, D, K = 300, 2, 3
RANDOM = np.random.default_rng(0)
LABELS = np.arange(N) % K
X = np.array([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]])[LABELS] + RANDOM.normal(size=(N, D))
WEIGHT = RANDOM.choice([0.5, 1.0, 3.0], N)
# Unit covariances, or precisions, of each kind.
UNIT = {"full": np.stack([np.eye(D)] * K), "tied": np.eye(D), "diag": np.ones((K, D)), "spherical": np.ones(K)}
quiet = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


# The start


@quiet
@pytest.mark.parametrize("kind", KINDS)
def test_no_iterations_keep_the_start(kind: Any) -> None:
    start: dict[str, Any] = {
        "weights_init": np.array([0.2, 0.3, 0.5]),
        "means_init": X[:K],
        "precisions_init": 4 * UNIT[kind],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)  # nothing was asked to converge
        model = GaussianMixture(K, covariance_type=kind, max_iter=0, **start).fit(X)
    np.testing.assert_array_equal(model.weights_, start["weights_init"])
    np.testing.assert_array_equal(model.means_, X[:K])
    np.testing.assert_array_equal(model.precisions_, 4 * UNIT[kind])
    np.testing.assert_array_equal(model.precisions_cholesky_, 2 * UNIT[kind])
    np.testing.assert_array_equal(model.covariances_, UNIT[kind] / 4)
    assert (model.n_iter_, model.converged_, model.lower_bounds_) == (0, False, [])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init_params", ["auto", "kmeans", "k-means++", "random_from_data", "subsample"])
@pytest.mark.parametrize("chunked", [False, True])
def test_every_seed_finds_clear_clusters(kind: Any, init_params: Any, chunked: bool) -> None:
    model = GaussianMixture(K, covariance_type=kind, init_params=init_params, n_init=5, random_state=0)
    labels = model.fit(da.from_array(X, chunks=(70, D)) if chunked else X).predict(X)
    assert adjusted_rand_score(LABELS, labels) > 0.95
    assert model.converged_


@quiet
def test_labels_and_responsibilities_start_alike() -> None:
    settings_: dict[str, Any] = {"max_iter": 4, "tol": 0.0}
    by_label = GaussianMixture(K, labels_init=LABELS, **settings_).fit(X, sample_weight=WEIGHT)
    by_resp = GaussianMixture(K, responsibilities_init=np.eye(K)[LABELS], **settings_).fit(X, sample_weight=WEIGHT)
    np.testing.assert_array_equal(by_label.means_, by_resp.means_)
    # The start is an M-step: component j is the one that has label j.
    nearest = np.linalg.norm(by_label.means_ - np.array([[0, 0], [8, 0], [0, 8]]), axis=1)
    assert nearest.max() < 0.5
    assert by_label.n_passes_ == 5


@quiet
def test_other_starts_do_not_matter_once_labels_are_given() -> None:
    ways: tuple[Any, ...] = ((0, "random"), (1, "kmeans"))
    a, b = (
        GaussianMixture(K, labels_init=LABELS, max_iter=2, random_state=s, init_params=i).fit(X) for s, i in ways
    )
    np.testing.assert_array_equal(a.means_, b.means_)


# One seed, one model


@quiet
@pytest.mark.parametrize("init_params", ["auto", "kmeans", "k-means++", "random", "random_from_data", "subsample"])
def test_same_seed_same_bits(init_params: Any) -> None:
    models = [
        GaussianMixture(K, init_params=init_params, n_init=3, random_state=7, max_iter=5, tol=0).fit(X)
        for _ in range(2)
    ]
    for name in ("weights_", "means_", "covariances_", "lower_bounds_"):
        np.testing.assert_array_equal(getattr(models[0], name), getattr(models[1], name))


@quiet
@settings(max_examples=15)
@given(edges=st.sets(st.integers(1, N - 1), max_size=8), kind=kinds)
def test_the_seed_does_not_depend_on_chunks(edges: set[int], kind: str) -> None:
    bounds = [0, *sorted(edges), N]
    chunks = tuple(b - a for a, b in itertools.pairwise(bounds))
    options: dict[str, Any] = {
        "covariance_type": kind,
        "init_params": "subsample",
        "random_state": 0,
        "max_iter": 5,
        "tol": 0,
    }
    found = GaussianMixture(K, **options).fit(da.from_array(X, chunks=(chunks, D)))
    expected = GaussianMixture(K, **options).fit(X)
    np.testing.assert_allclose(found.means_, expected.means_, rtol=0, atol=1e-11)
    np.testing.assert_allclose(found.lower_bounds_, expected.lower_bounds_, rtol=0, atol=1e-12)


def test_a_random_state_object_is_used_up() -> None:
    random = np.random.RandomState(0)
    a = GaussianMixture(K, init_params="random", random_state=random).fit(X)
    b = GaussianMixture(K, init_params="random", random_state=random).fit(X)
    assert not np.array_equal(a.means_, b.means_)


@pytest.mark.parametrize("bits", ["MT19937", "PCG64", "Philox"])
def test_random_numbers_of_any_generator(bits: str) -> None:
    a, b = (
        GaussianMixture(K, init_params="random", random_state=np.random.RandomState(getattr(np.random, bits)(5)))
        for _ in range(2)
    )
    assert a.fit(X).means_.tobytes() == b.fit(X).means_.tobytes()
    left, right = a.random_state, b.random_state
    assert left.random_sample() == right.random_sample()


def test_numbers_that_others_drew_meanwhile_are_not_drawn_again() -> None:
    random, drawn = np.random.RandomState(0), []
    with watching(lambda event: drawn.append(random.random_sample())):
        GaussianMixture(K, init_params="random", random_state=random).fit(X)
    drawn += random.random_sample(len(drawn)).tolist()
    assert len(set(drawn)) == len(drawn)


@quiet
def test_fits_at_the_same_time_start_from_different_numbers() -> None:
    random = np.random.RandomState(0)
    inner: list[Any] = []

    def fit(**more: Any) -> Any:
        return GaussianMixture(K, init_params="random", random_state=random, max_iter=1, **more).fit(X)

    def listen(event: Event) -> None:
        if isinstance(event, Stage) and event.name == "survey" and not inner:
            inner.append(None)
            inner.append(fit().means_)

    with watching(listen):
        outer = fit()
    assert not np.array_equal(outer.means_, inner[1])


def test_a_fit_that_draws_nothing_leaves_the_numbers() -> None:
    random, untouched = np.random.RandomState(0), np.random.RandomState(0)
    model = GaussianMixture(K, random_state=0).fit(X)
    model.set_params(random_state=random, warm_start=True).fit(X)
    assert random.random_sample() == untouched.random_sample()


# Weights


@quiet
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_repeated_rows(kind: str) -> None:
    times = RANDOM.integers(0, 4, N)
    start: dict[str, Any] = {"weights_init": np.full(K, 1 / K), "means_init": X[:K], "covariance_type": kind}
    weighted, repeated = (
        GaussianMixture(K, precisions_init=UNIT[kind], max_iter=10, tol=0, **start) for _ in range(2)
    )
    spoiled = np.where(times[:, None] == 0, np.nan, X)
    rows = np.repeat(X, times, axis=0)
    weighted.fit(spoiled, sample_weight=times)
    repeated.fit(rows)
    # Sums of 900 terms in another order, ten times.
    np.testing.assert_allclose(weighted.lower_bounds_, repeated.lower_bounds_, rtol=0, atol=1e-12)
    np.testing.assert_allclose(weighted.means_, repeated.means_, rtol=0, atol=1e-11)
    np.testing.assert_allclose(weighted.covariances_, repeated.covariances_, rtol=0, atol=1e-11)
    for name in ("score", "aic", "bic", "icl"):
        found = getattr(weighted, name)(spoiled, sample_weight=times)
        np.testing.assert_allclose(found, getattr(repeated, name)(rows), rtol=1e-12)


@quiet
def test_equal_weights_are_none() -> None:
    plain = GaussianMixture(K, random_state=0, max_iter=5, tol=0).fit(X)
    doubled = GaussianMixture(K, random_state=0, max_iter=5, tol=0).fit(X, sample_weight=np.full(N, 2.0))
    assert plain.lower_bounds_ == doubled.lower_bounds_
    np.testing.assert_array_equal(plain.means_, doubled.means_)


# What a fit reports


def test_convergence_is_reported() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        model = GaussianMixture(K, random_state=0, tol=1e-6).fit(X)
    assert model.converged_
    assert model.n_iter_ == len(model.lower_bounds_) < 100
    assert model.n_passes_ == model.n_iter_ + 1
    assert model.lower_bound_ == model.lower_bounds_[-1]
    assert abs(model.lower_bounds_[-1] - model.lower_bounds_[-2]) < 1e-6
    assert np.all(np.abs(np.diff(model.lower_bounds_[:-1])) >= 1e-6)
    # The bound is that of the parameters before the last update: a score now is no lower.
    assert model.lower_bound_ <= model.score(X) + 1e-12


def test_no_convergence_is_a_warning() -> None:
    model = GaussianMixture(K, random_state=0, tol=1e-12, max_iter=2)
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        model.fit(X)
    assert not model.converged_
    assert model.n_iter_ == 2
    assert model.n_passes_ == 3


@quiet
def test_the_best_of_several_starts_wins() -> None:
    options: dict[str, Any] = {"init_params": "random", "max_iter": 15, "tol": 0.0}
    first, best = (GaussianMixture(K, n_init=n, random_state=3, **options).fit(X) for n in (1, 6))
    assert best.lower_bound_ > first.lower_bound_
    assert best.n_passes_ == first.n_passes_ == 16


def test_passes_of_starts_that_end_apart_are_counted_once() -> None:
    options: dict[str, Any] = {"init_params": "random_from_data", "tol": 1e-7, "max_iter": 500}
    model = GaussianMixture(K, n_init=5, random_state=0, **options).fit(X)
    # The passes are those of the longest run, not the sum, and not only those of the best.
    assert model.n_iter_ + 1 <= model.n_passes_ <= 501


def test_verbose_prints_lines(capsys: pytest.CaptureFixture[str]) -> None:
    GaussianMixture(K, random_state=0, verbose=1, verbose_interval=1, tol=1e-6).fit(X)
    printed = capsys.readouterr().out
    assert "iteration 1: mean log-likelihood" in printed
    assert "converged" in printed
    GaussianMixture(K, random_state=0).fit(X)
    assert capsys.readouterr().out == ""


@quiet
def test_progress_is_told_in_order() -> None:
    heard = Heard()
    with watching(heard):
        GaussianMixture(K, random_state=0, max_iter=2, tol=0).fit(da.from_array(X, chunks=(150, D)))
    told: list[Any] = []
    for event in heard.events:
        if isinstance(event, Reached):
            told.append([run.n_iter for run in event.state.runs])
        elif event != Stage("compiling") and not isinstance(event, Spent):
            told.append(event)
    passed = [Progress(1, 2), Progress(2, 2)]
    survey = [[], Stage("survey"), *passed, [], Stage("seeding"), [0]]
    assert told == [*survey, Stage("pass 2"), *passed, [1], Stage("pass 3"), *passed, [2], Stage("done")]


# Warm starts


@quiet
def test_a_warm_start_goes_on() -> None:
    options: dict[str, Any] = {"random_state": 0, "tol": 0.0}
    whole = GaussianMixture(K, max_iter=7, **options).fit(X)
    model = GaussianMixture(K, max_iter=3, warm_start=True, **options).fit(X)
    first = model.lower_bounds_
    assert model.n_passes_ == 4
    model.set_params(max_iter=4).fit(X)
    assert model.n_passes_ == model.n_iter_ == 4  # no survey
    assert first + model.lower_bounds_ == whole.lower_bounds_
    np.testing.assert_array_equal(model.means_, whole.means_)
    np.testing.assert_array_equal(model.covariances_, whole.covariances_)


def test_a_warm_start_at_the_end_stops_at_once() -> None:
    model = GaussianMixture(K, random_state=0, warm_start=True, tol=1e-4).fit(X)
    before = model.lower_bound_
    model.fit(X)
    assert model.n_iter_ == 1
    assert model.converged_
    assert abs(model.lower_bound_ - before) < 1e-4


def test_a_cold_start_forgets() -> None:
    model = GaussianMixture(K, random_state=0).fit(X + 100)
    model.fit(X)
    np.testing.assert_array_equal(model.means_, GaussianMixture(K, random_state=0).fit(X).means_)


# Criteria


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_criteria_are_their_formulas(kind: Any, weighted: bool) -> None:
    model = GaussianMixture(K, covariance_type=kind, random_state=0).fit(X)
    w = WEIGHT if weighted else np.ones(N)
    given: dict[str, Any] = {"sample_weight": WEIGHT} if weighted else {}
    density, resp = model.score_samples(X), model.predict_proba(X)
    parameters = n_parameters(kind, K, D)
    log_likelihood, n = w @ density, w.sum()
    entropy = -np.sum(w[:, None] * np.where(resp > 0, resp * np.log(np.where(resp > 0, resp, 1)), 0))
    bic = -2 * log_likelihood + parameters * np.log(n)
    np.testing.assert_allclose(model.score(X, **given), log_likelihood / n, rtol=1e-13)
    np.testing.assert_allclose(model.aic(X, **given), -2 * log_likelihood + 2 * parameters, rtol=1e-13)
    np.testing.assert_allclose(model.bic(X, **given), bic, rtol=1e-13)
    np.testing.assert_allclose(model.icl(X, **given), bic + 2 * entropy, rtol=1e-13)
    assert model.icl(X, **given) > model.bic(X, **given)


def test_icl_is_the_entropy_above_bic() -> None:
    # Two equal components: every row is torn between them, with an entropy of log 2 each.
    model = GaussianMixture.from_parameters([0.5, 0.5], np.zeros((2, 1)), np.ones((2, 1, 1)))
    x = np.linspace(-3, 3, 50)[:, None]
    np.testing.assert_allclose(model.icl(x) - model.bic(x), 2 * 50 * np.log(2), rtol=1e-12)


def test_criteria_choose_the_number_of_components() -> None:
    models = [GaussianMixture(k, random_state=0, n_init=3, max_iter=500).fit(X) for k in range(1, 6)]
    for name in ("bic", "icl"):
        assert 1 + int(np.argmin([getattr(m, name)(X) for m in models])) == K


# Queries and samples


@pytest.mark.parametrize("kind", KINDS)
def test_queries_agree_with_each_other(kind: Any) -> None:
    model = GaussianMixture(K, covariance_type=kind, random_state=0).fit(X)
    resp = model.predict_proba(X)
    np.testing.assert_allclose(resp.sum(axis=1), 1, rtol=1e-13)
    np.testing.assert_array_equal(model.predict(X), resp.argmax(axis=1))
    np.testing.assert_allclose(model.score(X), model.score_samples(X).mean(), rtol=1e-13)


def test_attributes_belong_together() -> None:
    for kind in KINDS:
        model = GaussianMixture(K, covariance_type=kind, random_state=0).fit(X)
        c, p, u = model.covariances_, model.precisions_, model.precisions_cholesky_
        assert c.shape == p.shape == u.shape
        if kind in ("full", "tied"):
            np.testing.assert_allclose(c @ p, np.broadcast_to(np.eye(D), c.shape), atol=1e-12)
            np.testing.assert_allclose(u @ np.swapaxes(u, -1, -2), p, rtol=1e-12)
            np.testing.assert_array_equal(c, np.swapaxes(c, -1, -2))
        else:
            np.testing.assert_allclose(c * p, 1, rtol=1e-12)
            np.testing.assert_allclose(u**2, p, rtol=1e-12)
        assert model.n_features_in_ == D
        np.testing.assert_allclose(model.weights_.sum(), 1, rtol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_fits_like_the_rows(kind: Any) -> None:
    model = GaussianMixture(K, covariance_type=kind, random_state=0).fit(X)
    x, y = model.sample(20_000)
    assert x.shape == (20_000, D)
    assert x.dtype == np.float64
    assert y.shape == (20_000,)
    np.testing.assert_array_equal(x, model.sample(20_000)[0])  # an integer seed, as in scikit-learn
    again = GaussianMixture(K, covariance_type=kind, means_init=model.means_, random_state=0).fit(x)
    # Some 6,000 rows to a component: standard errors of 1 / 80 in means and 1 / 50 in covariances.
    np.testing.assert_allclose(again.means_, model.means_, atol=0.07)
    np.testing.assert_allclose(again.weights_, model.weights_, atol=0.02)
    np.testing.assert_allclose(again.covariances_, model.covariances_, atol=0.1)
    # Rows come by component, as told: each is near its own mean.
    assert np.all(np.diff(y) >= 0)
    for j in range(K):
        np.testing.assert_allclose(x[y == j].mean(axis=0), model.means_[j], atol=0.07)


@pytest.mark.parametrize("n", [0, -1])
def test_a_sample_has_a_row(n: int) -> None:
    with pytest.raises(ValueError, match="Invalid value for 'n_samples'"):
        GaussianMixture(random_state=0).fit(X).sample(n)


def test_one_component_is_mean_and_covariance() -> None:
    model = GaussianMixture(reg_covar=0).fit(X, sample_weight=WEIGHT)
    mean = WEIGHT @ X / WEIGHT.sum()
    np.testing.assert_allclose(model.means_[0], mean, rtol=1e-12)
    np.testing.assert_allclose(model.covariances_[0], np.cov(X.T, aweights=WEIGHT, bias=True), rtol=1e-12)
    np.testing.assert_array_equal(model.weights_, [1.0])


@quiet
def test_as_many_components_as_rows() -> None:
    model = GaussianMixture(5, random_state=0).fit(X[:5])
    np.testing.assert_allclose(np.sort(model.means_[:, 0]), np.sort(X[:5, 0]), atol=1e-6)


def test_a_fit_is_seen_at_once_when_it_has_ended() -> None:
    # What the model answers in mid-fit is that of the last fit.
    model = GaussianMixture(K, random_state=0).fit(X)
    before, during = model.score_samples(X), []
    with watching(lambda event: during.append(model.score_samples(X)) if isinstance(event, Reached) else None):
        model.fit(2 * X + 50)
    assert len(during) > 3
    for answer in during:
        np.testing.assert_array_equal(answer, before)
    assert np.all(model.score_samples(X) < before - 100)


def test_predicting_while_fitting_never_mixes_two_models() -> None:
    # All attributes are views of one value that is swapped at once, so that each answer is of one of the fits.
    rows = [X[:50], 3 * X[:50] + 5, X[:50, :1]]
    models = [GaussianMixture(1).fit(x) for x in rows]
    known = {(m.means_.tobytes(), m.covariances_.tobytes(), m.weights_.tobytes()) for m in models}
    model, stop, found = GaussianMixture(1).fit(rows[0]), threading.Event(), set()

    def watch() -> None:
        while not stop.is_set():
            m = model.mixture_
            found.add((m.means.tobytes(), m.covariance.values.tobytes(), m.weights.tobytes()))

    thread = threading.Thread(target=watch)
    thread.start()
    for x in rows * 20:
        model.fit(x)
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    assert len(found) > 1
    assert found <= known


# Parameters as one value, and all scores in one pass


@pytest.mark.parametrize("kind", KINDS)
def test_the_mixture_is_all_parameters_as_one_value(kind: Any) -> None:
    model = GaussianMixture(K, covariance_type=kind, random_state=0)
    assert not hasattr(model, "mixture_")
    model.fit(X)
    mixture = model.mixture_
    assert (mixture.n_components, mixture.n_features, mixture.covariance.structure.name) == (K, D, kind)
    np.testing.assert_array_equal(mixture.weights, model.weights_)
    np.testing.assert_array_equal(mixture.means, model.means_)
    dense = matrices(mixture.covariance.values, kind, K, D)
    np.testing.assert_array_equal(dense, matrices(model.covariances_, kind, K, D))
    assert mixture.n_parameters == n_parameters(kind, K, D)
    with pytest.raises(AttributeError):
        model.mixture_ = mixture  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        mixture.weights = np.ones(K)  # type: ignore[misc]


def test_evaluate_tells_all_scores_in_one_pass(reads: Any) -> None:
    model, weight = GaussianMixture(K, random_state=0).fit(X), np.where(np.arange(N) % 7, WEIGHT, 0)
    data, density = reads(X, (70, D)), model.score_samples(X)
    score = model.evaluate(data.array, weight, entropy=True)
    assert data.counts == dict.fromkeys(range(5), 1)
    np.testing.assert_allclose(score.log_likelihood, weight @ density, rtol=1e-13)
    np.testing.assert_allclose(score.total_weight, weight.sum(), rtol=1e-15)
    assert score.n_parameters == n_parameters("full", K, D)
    given = {"sample_weight": weight}
    found = (score.mean, score.aic, score.bic, score.icl)
    for one, name in zip(found, ("score", "aic", "bic", "icl"), strict=True):
        np.testing.assert_allclose(one, getattr(model, name)(X, **given), rtol=1e-13, err_msg=name)
    assert score.entropy > 0
    plain = model.evaluate(data.array, weight)
    assert (plain.log_likelihood, plain.bic) == (score.log_likelihood, score.bic)
    assert np.isnan(plain.icl)


def test_scores_of_parts_add_up_to_that_of_the_whole() -> None:
    model = GaussianMixture(K, random_state=0).fit(X)
    parts = [model.evaluate(x, entropy=True) for x in (X[:100], X[100:])]
    whole, added = model.evaluate(X, entropy=True), parts[0] + parts[1]
    for name in ("mean", "log_likelihood", "entropy", "total_weight", "n_parameters", "aic", "bic", "icl"):
        np.testing.assert_allclose(getattr(added, name), getattr(whole, name), rtol=1e-13, err_msg=name)


def test_evaluate_needs_a_fit_and_weight() -> None:
    with pytest.raises(NotFittedError):
        GaussianMixture().evaluate(X)
    with pytest.raises(DataError, match="at least one non-zero number"):
        GaussianMixture().fit(X).evaluate(X, np.zeros(N))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 10))])
def test_a_rare_cluster_far_away_is_found(seed: int) -> None:
    """It has fewer rows than features where starts are tried: none that fits these rows alone is to win."""
    rng = np.random.default_rng(0)
    n, rare, d = 100_000, 500, 64
    bulk = rng.choice([-0.5, 0.5], size=(n - rare, 1)) + rng.normal(size=(n - rare, d))
    x = np.concatenate([bulk, 5 + 0.7 * rng.normal(size=(rare, d))])[rng.permutation(n)]
    model = GaussianMixture(3, random_state=seed).fit(x)
    smallest = np.argmin(model.weights_)
    np.testing.assert_allclose(model.weights_[smallest], rare / n, rtol=0.02)
    np.testing.assert_allclose(model.means_[smallest], 5, atol=0.2)
