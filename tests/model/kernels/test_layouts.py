"""Memory for one tile."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from daskgmm.model.kernels import PIECE
from daskgmm.model.kernels.compiling import LINE, TILE, TILES
from daskgmm.model.kernels.layouts import (
    Blur,
    Blurred,
    BlurredAxes,
    Filling,
    Points,
    Scratch,
    Shared,
    scratch_for,
    width,
)
from tests.structures import draw_mixture


@pytest.mark.parametrize("dtype", ["f8", "f4"])
@pytest.mark.parametrize("pooled", [False, True])
def test_parts_overlap_nowhere_and_begin_at_a_line_of_the_cache(dtype: str, pooled: bool) -> None:
    means = np.zeros((3, 8), dtype)
    model: Any = Shared(means, means, means, means, np.zeros(3)) if pooled else Points(means)
    scratch = Scratch.of(model)
    for part in scratch:
        assert part.shape[-1] == TILE * 8 // np.dtype(dtype).itemsize
        assert part.ctypes.data % LINE == 0
        assert part.flags.c_contiguous
    assert not any(np.may_share_memory(a, b) for a, b in combinations(scratch, 2))
    assert all(part.size for part in scratch) == pooled  # others need less


@pytest.mark.parametrize("errors", [3, 6])
@pytest.mark.parametrize("layout", [Blurred, BlurredAxes])
def test_rows_with_errors_have_memory_of_their_own(layout: Any, errors: int) -> None:
    model = layout(np.zeros((2, 3)), np.zeros((2, 3, 3)), np.zeros(2), errors)
    with scratch_for(model) as scratch, scratch_for(model) as other:
        assert scratch.tile.shape == (3 + errors, TILES[Blur])
        assert not any(np.may_share_memory(a, b) for a, b in combinations((*scratch, *other), 2))
        for part in scratch:
            assert part.shape[-1] == TILES[Blur]
            assert part.ctypes.data % LINE == 0
    with scratch_for(Points(np.zeros((2, 3)))) as plain:
        assert isinstance(plain, Scratch)
    # How rows lie in memory changes no bit: pieces are whole tiles.
    assert PIECE % TILES[Blur] == 0


def test_rows_that_miss_values_have_memory_for_their_features() -> None:
    # Features of one width, and covariances of one shape or many.
    for kind, d, groups in (("full", 2, 2), ("full", 3, 2), ("tied", 3, 1)):
        model = draw_mixture(kind, 9, d).model_for(np.zeros((1, d)), None, layout="gapped")
        with scratch_for(model) as (scratch, runs):
            assert scratch.held.shape == (9 * 4, TILES[Filling])
            assert runs.features.shape == (TILES[Filling], d)
            assert len(runs.kept) == groups * (2 * TILES[Filling] * d // 5)
            assert not any(np.may_share_memory(a, b) for a, b in combinations((*scratch, *runs), 2))


def test_nobody_else_has_the_memory_meanwhile() -> None:
    model = Points(np.zeros((2, 3)))
    with scratch_for(model) as one, scratch_for(model) as other:
        assert not np.may_share_memory(one.tile, other.tile)
    with scratch_for(Points(np.zeros((4, 3)))) as larger:
        assert larger.resp.shape[0] == 4
    with scratch_for(Points(np.zeros((4, 3), "f4"))) as single:
        assert single.tile.dtype == np.float32


@pytest.mark.parametrize(("d", "wide"), [(1, 1), (3, 3), (4, 4), (5, 8), (8, 8), (9, 12)])
def test_width_is_a_multiple_of_four_from_four_on(d: int, wide: int) -> None:
    assert width(d) == wide
