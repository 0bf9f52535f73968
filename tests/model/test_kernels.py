"""The contract of the fused E-step: every layout, at every shape around the tile and the unrolled loops."""

from typing import Any, NamedTuple

import numpy as np
import pytest

from daskgmm.model import kernels
from daskgmm.model.kernels import layouts
from daskgmm.model.kernels.compiling import TILE

EPS = np.finfo(np.float64).eps
WHOLE, PIECE = kernels.WHOLE, kernels.PIECE


class Layout(NamedTuple):
    """A layout of parameters, and whose it is."""

    model: Any
    one: bool = False  # whether all components have the same factor

    @property
    def triangular(self) -> bool:
        return self.model is not layouts.Axes


LAYOUTS = {
    "triangular": Layout(layouts.Triangular),
    "shared triangular": Layout(layouts.Triangular, one=True),
    "shared products": Layout(layouts.Shared, one=True),
    "wide": Layout(layouts.Wide),
    "diagonal": Layout(layouts.Axes),
    "shared diagonal": Layout(layouts.Axes, one=True),
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


class Drawn(NamedTuple):
    """Rows, and parameters with an offset of each component, whatever the layout makes of these."""

    x: Any
    weight: Any
    means: Any
    factor: Any
    offset: Any
    log_norm: Any

    def single(self) -> "Drawn":
        """With parameters as work in float32 takes them."""
        return self._replace(**{name: getattr(self, name).astype("f4") for name in ("means", "factor", "offset")})


def draw(n: int, d: int, k: int, layout: str, dtype: Any = np.float64) -> Drawn:
    """Arguments of the E-step, in its own widths: zeros beyond the features of ``x``."""
    random, this = np.random.default_rng([n, d, k]), LAYOUTS[layout]
    s, w = 1 if this.one else k, layouts.width(d) if this.triangular else d
    means = np.zeros((k, w))
    means[:, :d] = random.normal(size=(k, d))
    if this.triangular:
        factor = np.zeros((s, w, w))
        factor[:, :d, :d] = np.tril(random.normal(size=(s, d, d)) * 0.3 + np.eye(d))
    else:
        factor = random.uniform(0.5, 2, size=(s, d))
    offset = np.where(np.arange(w) < d, random.normal(size=(k, w)), 0.0)
    x, weight = random.normal(size=(n, d)).astype(dtype), random.choice([0.0, 0.5, 2.0], size=n)
    return Drawn(x, weight, means, factor, offset, random.normal(size=k))


def packed(drawn: Drawn, layout: str) -> Any:
    """The parameters in the layout that covariances pack them into, at this number of features."""
    _, _, means, factor, offset, log_norm = drawn
    kind = LAYOUTS[layout].model
    if (kind is layouts.Shared and means.shape[1] < 4) or (kind is layouts.Wide and means.shape[1] < 48):
        kind = layouts.Triangular
    if kind is not layouts.Shared:
        return kind(means, factor, offset, log_norm)
    far = means.astype("f8") - means[0].astype("f8")
    products = far @ factor[0].astype("f8").T + offset
    apart = np.ascontiguousarray((means - means[0]).T)
    return layouts.Shared(means, factor, products.astype(factor.dtype), apart, log_norm)


def naive(drawn: Drawn) -> tuple[Any, Any, Any, Any]:
    """Row by row, with NumPy: log joint densities, log-densities, shares and centred rows."""
    x, weight, means, factor, offset, log_norm = drawn
    k, d = len(means), x.shape[1]
    factor = np.broadcast_to(factor, (k, *factor.shape[1:]))
    matrices = factor[:, :d, :d] if factor.ndim == 3 else np.stack([np.diag(f) for f in factor])
    centred = x[None].astype(np.float64) - means[:, None, :d]  # (k, n, d)
    z = np.einsum("kij,knj->kni", matrices, centred) - offset[:, None, :d]
    joint = log_norm[:, None] - 0.5 * (z**2).sum(axis=2)
    peak = joint.max(axis=0)
    density = peak + np.log(np.exp(joint - peak).sum(axis=0))
    share = weight * np.exp(joint - density)
    return joint, density, share, centred


def zeros(drawn: Drawn) -> Any:
    """Sums to add to, where responsibilities are given."""
    kind = layouts.Triangles if drawn.factor.ndim == 3 else layouts.Squares
    k = len(drawn.means)
    return kind(np.zeros(1), np.zeros(k), np.zeros(drawn.means.shape), np.zeros(drawn.factor.shape))


def scattered(share: Any, centred: Any, layout: str) -> Any:
    """The scatter as the sums of this layout have it; of matrices, lower triangles count."""
    if layout.endswith("diagonal"):
        found = np.einsum("kn,kni,kni->ki", share, centred, centred)
    else:
        found = np.tril(np.einsum("kn,kni,knj->kij", share, centred, centred))
    return found.sum(axis=0, keepdims=True) if LAYOUTS[layout].one else found


def parts(sums: Any, d: int) -> tuple[Any, Any, Any, Any]:
    """What counts in sums; beyond the features, nothing but zeros may have come, unless a row is no number."""
    shift, scatter = sums.shift[:, :d], sums.scatter[:, :d]
    scatter = np.tril(scatter[:, :, :d]) if scatter.ndim == 3 else scatter
    if np.isfinite(sums.log_likelihood[0]):
        assert not sums.shift[:, d:].any()
        assert not sums.scatter[:, d:].any()
        assert not sums.scatter[..., d:].any()
    return sums.log_likelihood[0], sums.weight, shift, scatter


def summed(drawn: Drawn, layout: str) -> tuple[Any, Any, Any, Any]:
    """What the kernel finds."""
    found = kernels.expectation(drawn.x, drawn.weight, packed(drawn, layout))
    return parts(found, drawn.x.shape[1])


def answered(drawn: Drawn, layout: str, asked: str = "labels density resp") -> tuple[Any, Any, Any, bool]:
    """Labels, log-densities and responsibilities, or nothing; and whether all densities are numbers."""
    n, k = len(drawn.x), len(drawn.means)
    labels = np.full(n * ("labels" in asked), -7)
    density = np.full(n * ("density" in asked), np.nan)
    resp = np.full((n * ("resp" in asked), k), np.nan)
    return labels, density, resp, kernels.posterior(drawn.x, packed(drawn, layout), labels, density, resp)


def assert_equal(found: Any, expected: Any) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@every_layout
@pytest.mark.parametrize("d", [*range(1, 10), 48, 55])
def test_expectation_at_every_edge(layout: str, d: int) -> None:
    for n in (0, 1, TILE - 1, TILE, TILE + 1, 2 * TILE + 17):
        assert_sums(draw(n, d, 3, layout), layout)


@every_layout
@pytest.mark.parametrize(("number", "d"), [*enumerate([23, 24, 27, 47, 48, 49, 70])])
def test_expectation_of_many_features(layout: str, number: int, d: int) -> None:
    """Components on top of each other, and so far apart that most of the work is left out."""
    distances = np.roll([0.1, 1.0, 4.0], number)  # each meets each k, over the numbers of features
    for k, distance in zip((1, 2, 9), distances, strict=True):
        drawn = draw(2 * TILE + 17, d, k, layout)
        means = distance * drawn.means
        x = 0.5 * drawn.x + means[np.arange(len(drawn.x)) % k, :d]
        assert_sums(drawn._replace(x=x, means=means), layout)


def assert_sums(drawn: Drawn, layout: str) -> None:
    """The kernel's sums are NumPy's, up to the rounding of exponents and sums."""
    n, d = drawn.x.shape
    joint, density, share, centred = naive(drawn)
    log_likelihood, total, shift, scatter = summed(drawn, layout)
    expected = scattered(share, centred, layout)
    # Exponents of a few hundred at most, off by d·eps of that; sums of n terms of a few units.
    size = 1 + (abs(joint).max() if n else 0)
    atol = (8 * d * size + n) * EPS * (1 + drawn.weight.sum()) * (1 + (centred**2).max(initial=0))
    np.testing.assert_allclose(log_likelihood, drawn.weight @ density, rtol=0, atol=atol)
    np.testing.assert_allclose(total, share.sum(axis=1), rtol=0, atol=atol)
    np.testing.assert_allclose(shift, np.einsum("kn,kni->ki", share, centred), rtol=0, atol=atol)
    np.testing.assert_allclose(scatter, expected, rtol=0, atol=atol)


@every_layout
@pytest.mark.parametrize("n", [0, 1, TILE, TILE + 1])
def test_posterior_fills_what_is_asked_for(layout: str, n: int) -> None:
    drawn = draw(n, 5, 3, layout)
    joint, density, share, _ = naive(drawn._replace(weight=np.ones(n)))
    # Exponents of at most a few hundred, off by d·eps of that, and with it logarithms and shares.
    atol = 64 * 5 * EPS * (1 + (abs(joint).max() if n else 0))
    for asked in ("labels", "density", "resp", "labels density resp"):
        labels, found, resp, sound = answered(drawn, layout, asked)
        np.testing.assert_array_equal(labels, joint.argmax(axis=0)[: len(labels)])
        np.testing.assert_allclose(found, density[: len(found)], rtol=0, atol=atol)
        np.testing.assert_allclose(resp, share.T[: len(resp)], rtol=0, atol=atol)
        assert sound


def test_the_first_of_equals_is_the_label() -> None:
    drawn = draw(10, 2, 3, "diagonal")
    same = drawn._replace(
        means=np.zeros((3, 2)), factor=np.ones((3, 2)), offset=np.zeros((3, 2)), log_norm=np.full(3, 0.5)
    )
    np.testing.assert_array_equal(answered(same, "diagonal", "labels")[0], 0)


@every_layout
@pytest.mark.parametrize("n", [0, 1, TILE, TILE + 1])
def test_moments_of_given_responsibilities(layout: str, n: int) -> None:
    """They are added to what the sums hold."""
    drawn = draw(n, 5, 3, layout)
    *_, centred = naive(drawn)
    resp = np.random.default_rng(0).dirichlet(np.ones(3), size=n).reshape(n, 3)
    share = drawn.weight * resp.T
    expected = scattered(share, centred, layout)
    sums = zeros(drawn)
    atol = 4 * (n + 16) * EPS * (1 + share.sum()) * (1 + (centred**2).max(initial=0))
    for times in (1, 2):
        kernels.moments(drawn.x, drawn.weight, lambda rows: resp[rows], drawn.means, sums)
        _, total, shift, scatter = parts(sums, 5)
        np.testing.assert_allclose(total, times * share.sum(axis=1), rtol=0, atol=times * atol)
        np.testing.assert_allclose(
            shift, times * np.einsum("kn,kni->ki", share, centred), rtol=0, atol=times * atol
        )
        np.testing.assert_allclose(scatter, times * expected, rtol=0, atol=times * atol)


@every_layout
@pytest.mark.parametrize("n", [0, 1, TILE + 1, 2 * TILE - 1, 2 * TILE, 2 * TILE + 1])
@pytest.mark.parametrize("d", [5, 50])
def test_tiles_of_float32(layout: str, n: int, d: int) -> None:
    """Twice as many rows; sums and densities are off by float32's rounding of standardised values."""
    drawn = draw(n, d, 3, layout, np.float32).single()
    joint, density, share, centred = naive(drawn)
    off = 4 * d * np.finfo(np.float32).eps * (1 + abs(joint).max(initial=0))
    atol = off * drawn.weight.sum()
    log_likelihood, total, shift, _ = summed(drawn, layout)
    np.testing.assert_allclose(log_likelihood, drawn.weight @ density, rtol=0, atol=atol)
    np.testing.assert_allclose(total, share.sum(axis=1), rtol=0, atol=atol)
    shifted, far = np.einsum("kn,kni->ki", share, centred), abs(centred).max(initial=1)
    np.testing.assert_allclose(shift, shifted, rtol=0, atol=atol * far)
    np.testing.assert_allclose(answered(drawn, layout, "density")[1], density, rtol=0, atol=off)


@every_layout
@pytest.mark.parametrize("d", [1, 2, 3, 6, 24, 50])
@pytest.mark.parametrize("centre", [0.0, 1e4])
def test_products_in_float32(layout: str, d: int, centre: float) -> None:
    """Off by float32's rounding of what is left once rows are centred, however far away they lie."""
    drawn = draw(2 * TILE + 17, d, 3, layout)
    means = drawn.means + centre * (np.arange(drawn.means.shape[1]) < d)
    x = (0.5 * drawn.x + means[np.arange(len(drawn.x)) % 3, :d]).astype(np.float32)
    beyond = means - means.astype(np.float32)
    offset = (
        np.einsum("kij,kj->ki", np.broadcast_to(drawn.factor, (3, *drawn.factor.shape[1:])), beyond)
        if (drawn.factor.ndim == 3)
        else drawn.factor * beyond
    )
    exact = drawn._replace(x=x, means=means, offset=np.zeros_like(offset))
    joint, density, share, _ = naive(exact)
    # A distance of D is off by some d·eps·D, and the logarithm of a share by as much.
    off = 4 * d * np.finfo(np.float32).eps * (1 + abs(joint).max())
    log_likelihood, total, *_ = summed(exact._replace(offset=offset).single(), layout)
    np.testing.assert_allclose(log_likelihood, drawn.weight @ density, rtol=0, atol=off * drawn.weight.sum())
    np.testing.assert_allclose(total, share.sum(axis=1), rtol=0, atol=off * drawn.weight.sum())


@every_layout
def test_float32_rows_count_as_their_float64_values(layout: str) -> None:
    single = draw(TILE + 36, 6, 3, layout, np.float32)
    assert_equal(summed(single, layout), summed(single._replace(x=single.x.astype(np.float64)), layout))


@every_layout
def test_equal_blocks_give_equal_bits(layout: str) -> None:
    drawn = draw(1000, 7, 4, layout)
    moved = Drawn(*(np.concatenate([a[:1], a])[1:] for a in drawn))  # elsewhere in memory
    assert_equal(summed(drawn, layout), summed(moved, layout))


@pytest.mark.parametrize("layout", ["triangular", "diagonal"])
def test_pieces_of_a_block_change_no_bit(layout: str) -> None:
    """Rows go in pieces of whole tiles, smaller ones where they are converted; no weights are weights of 1."""
    drawn = draw(WHOLE + PIECE + 17, 3, 2, layout)
    one = drawn._replace(weight=np.ones(len(drawn.x)))
    whole, model = summed(one, layout), packed(drawn, layout)
    for x in (one.x, np.asfortranarray(one.x), np.repeat(one.x, 2, axis=1)[:, ::2], one.x.astype(">f8")):
        assert_equal(parts(kernels.expectation(x, None, model), 3), whole)
    assert_equal(answered(drawn, layout), answered(drawn._replace(x=np.asfortranarray(drawn.x)), layout))
    first, second = (
        summed(drawn._replace(x=one.x[p], weight=one.weight[p]), layout)
        for p in (slice(WHOLE), slice(WHOLE, None))
    )
    for a, b, c in zip(first, second, whole, strict=True):
        np.testing.assert_allclose(a + b, c, rtol=1e-13)


@every_layout
@pytest.mark.parametrize("d", [5, 50])
@pytest.mark.parametrize("dtype", ["f8", "f4"])
def test_nothing_is_read_that_was_not_written(layout: str, d: int, dtype: str) -> None:
    """The memory of a tile is used again: what it holds from before changes no bit."""
    drawn = draw(2 * TILE + 17, d, 3, layout, dtype)
    drawn = drawn.single() if dtype == "f4" else drawn
    model = packed(drawn, layout)
    expected = summed(drawn, layout), answered(drawn, layout)
    for left in (np.nan, -1e30, 0.25):
        for found, use in zip(expected, (summed, answered), strict=True):
            with layouts.scratch_for(model) as scratch:
                for part in scratch:
                    part.fill(left if part.dtype.kind == "f" else 7)
            assert_equal(use(drawn, layout), found)


@every_layout
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_of_zero_weight_are_not_looked_at(layout: str, bad: float) -> None:
    drawn = draw(TILE + 36, 5, 3, layout)
    spoiled = drawn._replace(x=np.where(drawn.weight[:, None] == 0, bad, drawn.x))
    found = summed(spoiled, layout)
    assert_equal(found, summed(drawn, layout))
    assert all(np.isfinite(part).all() for part in found)


@every_layout
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_value_is_not_optimised_away(layout: str, bad: float) -> None:
    for row in (0, TILE - 1, TILE + 35):
        drawn = draw(TILE + 36, 5, 3, layout)
        drawn.weight[row] = 1.0
        drawn.x[row, 2] = bad
        log_likelihood, *_ = summed(drawn, layout)
        assert not np.isfinite(log_likelihood)
        for asked in ("labels", "density", "resp"):
            assert not answered(drawn, layout, asked)[-1]


@every_layout
def test_a_row_infinitely_far_away_has_density_zero(layout: str) -> None:
    drawn = draw(3, 4, 3, layout)
    drawn.x[1] = 1e200  # its squared distance overflows
    density = answered(drawn, layout, "density")[1]
    assert density[1] == -np.inf
    assert np.isfinite(density[[0, 2]]).all()


def test_responsibilities_far_from_all_means_sum_to_one() -> None:
    drawn = draw(TILE, 2, 3, "diagonal")
    drawn = drawn._replace(x=drawn.x + 1e4)  # exponents of -1e8: exp alone would be 0 / 0
    log_likelihood, total, *_ = summed(drawn, "diagonal")
    np.testing.assert_allclose(total.sum(), drawn.weight.sum(), rtol=1e-13)
    assert np.isfinite(log_likelihood)


@every_layout
@pytest.mark.parametrize("part", ["x", "weight", "resp", "labels", "density"])
def test_shapes_that_disagree_are_refused(layout: str, part: str) -> None:
    # Compiled code would read or write beyond the ends.
    drawn = draw(20, 5, 3, layout)
    x, weight = np.zeros((20, 30)) if part == "x" else drawn.x, np.ones(19) if part == "weight" else drawn.weight
    model, sums = packed(drawn, layout), zeros(drawn)
    labels, density = (np.zeros(19 if part == name else 0, int) for name in ("labels", "density"))
    resp = np.zeros((20, 2 if part == "resp" else 3))
    if part in ("x", "weight"):
        with pytest.raises(ValueError, match="fits neither"):
            kernels.expectation(x, weight, model)
    if part in ("x", "weight", "resp"):
        with pytest.raises(ValueError, match=r"fits neither|resp must have"):
            kernels.moments(x, weight, lambda rows: resp[rows], drawn.means, sums)
    else:
        with pytest.raises(ValueError, match="place for each row"):
            kernels.posterior(x, model, labels, density, np.empty((0, 3)))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("d", "k"), [(4, 2), (4, 9), (4, 33), (7, 4), (8, 33), (32, 7)])
