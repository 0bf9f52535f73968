"""Fits of each covariance type that scikit-learn does not have, through every door; mclust's table of iris."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.datasets import load_iris

from daskgmm import GaussianMixture, GaussianMixtureSearch, MiniBatchGaussianMixture, load, watching
from daskgmm.cli import main
from daskgmm.model.structure import PLAIN, STRUCTURES, Structure, structure_of
from daskgmm.store.values import digest
from tests.listeners import stop

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
NAMES = [*(name for name, s in STRUCTURES.items() if s.name == name and s not in PLAIN), "factors"]
every_name = pytest.mark.parametrize("name", NAMES)
CODES = ["EII", "VII", "EEI", "VEI", "EVI", "VVI", "EEE", "VEE", "EVV", "EEV", "VEV", "VVV"]
# mclust's BIC of iris, as its `Mclust(iris[, -5])` prints it: 10 of the models for 1 to 3 components are in the
# repository of R's norMmix, VEV for 2 and 3 in tutorials. EM from hierarchical clusters, until the log-likelihood
# changes by 1e-5 of itself.
PUBLISHED: dict[str, list[float]] = {
    "EII": [-1804.0854, -1123.4117, -878.7650],
    "VII": [-1804.0854, -1012.2352, -853.8144],
    "EEI": [-1522.1202, -1042.9679, -813.0504],
    "VEI": [-1522.1202, -956.2823, -779.1566],
    "EVI": [-1522.1202, -1007.3082, -797.8342],
    "VVI": [-1522.1202, -857.5515, -744.6382],
    "EEE": [-829.9782, -688.0972, -632.9647],
    "VEE": [-829.9782, -656.3270, -605.3982],
    "EVV": [-829.9782, -658.3306],
    "EEV": [-829.9782],
    "VEV": [-829.9782, -561.7285, -562.5522],
    "VVV": [-829.9782, -574.0178, -580.8396],
}


def rows(n: int = 300, d: int = 4, seed: int = 0) -> Any:
    """Rows of three clusters that overlap, each with its own shape."""
    random = np.random.default_rng(seed)
    means, turned = 2 * random.normal(size=(3, d)), random.normal(size=(3, d, d))
    which = random.integers(3, size=n)
    return means[which] + np.einsum("nd,nde->ne", random.normal(size=(n, d)), turned[which])


def model(name: str, kind: Any = GaussianMixture, **settings: Any) -> Any:
    n_factors = 1 if name == "factors" else None
    how: dict[str, Any] = {"n_components": 3, "random_state": 0}
    how |= {"covariance_type": name, "n_factors": n_factors}
    return kind(**{**how, **settings})


def structure(name: str) -> Structure:
    return structure_of(name, 1)


@pytest.mark.parametrize("code", CODES)
def test_iris_has_the_bic_that_mclust_tells(code: str) -> None:
    x, species = load_iris(return_X_y=True)
    for k, published in enumerate(PUBLISHED[code], 1):
        found = []
        labels = [0 * species, species > 0, species][k - 1]
        for start in ({"labels_init": labels}, {"init_params": "kmeans"}):
            fitted = model(code, n_components=k, tol=1e-8, reg_covar=0.0, max_iter=1000, **start).fit(x)
            found.append(-fitted.bic(x))
        # There are several optima, and its rule leaves something to be gained.
        assert any(published - 1e-3 < bic < published + 1e-2 for bic in found), (k, found)


@every_name
@pytest.mark.parametrize("more", [{}, {"nan_policy": "missing"}, {"prior": "weak"}, {"acceleration": "lbfgs"}])
def test_the_log_likelihood_never_falls(name: str, more: dict[str, Any]) -> None:
    x = rows()
    if "nan_policy" in more:
        x[np.arange(0, 300, 2), np.arange(150) % 4] = np.nan
    how = {"tol": 0.0, "reg_covar": 0.0, "max_iter": 25, "init_params": "random", "acceleration": None, **more}
    fitted = model(name, **how).fit(x)
    trace = fitted.lower_bounds_
    assert len(trace) == 25
    assert all(after >= before - 1e-11 for before, after in pairwise(trace))
    assert trace[-1] > trace[0] + 1e-3
    fitted.mixture_.covariance.check()


@every_name
def test_weights_are_rows(name: str) -> None:
    x, count = rows(120), np.arange(120) % 3
    how = {"init_params": "random_from_data", "max_iter": 5, "tol": 0.0, "means_init": x[:3]}
    weighted = model(name, **how).fit(x, sample_weight=count)
    repeated = model(name, **how).fit(np.repeat(x, count, axis=0))
    np.testing.assert_allclose(weighted.covariances_, repeated.covariances_, rtol=1e-8, atol=1e-10)


@every_name
def test_blocks_change_rounding_alone(name: str) -> None:
    x = rows()
    how: dict[str, Any] = {"means_init": x[:3], "max_iter": 5, "tol": 0.0, "acceleration": None}
    whole, cut = model(name, **how).fit(x), model(name, **how).fit(da.from_array(x, chunks=(70, 4)))
    np.testing.assert_allclose(cut.covariances_, whole.covariances_, rtol=1e-9, atol=1e-12)
    assert cut.covariances_.shape == cut.precisions_.shape == structure(name).shape(3, 4)


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, GaussianMixture) for name in NAMES), *((name, MiniBatchGaussianMixture) for name in NAMES[1::3])],
)
def test_a_saved_model_is_the_same(name: str, kind: Any, tmp_path: Path) -> None:
    x = rows()
    fitted = model(name, kind).fit(x)
    fitted.mixture_.covariance.check()
    fitted.save(tmp_path / "m.npz")
    again = load(tmp_path / "m.npz")
    assert digest(again.mixture_) == digest(fitted.mixture_)
    assert again.covariance_type == name
    if kind is MiniBatchGaussianMixture:
        for one in (fitted, again):
            one.partial_fit(rows(100, seed=1))
        assert digest(again.mixture_) == digest(fitted.mixture_)
        again.mixture_.covariance.check()


@every_name
def test_a_stopped_fit_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    x, how = rows(), {"init_params": "random", "tol": 1e-12, "max_iter": 12}
    whole = model(name, **how).fit(x)
    with pytest.raises(KeyboardInterrupt), watching(stop(8)):
        model(name, **how, checkpoint=tmp_path / "c").fit(x)
    again = model(name, **how, checkpoint=tmp_path / "c").fit(x)
    assert digest(again.mixture_) == digest(whole.mixture_)


@every_name
def test_scikit_learn_says_the_same(name: str) -> None:
    x = rows()
    fitted = model(name).fit(x)
    theirs = fitted.to_sklearn()
    assert theirs.covariance_type in {s.name for s in PLAIN}
    np.testing.assert_allclose(theirs.score_samples(x), fitted.score_samples(x), rtol=1e-10)
    np.testing.assert_array_equal(theirs.predict(x), fitted.predict(x))
    assert theirs.bic(x) > fitted.bic(x) or theirs.covariance_type == "spherical"  # it counts more parameters


@every_name
def test_parameters_come_back(name: str) -> None:
    fitted = model(name).fit(rows())
    parts = (fitted.weights_, fitted.means_, fitted.covariances_, name)
    again = GaussianMixture.from_parameters(*parts, n_factors=fitted.n_factors)
    close = 1e-9 if name != "factors" else 1e-4  # as it is found anew
    np.testing.assert_allclose(again.covariances_, fitted.covariances_, rtol=close, atol=close)
    if name == "factors":
        given = fitted.loadings_, fitted.noise_variances_
        exact = GaussianMixture.from_parameters(fitted.weights_, fitted.means_, given, name)
        assert digest(exact.mixture_) == digest(fitted.mixture_)
        assert exact.n_factors == 1
        for wrong in (given[:1], (given[0], given[0]), (given[1], given[1]), (given[0], -given[1])):
            with pytest.raises(ValueError, match=r"shape|loadings|positive|factors"):
                GaussianMixture.from_parameters(fitted.weights_, fitted.means_, wrong, name)
    start = dict(
        zip(("weights_init", "means_init", "precisions_init"), (*parts[:2], fitted.precisions_), strict=True)
    )
    begun = model(name, max_iter=0, **start).fit(rows())
    np.testing.assert_allclose(begun.covariances_, fitted.covariances_, rtol=close, atol=close)


@pytest.mark.parametrize("name", [name for name in NAMES if not structure(name).shared])
def test_covariances_of_another_family_are_refused_and_a_start_is_made_to_fit(name: str) -> None:
    plain = structure(name).plain.name
    other = model(plain).fit(rows())
    with pytest.raises(ValueError, match=f"give covariance_type='{plain}'"):
        GaussianMixture.from_parameters(other.weights_, other.means_, other.covariances_, name, n_factors=1)
    begun = model(
        name, max_iter=0, means_init=other.means_, weights_init=other.weights_, precisions_init=other.precisions_
    )
    covariance = begun.fit(rows()).mixture_.covariance
    covariance.check()
    assert covariance.structure is structure(name)


@every_name
def test_parts_of_it(name: str) -> None:
    x = rows()
    fitted = model(name).fit(x)
    part = fitted.marginal([2, 0])
    full = GaussianMixture.from_sklearn(fitted.to_sklearn()).marginal([2, 0])
    np.testing.assert_allclose(part.score_samples(x[:, [2, 0]]), full.score_samples(x[:, [2, 0]]), rtol=1e-10)
    assert part.covariance_type == part.mixture_.covariance.structure.name
    rest = fitted.conditional({1: 0.5})
    assert rest.covariance_type == rest.mixture_.covariance.structure.name
    assert len(str(fitted.summary()))


def test_mclusts_codes_name_the_same() -> None:
    x = rows()
    for code, name in (("EII", "tied_spherical"), ("VII", "spherical"), ("EEI", "tied_diag"), ("VVI", "diag")):
        a, b = (model(one, max_iter=3).fit(x) for one in (code, name))
        assert digest(a.mixture_) == digest(b.mixture_)
        assert a.get_params()["covariance_type"] == code
    with pytest.raises(ValueError, match="different ones"):
        GaussianMixtureSearch(2, covariance_types=["full", "VVV"]).fit(x)
    a = model("VVV", checkpoint=None).fit(x)
    assert a.marginal([0]).covariance_type == "VVV"


def test_a_search_compares_them() -> None:
    x = load_iris().data
    search = GaussianMixtureSearch([2], covariance_types=CODES, random_state=0, reg_covar=0.0, refine=12).fit(x)
    assert search.best_params_ == {"n_components": 2, "covariance_type": "VEV"}
    np.testing.assert_allclose(search.best_estimator_.bic(x), 561.7285, atol=1e-3)
    assert set(search.results_["covariance_type"]) == {STRUCTURES[code].name for code in CODES}


def test_the_command_line_knows_them(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", rows())
    out, given = str(tmp_path / "m.npz"), [str(tmp_path / "x.npy"), "-k", "3", "--covariance-type", "VEV"]
    done = CliRunner().invoke(main, ["fit", *given, "--out", out, "--seed", "0"])
    assert done.exit_code in (0, 3), done.output
    assert load(out).covariance_type == "VEV"
    told = CliRunner().invoke(main, ["info", out])
    assert "VEV" in told.output
    chosen = ["--covariance-type", "tied_diag", "--covariance-type", "EVI"]
    done = CliRunner().invoke(main, ["select", given[0], "-k", "1:2", *chosen, "--out", str(tmp_path / "b.npz")])
    assert done.exit_code in (0, 3), done.output
    assert "tied_diag" in done.output


def test_the_command_line_goes_on_with_factors(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", rows())
    x, out = str(tmp_path / "x.npy"), [str(tmp_path / f"{name}.npz") for name in "abc"]
    factors = ["-k", "2", "--covariance-type", "factors"]
    for verb, *more in (("fit", "--out", out[0]), ("check",), ("select", "--out", out[0])):
        answer = CliRunner().invoke(main, [verb, x, *factors, *more])
        assert answer.exit_code == 4
        assert "needs --n-factors" in answer.output
    online = ["--online", "--warm-start", out[0], "--out", out[1]]
    for more in ([*factors, "--n-factors", "1", "--out", out[0]], online):
        done = CliRunner().invoke(main, ["fit", x, "--seed", "0", *more])
        assert done.exit_code in (0, 3), done.output
    done = CliRunner().invoke(main, ["update", out[1], x, "--rows", "0:100", "--out", out[2]])
    assert done.exit_code == 0, done.output
    assert load(out[2]).loadings_.shape == (2, 4, 1)
