"""The posterior of a mixture: what is expected under it, drawn, and the bound that its steps raise."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, wishart

from daskgmm.model.missing import Incomplete
from daskgmm.model.mixture import Mixture
from daskgmm.model.moments import moments
from daskgmm.model.posterior import Posterior, Variational, log_shares, shares, sticks
from daskgmm.model.structure import STRUCTURES
from tests.structures import KINDS, matrices

K, D, N = 4, 3, 60
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(N, D)) + 3 * RANDOM.integers(3, size=(N, 1))
RESP = RANDOM.dirichlet(np.full(K, 0.3), size=N)
BOTH = pytest.mark.parametrize("process", [True, False])


def belief(kind: str, process: bool, reg_covar: float = 0.0) -> Variational:
    structure = STRUCTURES[kind]
    prior = Variational(
        structure=structure,
        process=process,
        concentration=0.4,
        mean_precision=0.7,
        degrees_of_freedom=4.5,
        reg_covar=reg_covar,
    )
    return prior.from_rows(moments(structure, X))


def posterior(kind: str, process: bool) -> Posterior:
    return belief(kind, process)(None, moments(STRUCTURES[kind], X, None, RESP, K))


def test_expectations_of_dirichlet_proportions() -> None:
    sizes = np.array([0.5, 3.0, 1.0, 9.0])
    drawn = np.random.default_rng(0).dirichlet(sizes, size=200_000)
    np.testing.assert_allclose(shares(sizes), drawn.mean(axis=0), atol=2e-3)
    np.testing.assert_allclose(log_shares(sizes), np.log(drawn).mean(axis=0), atol=2e-2)


def test_expectations_of_broken_sticks() -> None:
    sizes = sticks(np.array([8.0, 0.0, 5.0]), 0.5)
    np.testing.assert_array_equal(sizes, [[9.0, 1.0, 6.0], [5.5, 5.5, 0.5]])
    taken = np.random.default_rng(0).beta(sizes[0], sizes[1], size=(200_000, 3))
    left = np.cumprod(1 - taken, axis=1)
    drawn = taken * np.concatenate([np.ones((len(taken), 1)), left[:, :-1]], axis=1)
    np.testing.assert_allclose(shares(sizes), drawn.mean(axis=0) / drawn.mean(axis=0).sum(), atol=2e-3)
    np.testing.assert_allclose(log_shares(sizes), np.log(drawn).mean(axis=0), atol=2e-2)


def test_one_stick_is_all_there_is() -> None:
    np.testing.assert_array_equal(shares(sticks(np.array([7.0]), 0.1)), [1.0])


def test_the_density_has_the_expected_logarithm() -> None:
    held, x, random = posterior("full", True), X[0], np.random.default_rng(0)
    for j in range(K):
        nu, scale = held.degrees_of_freedom[j], held.covariance.precisions[j] / held.degrees_of_freedom[j]
        precisions = wishart(nu, scale).rvs(20_000, random_state=random)
        lower = np.linalg.cholesky(precisions * held.mean_precision[j])
        means = (
            held.means[j] + np.linalg.solve(np.swapaxes(lower, 1, 2), random.normal(size=(20_000, D, 1)))[..., 0]
        )
        squares = np.einsum("ni,nij,nj->n", x - means, precisions, x - means)
        drawn = 0.5 * (np.linalg.slogdet(precisions)[1] - D * np.log(2 * np.pi) - squares)
        alone = Mixture(np.ones(1), held.means[j : j + 1], held.covariance.take(np.array([j])))
        found = alone.score_samples(x[None])[0] + (held.log_weights - log_shares(held.concentration))[j]
        assert abs(found - drawn.mean()) < 5 * drawn.std() / np.sqrt(len(drawn))


@BOTH
@pytest.mark.parametrize("kind", KINDS)
def test_no_step_lowers_the_bound(kind: Any, process: bool) -> None:
    update, held, bounds = belief(kind, process), posterior(kind, process), []
    for _ in range(60):
        found = held.expectation(X)
        after = update(held, found)
        bounds.append(update.bound(held, found, after))
        held = after
    assert np.diff(bounds).min() >= -1e-12 * abs(bounds[-1])
    assert bounds[-1] - bounds[0] > 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_posterior_is_checked(kind: Any) -> None:
    held = posterior(kind, True)
    held.check()
    for name in ("concentration", "mean_precision", "degrees_of_freedom"):
        values = getattr(held, name)
        for other in (-values, values[..., :0], np.full_like(values, np.nan)):
            with pytest.raises(ValueError, match=r"."):
                replace(held, **{name: other}).check()
    large, small = np.full_like(held.concentration, 1e308), np.full(K, 5e-324)
    wrong: list[dict[str, Any]] = [
        {"weights": np.full(K, 1 / K)},
        {"concentration": large},
        {"mean_precision": small},
    ]
    for parts in wrong:
        with pytest.raises(ValueError, match="not those of their distributions"):
            replace(held, **parts).check()


@pytest.mark.parametrize("kind", KINDS)
def test_a_prior_is_checked(kind: Any) -> None:
    prior = belief(kind, False)
    prior.check()
    for wrong in (
        {"mean": None},
        {"covariance": None},
        {"concentration": 0.0},
        {"mean_precision": -1.0},
        {"degrees_of_freedom": D - 1.0},
        {"reg_covar": -1.0},
        {"covariance": np.ones((2, 2))},
        {"mean": np.full(D, np.inf)},
    ):
        with pytest.raises(ValueError, match=r"."):
            replace(prior, **wrong).check()


def test_components_weigh_however_little() -> None:
    # exp(−10^5) is no number above 0, and far from all others the component has a row all the same.
    held = posterior("full", False)
    sizes = np.array([1e-5, 30.0, 20.0, 10.0])
    held = replace(held, concentration=sizes, weights=shares(sizes))
    far = held.means[:1] + 1e4
    near = replace(held, means=np.concatenate([far, held.means[1:]]))
    assert near.log_weights[0] < -9e4
    assert near.labels(far)[0] == 0
    assert near.responsibilities(far)[0, 0] == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_missing_is_integrated_out(kind: Any) -> None:
    held, x, seen = posterior(kind, True), X.copy(), [0, 2]
    x[:, 1] = np.nan
    dense = matrices(held.covariance.values, kind, K, D)
    parts = [multivariate_normal(held.means[j, seen], dense[j][np.ix_(seen, seen)]) for j in range(K)]
    joint = np.stack([held.log_weights[j] + part.logpdf(X[:, seen]) for j, part in enumerate(parts)])
    density, _ = Incomplete(held).answer(x, "score_samples")
    np.testing.assert_allclose(density, logsumexp(joint, axis=0), rtol=1e-12)