@pytest.mark.parametrize("distance", [1.0, 100.0])
def test_components_that_share_a_scatter(dtype: Any, d: int, k: int, distance: float) -> None:
    """The sums are those of components by themselves, off by eps times the distance of the means: not squared.

    Whether they are pooled, or each component's added to the same scatter, as where components are many.
    """
    drawn = draw(2 * TILE + 17, d, k, "shared triangular")
    means = np.round(64 * distance * drawn.means) / 64  # float32 holds them
    x = (drawn.x + means[np.arange(len(drawn.x)) % k, :d]).astype(dtype)
    drawn = drawn._replace(x=x, means=means, offset=np.zeros_like(means))
    exact = summed(drawn._replace(x=x.astype(np.float64)), "shared triangular")
    found = summed(drawn.single() if dtype == np.float32 else drawn, "shared products")
    size = 1 + abs(means).max()
    off = 16 * np.finfo(dtype).eps * d * size * (1 + 4 * d) * drawn.weight.sum()
    for a, b in zip(found, exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=off)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_weights_too_small_to_divide_by(dtype: Any) -> None:
    drawn = draw(TILE, 8, 3, "shared products", dtype)
    drawn = drawn.single() if dtype == np.float32 else drawn
    drawn.weight[:9] = np.exp(-712.0) if dtype == np.float64 else 1e-42
    kept = drawn._replace(weight=np.where(drawn.weight < 1e-30, 0.0, drawn.weight))
    for a, b in zip(summed(drawn, "shared products"), summed(kept, "shared products"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-30)
