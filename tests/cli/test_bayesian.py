"""`daskgmm fit --bayesian`: the posterior that the estimator finds, and what other commands make of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from daskgmm import BayesianGaussianMixture, GaussianMixture, load
from daskgmm._typing import Array
from daskgmm.model.posterior import Posterior
from daskgmm.store.values import digest
from tests.cli.conftest import Run, Write
from tests.drivers import bits

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
HOW = ("-k", 4, "--seed", 0, "--tol", "auto", "--max-iter", 300)
SAME: dict[str, Any] = {"n_components": 4, "random_state": 0, "tol": "auto", "max_iter": 300}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "posterior.npz"


def test_the_posterior_is_that_of_the_estimator(
    run: Run, data: str, values: Array, out: Path, write: Write
) -> None:
    prior: dict[str, Any] = {
        "weight_concentration_prior_type": "dirichlet_distribution",
        "weight_concentration_prior": 0.5,
        "mean_precision_prior": 2.0,
        "mean_prior": np.array([1.0, 1, 0]),
        "degrees_of_freedom_prior": 5.0,
        "covariance_prior": 2 * np.eye(3),
    }
    random = np.random.default_rng(0)
    beside = {
        "weights": random.uniform(0.5, 2, size=len(values)),
        "known": np.where(random.random(len(values)) < 0.05, (values[:, 0] > 1.5).astype(int), -1),
        "noise": random.gamma(1.0, 0.2, size=values.shape),
    }
    words: list[object] = [*HOW]
    for name, value in {**prior, **beside}.items():
        held = write(name, value, len(value)) if isinstance(value, np.ndarray) else value
        words += [f"--{name.replace('_', '-')}", held]
    result = run("fit", data, "--bayesian", *words, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    told, model = json.loads(result.stdout), load(out)
    given = {name: beside[name] for name in ("known", "noise")}
    expected = BayesianGaussianMixture(**SAME, **prior).fit(data, sample_weight=beside["weights"], **given)
    assert bits(model) == bits(expected)
    assert (told["lower_bound"], told["converged"]) == (expected.lower_bound_, True)
    assert "log_likelihood" not in told
    lines = run("fit", data, "--bayesian", *HOW, "--out", out, "--overwrite", "--verbose").stderr.splitlines()
    (named,) = (number for number, line in enumerate(lines) if line.split() == ["lower", "bound"])
    assert lines[named + 1].startswith("iteration 1")


def test_other_commands_take_it(run: Run, data: str, out: Path, tmp_path: Path) -> None:
    place = tmp_path / "c"
    first = run("fit", data, "--bayesian", *HOW[:-1], 2, "--out", out, "--checkpoint", place)
    assert first.exit_code == 3
    (line,) = [line for line in run("info", place).stdout.splitlines() if line.startswith("goes on with")]
    assert "daskgmm fit DATA --out OUT --checkpoint" in line
    assert all(word in line for word in ("--bayesian", "--weight-concentration-prior-type dirichlet_process"))
    assert "--acceleration" not in line
    again = ("fit", data, "--bayesian", *HOW, "--out", out, "--overwrite")
    assert run(*again, "--checkpoint", place).exit_code == 0
    model = BayesianGaussianMixture.load(out)
    assert bits(model) == bits(BayesianGaussianMixture(**SAME).fit(data))
    assert "lower bound" in run("info", out).stdout
    assert run("predict", data, out, "--out", tmp_path / "y").exit_code == 0
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "y")[:], model.predict(data).compute())
    for kind in ("mixture", "convergence"):
        drawn = run("plot", out, "--kind", kind, "--out", tmp_path / f"{kind}.png")
        assert drawn.exit_code == 0, drawn.output


def test_it_goes_on_from_a_posterior(run: Run, data: str, out: Path, model: str, tmp_path: Path) -> None:
    started = run("fit", data, "--bayesian", *HOW[:-1], 2, "--out", out)
    assert (started.exit_code, f"--bayesian --warm-start {out}" in started.stderr) == (3, True)
    on = ("fit", data, "--bayesian", "--warm-start", out, "--max-iter", 300, "--out", tmp_path / "on.npz")
    assert run(*on).exit_code == 0
    assert load(tmp_path / "on.npz").lower_bound_ > load(out).lower_bound_
    refused = run("fit", data, "--bayesian", "--warm-start", model, "--out", tmp_path / "no.npz")
    assert refused.exit_code == 4
    assert "goes on from a posterior, and the model is a GaussianMixture" in refused.stderr
    # Its expected parameters start a fit by maximum likelihood, and a stream.
    for flag in ([], ["--online"]):
        place = tmp_path / f"plain{len(flag)}.npz"
        assert run("fit", data, *flag, "--warm-start", out, "--out", place).exit_code in (0, 3)
        assert not isinstance(load(place), BayesianGaussianMixture)
        assert not isinstance(load(place).mixture_, Posterior)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--online",), "Give --online or --bayesian, not both."),
        (("--background",), "--background has no meaning with --bayesian."),
        (("--covariance-type", "VVI"), "'covariance_type' parameter"),
        (("--covariance-type", "spherical", "--covariance-prior", "x.npy"), "'x.npy' is no number"),
    ],
)
def test_what_does_not_go_with_it_is_told(run: Run, data: str, out: Path, words: Any, message: str) -> None:
    result = run("fit", data, "-k", 2, "--bayesian", "--out", out, *words)
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
    other = run("fit", data, "-k", 2, "--mean-precision-prior", 1, "--out", out)
    assert "--mean-precision-prior has no meaning without --bayesian." in other.stderr
    either = run("fit", data, "-k", 2, "--half-life", 1, "--out", out)
    assert "--half-life has no meaning without --online." in either.stderr


def test_a_spherical_prior_is_a_number(run: Run, data: str, out: Path) -> None:
    how = ("--covariance-type", "spherical", "--covariance-prior", 3.0)
    assert run("fit", data, "--bayesian", *HOW, *how, "--out", out).exit_code == 0
    assert load(out).covariance_prior_ == 3.0


@pytest.mark.parametrize(("kind", "value"), [("diag", np.array([1.0, 2, 3])), ("spherical", 2.5)])
def test_beside_a_warm_start_a_prior_has_the_shape_of_its_covariances(
    run: Run, data: str, out: Path, tmp_path: Path, kind: str, value: Any
) -> None:
    assert run("fit", data, "--bayesian", *HOW, "--covariance-type", kind, "--out", out).exit_code == 0
    np.save(tmp_path / "prior.npy", value)
    prior = tmp_path / "prior.npy" if np.ndim(value) else value
    on = tmp_path / "on.npz"
    words = ("--bayesian", "--warm-start", out, "--covariance-prior", prior, "--max-iter", 1, "--out", on)
    result = run("fit", data, *words)
    assert result.exit_code in (0, 3), result.stderr
    np.testing.assert_array_equal(load(on).covariance_prior_, value)


def test_help_fits_80_columns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in ("fit", "select"):
        told = run(command, "--help").stdout
        assert max(map(len, told.splitlines())) <= 80
        assert all(word in told for word in ("--noise", "--known", "missing"))


def test_a_search_takes_what_goes_with_rows(run: Run, values: Array, write: Write, out: Path) -> None:
    random = np.random.default_rng(0)
    gone = np.where(random.random(values.shape) < 0.1, np.nan, values)
    known = np.where(random.random(len(values)) < 0.1, (values[:, 0] > 1.5).astype(int), -1)
    noise = random.gamma(1.0, 0.2, size=values.shape)
    places = {"known": write("known", known), "noise": write("noise", noise)}
    data, table = write("gone", gone), out.with_suffix(".csv")
    words = ("-k", "2:3", "--tol", 1e-3, "--seed", 0, "--nan-policy", "missing", "--out", out, "--table", table)
    result = run("select", data, *words, "--known", places["known"], "--noise", places["noise"], "--json")
    assert result.exit_code == 0, result.output
    k = json.loads(result.stdout)["n_components"]
    how: dict[str, Any] = {"nan_policy": "missing", "max_iter": 1000, "tol": 1e-3, "random_state": 0}
    expected = GaussianMixture(k, **how).fit(data, known=known, noise=noise)
    assert digest(load(out).mixture_) == digest(expected.mixture_)
    wrong = run("select", data, *words, "--known", places["noise"], "--overwrite")
    assert (wrong.exit_code, "a value for each row" in wrong.stderr) == (4, True)
