"""A background beside components, and rows with errors before it."""

import tracemalloc
from functools import partial
from typing import Any

import numpy as np
import pytest

from daskgmm.compute.block import Block
from daskgmm.fit.tasks import facing
from daskgmm.model.background import Contaminated
from daskgmm.model.kernels import PIECE
from daskgmm.model.mixture import ANSWERS
from tests.structures import draw_mixture, draw_rows

N = 2 * PIECE + 17


def contaminated(k: int, d: int = 2) -> Contaminated:
    mixture = draw_mixture("diag", k, d)
    return Contaminated(
        0.8 * mixture.weights, mixture.means, mixture.covariance, np.full(d, -20.0), np.full(d, 20.0)
    )


def hazy(mixture: Contaminated, x: Any, gaps: bool = False) -> Any:
    """What sees rows through errors."""
    noise = np.random.default_rng(1).gamma(1.0, 0.5, size=x.shape)
    return facing(mixture, Block(x, columns={"noise": noise}, partial=gaps))


@pytest.mark.parametrize("gone", [0.0, 0.3])
def test_answers_through_errors_are_those_of_each_row(gone: float) -> None:
    mixture = contaminated(3)
    random = np.random.default_rng(2)
    x = np.where(random.random((N, 1)) < 0.2, random.uniform(-20, 20, size=(N, 2)), draw_rows(mixture, N))
    x[random.random((N, 2)) < gone] = np.nan
    noise = hazy(mixture, x).noise
    asked = hazy(mixture, x, gone > 0)
    for question in ANSWERS:
        found, sound = asked.answer(x, question)
        assert sound
        for i in (0, PIECE - 1, PIECE, N - 1):
            block = Block(x[[i]], columns={"noise": noise[[i]]}, partial=gone > 0)
            one = facing(mixture, block).answer(x[[i]], question)[0]
            np.testing.assert_allclose(found[i], one[0], rtol=1e-12)
    resp, labels = (asked.answer(x, question)[0] for question in ("responsibilities", "labels"))
    both = np.column_stack([resp, 1 - resp.sum(axis=1)])
    assert set(labels) == {-1, 0, 1, 2}
    np.testing.assert_array_equal(labels, np.append(np.arange(3), -1)[both.argmax(axis=1)])
    entropies = -(both * np.log(np.maximum(both, 1e-300))).sum(axis=1)
    np.testing.assert_allclose(asked.entropies(x), entropies, rtol=1e-9, atol=1e-12)
    none = hazy(mixture, x[:0])
    assert [none.answer(x[:0], question)[0].shape for question in ANSWERS] == [(0,), (0,), (0, 3)]
    assert none.entropies(x[:0]).shape == (0,)


def test_density_and_responsibilities_in_one_go_are_those_of_each_answer() -> None:
    mixture = contaminated(3)
    x = np.concatenate([draw_rows(mixture, 50), [[1e3, -1e3], [np.nan, 0.0]]])
    density, resp = mixture.posterior(x)
    np.testing.assert_array_equal(density, mixture.score_samples(x))
    np.testing.assert_array_equal(resp, mixture.responsibilities(x))
    assert resp[:50].sum(axis=1).max() < 1


def test_labels_through_errors_take_no_responsibilities_of_all_rows() -> None:
    k, n = 50, 20 * PIECE
    mixture = contaminated(k)
    x = draw_rows(mixture, n)
    asked = hazy(mixture, x)
    hazy(mixture, x[:9]).answer(x[:9], "labels")  # compiled
    for ask in (partial(asked.answer, question="labels"), asked.entropies):
        tracemalloc.start()
        try:
            ask(x)
            assert tracemalloc.get_traced_memory()[1] < 8 * n * k / 4
        finally:
            tracemalloc.stop()
