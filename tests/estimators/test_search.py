"""GaussianMixtureSearch: the table is that of fits one by one, the best is chosen, and queries are its."""

import pickle
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.mixture import GaussianMixture as Theirs
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

from daskgmm import CollapseError, DataError, GaussianMixture, GaussianMixtureSearch, load, watching
from daskgmm.errors import CheckpointError
from daskgmm.store.values import digest
from tests.drivers import lives
from tests.forks import Fork
from tests.listeners import SEEDED, Heard, stop

RANDOM = np.random.default_rng(0)
MEANS = np.array([[0.0, 0, 0], [5, 0, 1], [0, 6, -2]])
LABELS = RANDOM.choice(3, size=900, p=[0.5, 0.3, 0.2])
X = MEANS[LABELS] + RANDOM.normal(size=(900, 3)) * [1.0, 0.5, 2.0]
TYPES = ("full", "diag", "spherical")

pytestmark = pytest.mark.filterwarnings("ignore:The best candidate", "ignore:Best performing")


def fit(x: Any = X, weight: Any = None, **settings: Any) -> GaussianMixtureSearch:
    few: dict[str, Any] = {"n_components": [1, 3, 4], "covariance_types": ["full", "diag"], "random_state": 0}
    search = GaussianMixtureSearch(**(few | settings))
    search.fit(x, sample_weight=weight)
    return search


ASKED: dict[str, Any] = {"tol": "auto", "max_iter": 1000}  # by a search, if nothing else is


def alone(results: dict[str, Any], row: int, **settings: Any) -> GaussianMixture:
    kind: Any = str(results["covariance_type"][row])
    k = int(results["n_components"][row])
    return GaussianMixture(k, covariance_type=kind, random_state=0, **ASKED | settings)


@pytest.fixture(scope="module")
def searched() -> GaussianMixtureSearch:
    return fit(n_components=[1, 2, 3, 4], covariance_types=TYPES, refine=12)


def assert_same_table(a: GaussianMixtureSearch, b: GaussianMixtureSearch, atol: float = 0.0) -> None:
    assert a.results_.keys() == b.results_.keys()
    for name, values in a.results_.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(values, b.results_[name], rtol=atol, atol=atol, err_msg=name)
        else:
            np.testing.assert_array_equal(values, b.results_[name], name)


# The table


def test_the_table_is_that_of_fits_one_by_one(searched: GaussianMixtureSearch) -> None:
    results = searched.results_
    assert list(results["n_components"]) == [1, 2, 3, 4] * 3
    assert list(results["covariance_type"]) == [name for name in TYPES for _ in range(4)]
    for row in range(12):
        model = alone(results, row).fit(X)
        score = model.evaluate(X, entropy=True)
        assert results["log_likelihood"][row] == pytest.approx(score.mean, abs=1e-10)
        for name in ("bic", "aic", "icl"):
            assert results[name][row] == pytest.approx(getattr(score, name), rel=1e-10)
        assert (results["n_iter"][row], results["converged"][row]) == (model.n_iter_, model.converged_)
        assert results["n_passes"][row] == model.n_passes_ + 1
        assert results["smallest_weight"][row] == pytest.approx(model.weights_.min(), rel=1e-8)
    assert np.isnan(results["held_out"]).all()
    assert not results["dropped"].any()
    assert searched.n_passes_ == results["n_passes"].max()


def test_the_columns_are_arrays_of_one_length(searched: GaussianMixtureSearch) -> None:
    names = "n_components covariance_type log_likelihood bic aic icl held_out n_iter n_passes converged dropped"
    assert [*searched.results_] == [*names.split(), "smallest_weight"]
    assert {values.shape for values in searched.results_.values()} == {(12,)}


@pytest.mark.parametrize("criterion", ["bic", "aic", "icl", "held_out"])
def test_the_best_has_the_best_criterion(criterion: str) -> None:
    search = fit(criterion=criterion, tol=1e-5, max_iter=50)
    column = search.results_[criterion]
    best = np.nanargmax(column) if criterion == "held_out" else np.nanargmin(column)
    assert search.best_index_ == best
    assert search.best_params_ == {
        "n_components": search.results_["n_components"][best],
        "covariance_type": search.results_["covariance_type"][best],
    }
    if criterion in ("bic", "icl"):
        assert search.best_params_ == {"n_components": 3, "covariance_type": "diag"}
    assert np.isnan(search.results_["held_out"]).all() == (criterion != "held_out")


