"""Where components do more good: what a merger costs, and which splits stay."""

from typing import Any

import numpy as np
import pytest

from daskgmm.fit import placing
from daskgmm.fit.placing import cheapest, placed_anew
from daskgmm.model.mixture import Mixture
from daskgmm.model.structure import STRUCTURES
from tests.apart import MEANS, TRUTH, near, rows_of
from tests.structures import KINDS, covariances, draw_mixture, matrices

EACH = pytest.mark.parametrize("kind", KINDS)


def mixture_of(kind: str, weights: Any, means: Any) -> Mixture:
    """Of unit covariances."""
    weights, means = np.asarray(weights, float), np.asarray(means, float)
    k, d = means.shape
    structure = STRUCTURES[kind]
    values = structure.stored(covariances(np.tile(np.eye(d), (k, 1, 1)), np.ones(k), kind), k, d)
    return Mixture(weights, means, structure.form.of(structure, values))


@EACH
def test_a_merger_costs_what_dense_matrices_say(kind: str) -> None:
    mixture = draw_mixture(kind, k=2, d=3)
    merged, spared, cost = cheapest(mixture, 1e9)
    w, full = mixture.weights, matrices(mixture.covariance.values, kind, 2, 3)
    mean, delta = w @ mixture.means, mixture.means[0] - mixture.means[1]
    both = np.einsum("k,kij->ij", w, full) + w[0] * w[1] * np.outer(delta, delta)
    both = matrices(KINDS[kind].pick(both[None]), kind, 1, 3)[0]
    wanted = (np.linalg.slogdet(both)[1] - w @ np.linalg.slogdet(full)[1]) / 2
    np.testing.assert_allclose(cost, wanted, rtol=1e-10)
    kept = 1 - spared
    assert merged.weights[kept] == 1
    assert merged.weights[spared] == 0
    np.testing.assert_allclose(merged.means[kept], mean, rtol=1e-12)
    np.testing.assert_allclose(matrices(merged.covariance.values, kind, 2, 3)[kept], both, rtol=1e-10)


@EACH
def test_copies_and_what_has_no_row_cost_nothing(kind: str) -> None:
    copies = mixture_of(kind, [0.3, 0.3, 0.4], [MEANS[0], MEANS[0], MEANS[1]])
    idle = mixture_of(kind, [0.6, 0.4 - 1e-4, 1e-4], [MEANS[0], MEANS[1], [900, 900]])
    for mixture, those in ((copies, (0, 1)), (idle, (2,))):
        merged, spared, cost = cheapest(mixture, 5000)
        assert spared in those
        np.testing.assert_allclose(cost, 0, atol=1e-12)
        np.testing.assert_allclose(merged.means[0], MEANS[0], atol=1e-12)
        np.testing.assert_allclose(merged.covariance.values[0], mixture.covariance.values[0], rtol=1e-12)
    assert cheapest(idle, 50_000)[2] > 0.1  # five rows


@EACH
def test_a_good_mixture_stays(kind: str) -> None:
    for seed in range(10):
        assert placed_anew(near(kind), 500, rows_of(seed, 150), 1e-6) is None


@EACH
@pytest.mark.parametrize("weights", [[0.4, 0.4, 0.2], [0.7, 0.3, 0.0]], ids=["copies", "idle"])
def test_a_spared_component_goes_where_rows_are(kind: str, weights: list[float]) -> None:
    means = [MEANS[0], MEANS[1], [900, 900]] if weights[2] == 0 else [MEANS[0], MEANS[0] + 1e-6, MEANS[1]]
    moved = placed_anew(mixture_of(kind, weights, means), 1e6, rows_of(1, 300), 1e-6)
    assert moved is not None
    found, component = moved
    assert component == 2 if weights[2] == 0 else component in (0, 1)
    np.testing.assert_allclose(found.weights.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(found.means[component], MEANS[2], atol=1)
    x = rows_of(2, 2000)
    assert found.score_samples(x).mean() > TRUTH.score_samples(x).mean() - 0.3


def test_one_component_has_nowhere_to_go() -> None:
    assert placed_anew(mixture_of("full", [1.0], MEANS[:1]), 1e6, rows_of(1, 300), 1e-6) is None


@EACH
def test_rows_on_one_point_break_nothing(kind: str) -> None:
    x = np.concatenate([np.zeros((100, 2)), np.full((100, 2), 5.0)])
    for reg_covar in (0.0, 1e-6):
        moved = placed_anew(mixture_of(kind, [0.5, 0.5], [[0, 0], [1e-9, 0]]), 1e6, x, reg_covar)
        assert moved is None or np.isfinite(moved[0].score_samples(x)).all()


@EACH
def test_what_is_certain_to_gain_less_is_given_up_after_a_step(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a good mixture nothing is left to follow; where a cluster has no component, what takes it is."""
    followed, parted = list[Any](), placing._parted

    def counted(*args: Any) -> Mixture:
        followed.append(args)
        return parted(*args)

    monkeypatch.setattr(placing, "_parted", counted)
    for seed in range(5):
        assert placed_anew(near(kind), 500, rows_of(seed, 150), 1e-6) is None
    assert not followed
    idle = mixture_of(kind, [0.7, 0.3, 0.0], [MEANS[0], MEANS[1], [900, 900]])
    assert placed_anew(idle, 1e6, rows_of(1, 300), 1e-6) is not None
    assert followed


@EACH
def test_an_outlier_makes_no_difference_to_the_first_step(kind: str) -> None:
    """Rows far away are no reason to lose digits of those near by, wherever they stand."""
    x = rows_of(1, 300)
    x[0] = 1e9
    moved = placed_anew(mixture_of(kind, [0.4, 0.4, 0.2], [MEANS[0], MEANS[0] + 1e-6, MEANS[1]]), 1e6, x, 1e-6)
    assert moved is not None
