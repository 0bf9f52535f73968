"""Rows that are held out: a function of their numbers alone, so that all who read a block agree."""

from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pytest

from daskgmm.compute.block import Block
from daskgmm.compute.rows import as_rows
from daskgmm.compute.threads import Plain
from daskgmm.fit.held_out import Apart, HeldOut
from daskgmm.fit.survey import Threshold
from daskgmm.fit.tasks import Examine, Expect
from daskgmm.model.structure import FULL
from tests.structures import draw_mixture, draw_rows

MIXTURE = draw_mixture("full", 3, 2)
X = draw_rows(MIXTURE, 5000)
WEIGHT = np.random.default_rng(3).choice([0.0, 0.5, 2.0], len(X))
HELD = HeldOut(0.2, 7)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 2**62])
def test_the_share_is_that_of_independent_draws(share: float, seed: int) -> None:
    n = 200_000
    held = HeldOut(share, seed).among(np.arange(n))
    deviation = np.sqrt(n * share * (1 - share))
    assert abs(held.sum() - n * share) < 4 * deviation
    pairs = (held[1:] & held[:-1]).sum()  # neighbours know nothing of each other
    assert abs(pairs - n * share**2) < 5 * np.sqrt(n) * share + 5


def test_another_seed_holds_out_others() -> None:
    numbers = np.arange(100_000)
    a, b = HeldOut(0.2, 0).among(numbers), HeldOut(0.2, 1).among(numbers)
    assert abs((a & b).mean() - 0.04) < 0.003


def test_a_block_falls_apart_in_two() -> None:
    block = Block(X[1000:3000], 3, 1000, WEIGHT[1000:3000])
    seen, held = HELD.apart(block)
    expected = HELD.among(np.arange(1000, 3000))
    assert seen.weight is not None
    assert held.weight is not None
    np.testing.assert_array_equal(seen.weight + held.weight, block.weight)
    assert not seen.weight[expected].any()
    assert not held.weight[~expected].any()
    assert seen.x is block.x


def test_blocks_and_weights_do_not_change_which_rows_they_are() -> None:
    task, found = Apart(Expect(MIXTURE), MIXTURE, HELD), []
    for size in (5000, 70_000, 1):
        rows = as_rows(X, block_size=size * 16)
        found.append(Plain().reduce(rows, task) if size > 1 else None)
    whole, other, _ = found
    assert whole is not None
    assert other is not None
    np.testing.assert_allclose(whole[0].weight, other[0].weight, rtol=1e-12)
    assert whole[1].log_likelihood == pytest.approx(other[1].log_likelihood, rel=1e-12)
    picked = HELD.among(np.arange(len(X)))
    assert whole[0].total_weight == (~picked).sum()
    assert whole[1].total_weight == picked.sum()
    assert whole[1].log_likelihood == pytest.approx(MIXTURE.score_samples(X[picked]).sum(), rel=1e-12)
    alone = Expect(MIXTURE)(Block(X[~picked]))
    np.testing.assert_allclose(whole[0].scatter, alone.scatter, rtol=1e-10)


def test_blocks_of_unknown_place_have_numbers_of_their_own() -> None:
    masks: list[Any] = [HELD.apart(Block(X, index, None))[1].weight for index in (0, 1)]
    assert not np.array_equal(masks[0], masks[1])


def test_no_start_sees_them() -> None:
    blocks = [Block(X[first : first + 500], i, first) for i, first in enumerate(range(0, 5000, 500))]
    for size in (300, 10_000):
        examine = Examine(FULL, 1, 0, Threshold(size))
        survey = reduce(add, map(examine, blocks))
        kept = HELD.without(survey).sample
        drawn = survey.sample.position[survey.sample.chosen]
        np.testing.assert_array_equal(
            np.sort(kept.position[kept.chosen]), np.sort(drawn[~HELD.among(drawn)]), str(size)
        )
        assert len(kept.points()[0]) == len(kept.chosen)
    # Of blocks of unknown place, too: a sample knows a row by the number that its block gives it.
    lost = [replace(block, first_row=None) for block in blocks]
    sample = HELD.without(reduce(add, map(Examine(FULL, 1, 0, Threshold(10_000)), lost))).sample
    weights: list[Any] = [HELD.apart(block)[0].weight for block in lost]
    seen = sum(np.count_nonzero(weight) for weight in weights)
    assert len(sample.chosen) == seen
