"""The fused E-step: every shape around the tile and the unrolled loops, and its contract."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from daskgmm.model import kernels

EPS = np.finfo(np.float64).eps
TILE = kernels.TILE


def draw(n: int, d: int, k: int, layout: str, dtype: Any = np.float64) -> dict[str, Any]:
    """Arguments of the E-step, in its own widths: zeros beyond the features of ``x``."""
    random = np.random.default_rng([n, d, k])
    s = 1 if layout.startswith("shared") else k
    triangular = "diagonal" not in layout
    w = kernels.width(d, triangular)
    means = np.zeros((k, w))
    means[:, :d] = random.normal(size=(k, d))
    if triangular:
        factor = np.zeros((s, w, w))
        factor[:, :d, :d] = np.tril(random.normal(size=(s, d, d)) * 0.3 + np.eye(d))
    else:
        factor = random.uniform(0.5, 2, size=(s, d))
    offset = np.where(np.arange(w) < d, random.normal(size=(k, w)), 0.0)
    x, weight = random.normal(size=(n, d)).astype(dtype), random.choice([0.0, 0.5, 2.0], size=n)
    arrays = {
        "x": x,
        "weight": weight,
        "means": means,
        "factor": factor,
        "offset": offset,
        "products": np.zeros((0, w)),
        "log_norm": random.normal(size=k),
    }
    return shared(arrays) if layout == "shared products" and d >= 4 else arrays


def shared(arrays: dict[str, Any]) -> dict[str, Any]:
    """With the products that components of one triangular factor may share."""
    means, factor, offset = (arrays[name].astype(np.float64) for name in ("means", "factor", "offset"))
    products = (means - means[0]) @ factor[0].T + offset
    return arrays | {"products": products.astype(arrays["factor"].dtype)}


def naive(x: Any, weight: Any, means: Any, factor: Any, offset: Any, products: Any, log_norm: Any) -> Any:
    """The same sums row by row, with NumPy."""
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


def zeros(arrays: dict[str, Any]) -> tuple[Any, Any, Any]:
    means, factor = arrays["means"], arrays["factor"]
    return np.zeros(len(means)), np.zeros(means.shape), np.zeros(factor.shape)


def sums(arrays: dict[str, Any], found: Any = None) -> tuple[Any, ...]:
    log_likelihood, found = np.zeros(1), found or zeros(arrays)
    both = np.zeros((len(arrays["products"]),) * 2)
    kernels.expectation(*arrays.values(), log_likelihood, *found, both)
    if len(both):
        kernels.spread(arrays["means"], both, *found[1:])
    return float(log_likelihood[0]), *found


def features(array: Any, d: int) -> Any:
    """Without the zeros beyond the features, of which nothing but zeros may come."""
    kept = array[(..., *[slice(d)] * (array.ndim - 1))]
    assert np.count_nonzero(array) == np.count_nonzero(kept)
    return kept


LAYOUTS = ["triangular", "shared triangular", "shared products", "diagonal", "shared diagonal"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("d", range(1, 10))
@pytest.mark.parametrize("n", [0, 1, TILE - 1, TILE, TILE + 1, 2 * TILE + 17])
def test_expectation_at_every_edge(layout: str, d: int, n: int) -> None:
    assert_sums(draw(n, d, 3, layout), layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("d", [23, 24, 27, 47, 48, 49, 70])
@pytest.mark.parametrize("k", [1, 2, 9])
@pytest.mark.parametrize("distance", [0.1, 1.0, 4.0])
def test_expectation_of_many_features(layout: str, d: int, k: int, distance: float) -> None:
    """Components on top of each other, and so far apart that most of the work is left out."""
    arrays = draw(2 * TILE + 17, d, k, layout)
    arrays["means"] *= distance
    arrays["x"] = 0.5 * arrays["x"] + arrays["means"][np.arange(len(arrays["x"])) % k, :d]
    assert_sums(shared(arrays) if layout == "shared products" else arrays, layout)


def assert_sums(arrays: dict[str, Any], layout: str) -> None:
    """The kernel's sums are NumPy's, up to the rounding of exponents and sums."""
    n, d = arrays["x"].shape
    joint, density, share, centred = naive(**arrays)
    log_likelihood, total, shift, scatter = sums(arrays)
    expected = np.einsum("kn,kni,knj->kij", share, centred, centred)
    if layout.startswith("shared"):
        expected = expected.sum(axis=0, keepdims=True)
    if layout.endswith("diagonal"):
        expected = np.diagonal(expected, axis1=1, axis2=2)
    # Exponents of a few hundred at most, off by d·eps of that; sums of n terms of a few units.
    size = 1 + (abs(joint).max() if n else 0)
    atol = (8 * d * size + n) * EPS * (1 + arrays["weight"].sum()) * (1 + (centred**2).max(initial=0))
    np.testing.assert_allclose(log_likelihood, arrays["weight"] @ density, rtol=0, atol=atol)
    np.testing.assert_allclose(total, share.sum(axis=1), rtol=0, atol=atol)
    shifted = np.einsum("kn,kni->ki", share, centred)
    np.testing.assert_allclose(features(shift, d), shifted, rtol=0, atol=atol)
    if not layout.endswith("diagonal"):
        kernels.mirror(scatter)
        np.testing.assert_array_equal(scatter, np.swapaxes(scatter, 1, 2))
        scatter = scatter[:, :d, :d]
    np.testing.assert_allclose(scatter, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", [0, 1, TILE, TILE + 1])
@pytest.mark.parametrize("asked", ["labels", "density", "resp", "all"])
def test_posterior_fills_what_is_asked_for(layout: str, n: int, asked: str) -> None:
    arrays = draw(n, 5, 3, layout)
    arrays["weight"][:] = 1.0
    joint, density, share, _ = naive(**arrays)
    labels = np.full(n if asked in ("labels", "all") else 0, -7)
    found = np.full(n if asked in ("density", "all") else 0, np.nan)
    resp = np.full((n if asked in ("resp", "all") else 0, 3), np.nan)
    kernels.posterior(*arrays.values(), labels, found, resp)
    # Exponents of at most a few hundred, off by d·eps of that, and with it logarithms and shares.
    atol = 64 * 5 * EPS * (1 + (abs(joint).max() if n else 0))
    np.testing.assert_array_equal(labels, joint.argmax(axis=0)[: len(labels)])
    np.testing.assert_allclose(found, density[: len(found)], rtol=0, atol=atol)
    np.testing.assert_allclose(resp, share.T[: len(resp)], rtol=0, atol=atol)


def test_the_first_of_equals_is_the_label() -> None:
    arrays = draw(10, 2, 3, "diagonal")
    arrays["means"][:], arrays["factor"][:], arrays["offset"][:], arrays["log_norm"][:] = 0.0, 1.0, 0.0, 0.5
    labels = np.full(10, -7)
    kernels.posterior(*arrays.values(), labels, np.empty(0), np.empty((0, 3)))
    np.testing.assert_array_equal(labels, 0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", [0, 1, TILE, TILE + 1])
def test_moments_of_given_responsibilities(layout: str, n: int) -> None:
    arrays = draw(n, 5, 3, layout)
    *_, centred = naive(**arrays)
    resp = np.random.default_rng(0).dirichlet(np.ones(3), size=n).reshape(n, 3)
    total, shift, scatter = zeros(arrays)
    kernels.moments(arrays["x"], arrays["weight"], resp, arrays["means"], total, shift, scatter)
    share = arrays["weight"] * resp.T
    expected = np.einsum("kn,kni,knj->kij", share, centred, centred)
    if layout.startswith("shared"):
        expected = expected.sum(axis=0, keepdims=True)
    if layout.endswith("diagonal"):
        expected = np.diagonal(expected, axis1=1, axis2=2)
    else:
        scatter, expected = np.tril(scatter[:, :5, :5]), np.tril(expected)
    atol = 4 * (n + 16) * EPS * (1 + share.sum()) * (1 + (centred**2).max(initial=0))
    np.testing.assert_allclose(total, share.sum(axis=1), rtol=0, atol=atol)
    shifted = np.einsum("kn,kni->ki", share, centred)
    np.testing.assert_allclose(features(shift, 5), shifted, rtol=0, atol=atol)
    np.testing.assert_allclose(scatter, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(("given", "wanted"), [("f8", "f8"), ("f4", "f4"), ("f4", "f8")])
@pytest.mark.parametrize("d", [1, 3, 4, 5, 8, 11, 16])
@pytest.mark.parametrize("first", [0, 3, TILE - 1, TILE + 6])
def test_rows_become_columns(given: str, wanted: str, d: int, first: int) -> None:
    x = np.random.default_rng(0).normal(size=(TILE + 7, d)).astype(given)
    tile = np.full((d + 1, TILE), np.nan, wanted)
    weight = np.arange(len(x)) % 5.0
    rows = kernels._load(x, weight, first, tile)
    assert rows == min(TILE, len(x) - first)
    part = slice(first, first + rows)
    np.testing.assert_array_equal(tile[:d, :rows], np.where(weight[part, None] == 0, 0, x[part]).T)
    assert not tile[:d, rows:].any()
    assert np.isnan(tile[d]).sum() == np.count_nonzero(weight[part])  # padding is the caller's


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", [0, 1, TILE + 1, 2 * TILE - 1, 2 * TILE, 2 * TILE + 1])
@pytest.mark.parametrize("d", [5, 50])
def test_tiles_of_float32(layout: str, n: int, d: int) -> None:
    """Twice as many rows; sums and densities are off by float32's rounding of standardised values."""
    arrays = draw(n, d, 3, layout, np.float32)
    arrays |= {name: arrays[name].astype(np.float32) for name in ("means", "factor", "offset", "products")}
    arrays = shared(arrays) if len(arrays["products"]) else arrays
    joint, density, share, centred = naive(**arrays)
    off = 4 * d * np.finfo(np.float32).eps * (1 + abs(joint).max(initial=0))
    log_likelihood, total, shift, _ = sums(arrays)
    np.testing.assert_allclose(
        log_likelihood, arrays["weight"] @ density, rtol=0, atol=off * arrays["weight"].sum()
    )
    np.testing.assert_allclose(total, share.sum(axis=1), rtol=0, atol=off * arrays["weight"].sum())
    shifted, far = np.einsum("kn,kni->ki", share, centred), abs(centred).max(initial=1)
    np.testing.assert_allclose(shift[:, :d], shifted, rtol=0, atol=off * arrays["weight"].sum() * far)
    found = np.full(n, np.nan)
    arrays["weight"] = np.ones(n)
    kernels.posterior(*arrays.values(), np.empty(0, np.int64), found, np.empty((0, 3)))
    np.testing.assert_allclose(found, density, rtol=0, atol=off)


