"""Mini-batches of a pass over stored rows: all rows once, in batches that grow with what was learnt before."""

import itertools
from typing import Any

import numpy as np
import pytest

from daskgmm import MiniBatchGaussianMixture, watching
from daskgmm.fit.online import Passes
from tests.listeners import Heard

GROWS = 20  # rows learnt before, for each row of a mini-batch
X = np.random.default_rng(0).normal(size=(6000, 2)) + 5.0 * (np.arange(6000)[:, None] % 2)

pytestmark = pytest.mark.filterwarnings("ignore:Component")


def learnt(x: Any = X, **settings: Any) -> tuple[list[Passes], MiniBatchGaussianMixture]:
    """The run as it stood after each mini-batch and each pass, beginning with the start."""
    heard = Heard()
    chosen = {"batch_size": 50, "init_size": 100, "max_iter": 1, "random_state": 0} | settings
    model = MiniBatchGaussianMixture(2, **chosen)
    with watching(heard):
        model.fit(x)
    runs = [state.runs[0] for state in heard.states if state.runs]
    return [run for run in runs if isinstance(run, Passes)], model


def test_mini_batches_grow_with_the_rows_before() -> None:
    """Later steps are small, and gain nothing from more frequent ones: each has a twentieth of all rows."""
    (start, *runs), model = learnt()
    assert start.run.clock == 100
    before, sizes = 100, []
    for run in runs[:-2]:  # the last takes what is left
        sizes.append(int(run.run.clock) - before)
        assert sizes[-1] == max(50, before // GROWS)
        before += sizes[-1]
    assert sizes[:18] == [50] * 18
    assert sizes[-1] > 5 * 50
    assert model.online_.n_rows == len(X)
    assert model.online_.n_batches == len(runs) - 1 < 65  # not 120


def test_a_later_pass_makes_few_steps() -> None:
    runs, _ = learnt(max_iter=2, tol=0.0)
    ends = [number for number, run in enumerate(runs) if number and len(run.trace) > len(runs[number - 1].trace)]
    first, second = np.diff([0, *ends])
    assert second <= np.log(2) / np.log1p(1 / GROWS) + 2 < first / 3


def test_the_last_mini_batch_takes_what_is_left() -> None:
    """Rather half as many rows again than a batch of a few, whose step would be all noise."""
    for n, sizes in ((174, [50, 50, 74]), (176, [50, 50, 50, 26])):
        (start, *runs), _ = learnt(X[:n])
        clocks = [int(run.run.clock) for run in (start, *runs[:-1])]
        assert np.diff(clocks).tolist() == sizes


@pytest.mark.parametrize("weight", [0.5, 1.0, 8.0])
def test_batches_grow_with_the_weight_before(weight: float) -> None:
    """Heavy rows come in larger batches: a step of few of them, which counts as many rows, is all noise."""
    heard = Heard()
    model = MiniBatchGaussianMixture(2, batch_size=50, init_size=100, max_iter=1, random_state=0)
    with watching(heard):
        model.fit(X, sample_weight=np.full(len(X), weight))
    runs = [state.runs[0] for state in heard.states if state.runs]
    clocks = [run.run.clock for run in runs if isinstance(run, Passes)]
    each = max(weight, 1.0)  # rows count as 1 at least: the scale of smaller weights tells nothing
    for before, after in itertools.pairwise(clocks[:-2]):  # the last takes what is left
        assert after - before == each * max(50, int(before / GROWS))