def test_the_order_changes_nothing(searched: GaussianMixtureSearch) -> None:
    other = fit(n_components=[3, 1, 4, 2], covariance_types=TYPES[::-1], refine=12)
    order = [
        list(zip(other.results_["n_components"], other.results_["covariance_type"], strict=True)).index(pair)
        for pair in zip(searched.results_["n_components"], searched.results_["covariance_type"], strict=True)
    ]
    for name, values in searched.results_.items():
        np.testing.assert_array_equal(other.results_[name][order], values, name)
    assert digest(other.best_estimator_.mixture_) == digest(searched.best_estimator_.mixture_)


def test_a_weight_of_two_is_two_rows() -> None:
    weight = np.where(np.arange(len(X)) % 3 == 0, 2.0, 1.0)
    twice = np.repeat(X, weight.astype(int), axis=0)
    settings = {"covariance_types": ["full", "tied"], "tol": 1e-9, "max_iter": 300, "refine": 8}
    start = {"n_components": [1, 2]}  # whose optimum does not depend on where they begin
    a, b = fit(X, weight, **start, **settings), fit(twice, **start, **settings)
    np.testing.assert_allclose(a.results_["log_likelihood"], b.results_["log_likelihood"], atol=1e-6)
    np.testing.assert_allclose(a.results_["bic"], b.results_["bic"], rtol=1e-6)
    assert a.best_params_ == b.best_params_


def test_rows_without_weight_and_with_nan_are_left_out() -> None:
    more = np.concatenate([X, np.full((50, 3), np.nan)])
    weight = np.r_[np.ones(len(X)), np.zeros(50)]
    found = [fit(more, weight), fit(more, nan_policy="omit"), fit(X)]
    for other in found[:2]:
        assert_same_table(found[2], other, atol=1e-9)


@pytest.mark.parametrize("criterion", ["bic", "held_out"])
def test_blocks_do_not_matter(criterion: str) -> None:
    settings: dict[str, Any] = {"criterion": criterion, "refine": 12, "n_components": [1, 3]}
    whole = fit(**settings)
    for x in (da.from_array(X, chunks=(300, 3)), da.from_array(X, chunks=((450, 449, 1), (2, 1)))):
        assert_same_table(whole, fit(x, **settings), atol=1e-7)


def test_a_path_is_read_as_often_as_the_slowest_takes(tmp_path: Path, reads: Any) -> None:
    path = str(tmp_path / "x.zarr")
    zarr.create_array(path, data=X, chunks=(300, 3))
    seen = reads(X, (300, 3))
    by_path, counted = fit(path), fit(seen.array)
    assert_same_table(by_path, counted, atol=1e-12)
    assert seen.total == 3 * counted.n_passes_
    slowest = max(alone(counted.results_, row).fit(X).n_passes_ for row in range(6))
    assert counted.n_passes_ <= slowest + 1


@pytest.mark.timeout(120)
def test_workers_find_the_same_bits(clusters: Any) -> None:
    x = da.from_array(X, chunks=(300, 3))
    for criterion in ("bic", "held_out"):
        here = fit(x, criterion=criterion, n_components=[1, 3])
        with clusters(2, False).as_current():
            there = fit(x, criterion=criterion, n_components=[1, 3])
        assert_same_table(here, there)
        assert digest(here.mixture_) == digest(there.mixture_)


# The truth