def test_rows_that_are_not_contiguous_are_refused() -> None:
    arrays = draw(20, 8, 2, "diagonal")
    with pytest.raises(numba.TypingError, match="C-contiguous"):
        sums(arrays | {"x": np.zeros((20, 16))[:, ::2]})


@pytest.mark.parametrize(("dtype", "lowest"), [("f8", 707), ("f4", 86)])
def test_exponential(dtype: str, lowest: float) -> None:
    # Contract: (|argument| + 4)·eps of what is not above 0.
    random = np.random.default_rng(0)
    parts = [[0.0, 1e-30, 1e-17], random.uniform(0, lowest, 5000), random.exponential(1, 5000)]
    peak = random.normal(size=10003).astype(dtype)
    x = (peak - np.concatenate(parts)).astype(dtype)

    def exp(x: Any, peak: Any) -> Any:
        out, total = np.empty_like(x), np.ones_like(x)
        kernels._exp(x, peak, out, total)
        np.testing.assert_array_equal(total, 1 + out)
        return out

    out = exp(x, peak)
    argument = (x - peak).astype(np.longdouble)
    assert np.all(abs(out / np.exp(argument) - 1) <= (abs(argument) + 4) * np.finfo(dtype).eps)
    assert exp(peak, peak).tolist() == [1.0] * len(peak)
    far = np.array([-745.0, -1e4, -1e10, -1e19, -1e38, -np.inf, np.nan], dtype=dtype)
    out = exp(far, np.zeros_like(far))
    assert np.all(np.isnan(out) == np.isnan(far))
    assert np.all(out[:-1] == 0)