@pytest.mark.parametrize("seed", range(2))
def test_the_truth_is_found(seed: int) -> None:
    random = np.random.default_rng(seed)
    k, d = int(random.integers(2, 6)), int(random.integers(2, 5))
    means = 4.0 * np.stack([np.eye(8, d)[j % d] * (1 + j // d) * (-1) ** j for j in range(k)])
    x = means[random.choice(k, size=1000)] + random.normal(size=(1000, d)) * random.uniform(0.5, 1.5, size=d)
    search = fit(x, n_components=range(1, 7), tol=1e-5, max_iter=200)
    theirs = [Theirs(j, tol=1e-5, max_iter=200, random_state=0).fit(x).bic(x) for j in range(1, 7)]
    if int(np.argmin(theirs)) + 1 == k:
        assert search.best_params_["n_components"] == k


# Queries are those of the best


def test_queries_are_those_of_the_best(searched: GaussianMixtureSearch) -> None:
    best = searched.best_estimator_
    assert isinstance(best, GaussianMixture)
    assert searched.best_estimator_ is best
    assert best.get_params()["n_components"] == searched.best_params_["n_components"]
    for method in ("predict", "predict_proba", "score_samples", "score", "bic", "aic", "icl"):
        np.testing.assert_array_equal(getattr(searched, method)(X), getattr(best, method)(X))
    for name in ("weights_", "means_", "covariances_", "converged_", "n_iter_", "n_features_in_", "lower_bound_"):
        np.testing.assert_array_equal(getattr(searched, name), getattr(best, name))
    assert searched.bic(X) == pytest.approx(searched.results_["bic"][searched.best_index_], rel=1e-12)
    assert best.bic_ == pytest.approx(best.bic(X), rel=1e-12)  # of the parameters that came out
    assert best.to_sklearn().bic(X) == pytest.approx(best.bic(X))


def test_the_best_is_saved(searched: GaussianMixtureSearch, tmp_path: Path) -> None:
    searched.save(tmp_path / "best.npz")
    model = load(tmp_path / "best.npz")
    assert isinstance(model, GaussianMixture)
    assert digest(model.mixture_) == digest(searched.mixture_)
    assert model.n_iter_ == searched.n_iter_
    with pytest.raises(NotFittedError):
        GaussianMixtureSearch().save(tmp_path / "none.npz")


def test_the_best_goes_on(searched: GaussianMixtureSearch) -> None:
    best = pickle.loads(pickle.dumps(searched)).best_estimator_
    before = best.score(X)
    best.set_params(warm_start=True, tol=1e-9, max_iter=500).fit(X)
    assert best.score(X) >= before - 1e-6


# Checkpoints


@pytest.mark.parametrize("criterion", ["bic", "held_out"])
def test_a_search_that_is_stopped_goes_on_to_the_same_bits(criterion: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"criterion": criterion, "tol": 0.0, "n_components": [1, 4], "max_iter": 12}
    whole = fit(**settings)
    for after in (0, 1, 2, 6):
        with pytest.raises(KeyboardInterrupt), watching(stop(after)):
            fit(checkpoint=tmp_path / f"{after}", **settings)
        again = fit(checkpoint=tmp_path / f"{after}", **settings)
        assert_same_table(again, whole)
        assert digest(again.mixture_) == digest(whole.mixture_)
        assert again.n_passes_ == whole.n_passes_


PROGRAM = """
import sys, warnings
import numpy as np
from daskgmm import GaussianMixtureSearch
warnings.simplefilter("ignore")
data, place, out = sys.argv[1:]
settings = {settings!r}
print("ready", flush=True)
GaussianMixtureSearch(**settings, checkpoint=place).fit(np.load(data)).save(out)
"""
LONG: dict[str, Any] = {"n_components": [2, 3, 4], "tol": 0.0, "max_iter": 60, "random_state": 0, "refine": 3}


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
def test_a_killed_driver_goes_on_to_the_same_bits(kills: int, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    whole = fit(covariance_types="full", **LONG)
    place, out = tmp_path / "c", tmp_path / "out.npz"
    program = PROGRAM.format(settings=LONG)
    for _ in lives(lambda: Fork(program, tmp_path / "x.npy", place, out), kills, 0.6, place, out):
        again = fit(covariance_types="full", checkpoint=place, **LONG)
        assert_same_table(again, whole)
        assert digest(again.mixture_) == digest(whole.mixture_)


def test_a_checkpoint_of_another_search_is_refused(tmp_path: Path) -> None:
    fit(checkpoint=tmp_path / "c")
    for other in (
        {"n_components": [1, 3]},
        {"covariance_types": ["full"]},
        {"criterion": "aic"},
        {"refine": 2},
    ):
        with pytest.raises(CheckpointError, match=f"{next(iter(other))}: .* there"):
            fit(checkpoint=tmp_path / "c", **other)
    with pytest.raises(CheckpointError, match="GaussianMixtureSearch' there, 'GaussianMixture' now"):
        GaussianMixture(3, random_state=0, checkpoint=tmp_path / "c").fit(X)


def test_an_interrupt_leaves_the_best_so_far() -> None:
    search = GaussianMixtureSearch([1, 2, 3], random_state=0, tol=1e-9)
    with pytest.raises(KeyboardInterrupt), watching(stop(SEEDED)):
        search.fit(X)
    assert not hasattr(search, "best_estimator_")
    with pytest.raises(KeyboardInterrupt), watching(stop(SEEDED + 3)):
        search.fit(X)
    assert search.best_params_["n_components"] == 3
    assert (search.n_iter_, search.n_passes_) == (3, 4)


# Whoever watches


def test_verbose_prints_each_candidate_as_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    search = fit(verbose=1, n_components=[1, 3], covariance_types=["full", "diag"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == ["survey", "seeding"]
    told = [line for line in lines if "components, " in line or "component, " in line]
    assert len(told) == 4
    for row in range(4):
        k, kind = int(search.results_["n_components"][row]), search.results_["covariance_type"][row]
        (line,) = (line for line in told if line.startswith(f"{k} component{'s' * (k > 1)}, {kind}:"))
        assert f"bic {search.results_['bic'][row]:.10g}" in line


def test_states_are_told() -> None:
    heard = Heard()
    with watching(heard):
        search = fit()
    assert heard.states[-1].n_passes == search.n_passes_
    assert heard.states[-1].done


# What scikit-learn expects


@parametrize_with_checks([GaussianMixtureSearch([1, 2])])  # type: ignore[untyped-decorator]
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_clone_keeps_the_settings() -> None:
    search = fit(n_components=range(1, 3), criterion="aic")
    again = clone(search)
    assert again.get_params() == search.get_params()
    assert not hasattr(again, "results_")
    assert_same_table(again.fit(X), search)


def test_settings_are_those_of_a_fit_and_the_search() -> None:
    own = {"n_components", "covariance_types", "criterion", "held_out", "refine"}
    of_one = {"warm_start", "covariance_type", "weights_init", "means_init", "precisions_init"}
    of_one |= {"labels_init", "responsibilities_init", "frozen"}
    shared = GaussianMixture().get_params().keys() - of_one - {"n_components"}
    ours = GaussianMixtureSearch().get_params()
    assert ours.keys() == own | shared
    assert ours["n_components"] == tuple(range(1, 11))
    assert (ours["covariance_types"], ours["criterion"], ours["held_out"]) == (("full",), "bic", 0.1)
    theirs = GaussianMixture().get_params()
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared} | ASKED


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_components": []}, "n_components must be different integers >= 1"),
        ({"n_components": [1, 1]}, "n_components must be different integers"),
        ({"n_components": [0, 1]}, "n_components must be different integers"),
        ({"n_components": [1.5]}, "n_components must be different integers"),
        ({"n_components": 0}, "The 'n_components' parameter"),
        ({"covariance_types": ["round"]}, "covariance_types must be different ones of"),
        ({"covariance_types": "round"}, "The 'covariance_types' parameter"),
        ({"covariance_types": ["full", "full"]}, "covariance_types must be different ones of"),
        ({"criterion": "gap"}, "The 'criterion' parameter"),
        ({"held_out": 1.0}, "The 'held_out' parameter"),
        ({"refine": 0}, "The 'refine' parameter"),
        ({"tol": -1.0}, "The 'tol' parameter"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    search = GaussianMixtureSearch(**settings)  # __init__ only assigns
    with pytest.raises(ValueError, match=message):
        search.fit(X)
    assert not hasattr(search, "results_")


def test_numbers_of_other_types_will_do() -> None:
    search = fit(n_components=np.arange(1, 3), covariance_types="diag")
    assert type(search.best_estimator_.n_components) is int
    assert search.results_["covariance_type"].tolist() == ["diag", "diag"]


# What goes wrong


def test_too_few_rows() -> None:
    with pytest.raises(DataError, match="n_components = 4, n_samples = 3"):
        fit(X[:3])
    with pytest.raises(DataError, match="n_samples >= n_components"):
        fit(X[:4], criterion="held_out", held_out=0.9)


def test_what_collapses_has_nan_in_the_table() -> None:
    plane = np.column_stack([X, X[:, 0]])
    search = fit(plane, reg_covar=0.0, covariance_types=["full", "diag"])
    broken = np.isnan(search.results_["bic"])
    assert (search.results_["covariance_type"][broken] == "full").all()
    assert broken.sum() == 3
    assert not search.results_["converged"][broken].any()
    assert search.best_params_["covariance_type"] == "diag"
    with pytest.raises(CollapseError):
        fit(plane, reg_covar=0.0, covariance_types="full")


def test_bad_rows_are_refused() -> None:
    bad = X.copy()
    bad[700, 1] = np.nan
    with pytest.raises(DataError, match=r"row\(s\) 700"):
        fit(bad)


def test_the_best_that_did_not_converge_is_told() -> None:
    with pytest.warns(ConvergenceWarning, match="The best candidate did not converge"):
        fit(max_iter=2, tol=0.0)


def test_scikit_learns_grid_search_on_a_path_says_what_to_use(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "x.zarr"), data=X, chunks=(100, 3))
    with pytest.raises(
        ValueError, match=r"X is a list of letters.*GaussianMixtureSearch\(criterion=\"held_out\"\)"
    ) as info:
        GridSearchCV(GaussianMixture(), {"n_components": [1, 2]}).fit(str(tmp_path / "x.zarr"))
    assert str(info.value).count("Traceback") == 1
    assert str(info.value).rstrip().splitlines()[-1].startswith("daskgmm.errors.DataError: X is a list of letters")
    with dask.config.set(scheduler="synchronous"):
        found = GridSearchCV(GaussianMixture(random_state=0), {"n_components": [1, 3]}, cv=2)
        found.fit(da.from_zarr(str(tmp_path / "x.zarr")))
    assert found.best_params_ == {"n_components": 3}