def test_logarithm() -> None:
    # Contract: 4·eps·(result + 1) from 1 on.
    random = np.random.default_rng(0)
    y = np.concatenate(
        [[1.0, np.nextafter(1, 2), 2.0, 1.5], random.uniform(1, 2000, 5000), 1 + random.uniform(size=5000)]
    )
    out = np.empty_like(y)
    kernels._log(y, out)
    exact = np.log(y.astype(np.longdouble))
    assert np.all(abs(out - exact) <= 4 * EPS * (exact + 1))
    bad = np.array([np.nan, np.nan])
    kernels._log(bad, bad_out := np.empty(2))
    assert np.all(np.isnan(bad_out))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("part", ["x", "weight", "means", "factor"])
def test_shapes_that_disagree_are_refused(layout: str, part: str) -> None:
    # Compiled code would read beyond the ends.
    arrays = draw(20, 5, 3, layout)
    found = zeros(arrays)
    wrong = {"x": np.zeros((20, 30)), "weight": np.ones(19), "means": np.zeros((3, 4)), "factor": None}[part]
    if wrong is None:
        shape = arrays["factor"].shape
        wrong = np.zeros((shape[0], *(size - 1 for size in shape[1:])))
    with pytest.raises(ValueError, match="disagree in shape"):
        kernels.expectation(*(arrays | {part: wrong}).values(), np.zeros(1), *found, np.zeros((0, 0)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sums_are_added_to(layout: str) -> None:
    arrays = draw(200, 3, 2, layout)
    _, total, shift, scatter = once = sums(arrays)
    twice = [a.copy() for a in once[1:]]
    sums(arrays, twice)
    for a, b in zip(twice, (total, shift, scatter), strict=True):
        np.testing.assert_allclose(a, 2 * b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_blocks_give_equal_bits(layout: str) -> None:
    arrays = draw(1000, 7, 4, layout)
    first = sums(arrays)
    moved = {name: np.concatenate([a[:1], a])[1:] for name, a in arrays.items()}  # elsewhere in memory
    for a, b in zip(first, sums(moved), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("d", [1, 2, 3, 6, 24, 50])
@pytest.mark.parametrize("centre", [0.0, 1e4])
def test_products_in_float32(layout: str, d: int, centre: float) -> None:
    """Off by float32's rounding of what is left once rows are centred, however far away they lie."""
    exact = draw(2 * TILE + 17, d, 3, layout)
    exact["means"][:, :d] += centre
    exact["x"] = (0.5 * exact["x"] + exact["means"][np.arange(len(exact["x"])) % 3, :d]).astype(np.float32)
    means, factor = exact["means"], exact["factor"]
    near = means.astype(np.float32)
    beyond = (means - near)[..., None]
    exact["offset"] = (factor @ beyond)[..., 0] if factor.ndim == 3 else factor * beyond[..., 0]
    single = exact | {name: exact[name].astype(np.float32) for name in ("means", "factor", "offset", "products")}
    joint, density, share, _ = naive(**(exact | {"offset": np.zeros_like(exact["offset"])}))
    # A distance of D is off by some d·eps·D, and the logarithm of a share by as much.
    off = 4 * d * np.finfo(np.float32).eps * (1 + abs(joint).max())
    weight = exact["weight"]
    single = shared(single) if len(single["products"]) else single
    log_likelihood, total, *_ = sums(single)
    np.testing.assert_allclose(log_likelihood, weight @ density, rtol=0, atol=off * weight.sum())
    np.testing.assert_allclose(total, share.sum(axis=1), rtol=0, atol=off * weight.sum())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_rows_count_as_their_float64_values(layout: str) -> None:
    single = draw(TILE + 36, 6, 3, layout, np.float32)
    double = single | {"x": single["x"].astype(np.float64)}
    for a, b in zip(sums(single), sums(double), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_of_zero_weight_are_not_looked_at(layout: str, bad: float) -> None:
    arrays = draw(TILE + 36, 5, 3, layout)
    spoiled = arrays | {"x": np.where(arrays["weight"][:, None] == 0, bad, arrays["x"])}
    for a, b in zip(sums(arrays), sums(spoiled), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.all(np.isfinite(b))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, TILE - 1, TILE + 35])
def test_a_bad_value_is_not_optimised_away(layout: str, bad: float, row: int) -> None:
    arrays = draw(TILE + 36, 5, 3, layout)
    arrays["weight"][row] = 1.0
    arrays["x"][row, 2] = bad
    log_likelihood, *_ = sums(arrays)
    assert not np.isfinite(log_likelihood)


def test_responsibilities_far_from_all_means_sum_to_one() -> None:
    arrays = draw(TILE, 2, 3, "diagonal")
    arrays["x"] += 1e4  # exponents of -1e8: exp alone would be 0 / 0
    log_likelihood, total, *_ = sums(arrays)
    np.testing.assert_allclose(total.sum(), arrays["weight"].sum(), rtol=1e-13)
    assert np.isfinite(log_likelihood)


# Sums of every entry point, in a process of its own.
BITS = """
import hashlib
import numpy as np
from daskgmm.model.covariance import Diagonal, Full, Tied
from daskgmm.model.mixture import Mixture, moments

random = np.random.default_rng(0)
x, resp = random.normal(size=(700, 5)), random.dirichlet(np.ones(3), size=700)
digest = hashlib.sha256()
for structure, one in ((Full, np.stack([np.eye(5)] * 3)), (Tied, np.eye(5)), (Diagonal, np.ones((3, 5)))):
    mixture = Mixture(np.full(3, 1 / 3), x[:3], structure.of(one))
    for s in (mixture.expectation(x), moments(structure, x, None, resp, 3)):
        for part in (s.weight, s.shift, s.scatter, s.log_likelihood):
            digest.update(np.ascontiguousarray(part).tobytes())
print(digest.hexdigest())
"""


@pytest.mark.timeout(300)
def test_compiled_anew_or_read_from_the_cache_gives_the_same_bits(tmp_path: Path) -> None:
    # One worker compiles, the next finds the result on disk: they must agree, or a fit would depend on
    # which worker came first. A helper that is linked, not inlined, may come optimised in another way.
    root = Path(kernels.__file__).parents[2]
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(root)}
    found = [
        subprocess.run(
            [sys.executable, "-c", BITS],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=140,
        ).stdout
        for _ in range(2)
    ]
    assert found[0]
    assert found[0] == found[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_infinitely_far_away_has_density_zero(layout: str) -> None:
    arrays = draw(3, 4, 3, layout)
    arrays["weight"][:] = 1.0
    arrays["x"][1] = 1e200  # its squared distance overflows
    density = np.empty(3)
    kernels.posterior(*arrays.values(), np.empty(0, np.int64), density, np.empty((0, 3)))
    assert density[1] == -np.inf
    assert np.isfinite(density[[0, 2]]).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("d", "k"), [(4, 2), (4, 9), (7, 4), (8, 33), (32, 7)])
@pytest.mark.parametrize("distance", [1.0, 100.0])
def test_components_that_share_a_scatter(dtype: Any, d: int, k: int, distance: float) -> None:
    """The sums are those of components by themselves, off by eps times the distance of the means: not squared."""
    arrays = draw(2 * TILE + 17, d, k, "shared triangular")
    arrays["means"] = np.round(64 * distance * arrays["means"]) / 64  # float32 holds them
    arrays["x"] = (arrays["x"] + arrays["means"][np.arange(len(arrays["x"])) % k, :d]).astype(dtype)
    arrays["offset"][:] = 0
    exact = sums(arrays | {"x": arrays["x"].astype(np.float64)})
    found = sums(shared(arrays | {name: arrays[name].astype(dtype) for name in ("means", "factor", "offset")}))
    size = 1 + abs(arrays["means"]).max()
    off = 16 * np.finfo(dtype).eps * d * size * (1 + 4 * d) * arrays["weight"].sum()
    for a, b in zip(found, exact, strict=True):
        a, b = (np.tril(part) if np.ndim(part) == 3 else part for part in (a, b))
        np.testing.assert_allclose(a, b, rtol=0, atol=off)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_weights_too_small_to_divide_by(dtype: Any) -> None:
    arrays = draw(TILE, 8, 3, "shared products", dtype)
    names = ("means", "factor", "offset", "products")
    arrays |= {name: arrays[name].astype(dtype) for name in names}
    arrays["weight"][:9] = np.exp(-712.0) if dtype == np.float64 else 1e-42
    kept = arrays | {"weight": np.where(arrays["weight"] < 1e-30, 0.0, arrays["weight"])}
    for a, b in zip(sums(arrays), sums(kept), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("part", ["means", "factor", "short"])
def test_products_that_do_not_fit_are_refused(part: str) -> None:
    arrays = shared(draw(10, 8, 3, "shared triangular"))
    wrong = {
        "means": arrays | {"products": arrays["products"][:2]},
        "factor": arrays | {"factor": np.repeat(arrays["factor"], 3, axis=0)},
        "short": shared(draw(10, 3, 3, "shared triangular")),
    }
    with pytest.raises(ValueError, match="products"):
        kernels.posterior(*wrong[part].values(), np.empty(0, np.int64), np.empty(10), np.empty((0, 3)))
