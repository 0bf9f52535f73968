"""Covariances that have something in common, by what the letters of mclust's codes say.

Volume and shape are E(qual) or V(arying), a shape may be I (a sphere), and so may an orientation: that of the
features. No formula of an M-step is repeated here: what it finds is the best of its family.
"""

import pickle
from dataclasses import replace
from functools import reduce
from itertools import permutations
from operator import add
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm

from daskgmm.errors import CollapseError
from daskgmm.model import local
from daskgmm.model.changes import merge
from daskgmm.model.mixture import Mixture
from daskgmm.model.moments import moments
from daskgmm.model.parts import Parts
from daskgmm.model.structure import FULL, STRUCTURES, structure_of
from daskgmm.model.update import MAP, Regularised
from tests.model.test_structure import check_structure
from tests.strategies import chunkings, parts, seeds
from tests.structures import EVERY, SHARED_AXES, draw_covariances, draw_mixture, draw_rows, joint, matrices

CODES = ["EII", "VII", "EEI", "VEI", "EVI", "VVI", "EEE", "VEE", "EVV", "EEV", "VEV", "VVV"]
RELATED = [code for code in CODES if STRUCTURES[code].name == code]
every_code = pytest.mark.parametrize("code", CODES)
every_relation = pytest.mark.parametrize("code", RELATED)
shared_axes = pytest.mark.parametrize("kind", SHARED_AXES)
ORDER = {"I": 0, "E": 1, "V": 2}


def within(code: str, more: str) -> bool:
    """Whether each covariance of a family is one of another."""
    return all(ORDER[a] <= ORDER[b] for a, b in zip(code, more, strict=True))


def dense(values: Any, k: int, d: int) -> Any:
    """Covariances as held, as k matrices."""
    found = values if values.ndim == 3 else values[:, :, None] * np.eye(d)
    return np.broadcast_to(found, (k, d, d))


def fitted(code: str, scatter: Any, weight: Any, ridge: float = 0.0) -> Any:
    """The covariances (k, d, d) that an M-step makes of those of components by themselves."""
    structure, (k, d) = STRUCTURES[code], scatter.shape[:2]
    s = replace(
        moments(structure, np.zeros((1, d)), None, np.zeros(1, int), k),
        weight=weight,
        scatter=structure.condensed(weight[:, None, None] * scatter),
    )
    return dense(structure.fit(s, structure.condensed(scatter), ridge).values, k, d)


def gain(covariances: Any, scatter: Any, weight: Any) -> float:
    """What an M-step maximises, of matrices."""
    traces = np.trace(np.linalg.solve(covariances, scatter), axis1=1, axis2=2)
    return -float(weight @ (np.linalg.slogdet(covariances)[1] + traces) / weight.sum())


def drawn(k: int, d: int, seed: int) -> tuple[Any, Any]:
    """Matrices and weights."""
    return draw_covariances("full", k, d, seed), np.random.default_rng(seed).uniform(0.2, 5, k)


def nearby(code: str, covariances: Any, size: float, seed: int) -> Any:
    """Others of the family: volumes, shapes and orientations change alike where they are equal."""
    (k, d), random = covariances.shape[:2], np.random.default_rng(seed)

    def some(letter: str, *shape: int) -> Any:
        change = size * random.normal(size=(k, *shape))
        return {"I": 0 * change, "E": change[[0] * k], "V": change}[letter]

    volume, shape, turn = some(code[0], 1), some(code[1], d), some(code[2], d, d)
    own = np.linalg.eigh(covariances)[1]
    axes = {"I": np.tile(np.eye(d), (k, 1, 1)), "E": own[[0] * k], "V": own}[code[2]]
    along = np.einsum("kji,kjl,kli->ki", axes, covariances, axes)
    along = along * np.exp(volume + shape - shape.mean(axis=1, keepdims=True))
    turned = np.stack([expm(t - t.T) for t in turn]) @ axes
    return turned * along[:, None] @ np.swapaxes(turned, 1, 2)


@every_code
def test_the_letters_say_how_many_parameters_there_are(code: str) -> None:
    for k, d in ((1, 1), (1, 4), (3, 4), (2, 7)):
        many = {"I": 0, "E": 1, "V": k}
        volume, shape, turn = (
            many[letter] * of for letter, of in zip(code, (1, d - 1, d * (d - 1) // 2), strict=True)
        )
        assert STRUCTURES[code].n_parameters(k, d) == volume + shape + turn


def test_structures_are_the_same_objects_in_every_process() -> None:
    for structure in (*STRUCTURES.values(), structure_of("factors", 3)):
        assert pickle.loads(pickle.dumps(structure)) is structure is structure_of(structure.key)
    with pytest.raises(KeyError):
        structure_of("none")


@every_code
@given(k=st.integers(1, 4), d=st.integers(1, 5), seed=seeds)
@settings(max_examples=8)
def test_the_letters_say_what_components_have_in_common(code: str, k: int, d: int, seed: int) -> None:
    found = fitted(code, *drawn(k, d, seed))
    values = np.linalg.eigvalsh(found)
    volume = np.exp(np.log(values).mean(axis=1, keepdims=True))
    shape = values / volume
    if code[0] == "E":
        np.testing.assert_allclose(volume, volume[[0] * k], rtol=1e-12)
    if code[1] == "E" or code[1] == "I":
        np.testing.assert_allclose(shape, 1 + 0 * shape if code[1] == "I" else shape[[0] * k], rtol=1e-10)
    if code[2] == "I":
        np.testing.assert_array_equal(found, found * np.eye(d))
    if code[2] == "E":
        np.testing.assert_allclose(found[0] @ found, found @ found[0], rtol=0, atol=1e-10 * (found.max() ** 2))


@every_code
@given(k=st.integers(1, 4), d=st.integers(1, 5), seed=seeds)
@settings(max_examples=8)
def test_no_other_of_the_family_is_better(code: str, k: int, d: int, seed: int) -> None:
    scatter, weight = drawn(k, d, seed)
    best = fitted(code, scatter, weight)
    top = gain(best, scatter, weight)
    np.testing.assert_allclose(gain(nearby(code, best, 0.0, seed), scatter, weight), top, rtol=1e-9)
    for size in (1e-2, 0.1, 1.0):
        assert gain(nearby(code, best, size, seed), scatter, weight) <= top + 1e-10 * abs(top)
    sides = [gain(nearby(code, best, size, seed), scatter, weight) for size in (1e-4, -1e-4)]
    assert abs(sides[0] - sides[1]) < 1e-9 * (1 + abs(top))  # so flat is it at the top


@pytest.mark.parametrize(("code", "more"), [(a, b) for a, b in permutations(CODES, 2) if within(a, b)])
def test_what_has_less_in_common_fits_as_well(code: str, more: str) -> None:
    for seed in range(5):
        scatter, weight = drawn(3, 4, seed)
        less, most = (gain(fitted(c, scatter, weight), scatter, weight) for c in (code, more))
        assert less <= most + 1e-12
    assert less < most - 1e-6


@every_code
def test_the_ridge_is_added_to_what_the_rows_have(code: str) -> None:
    scatter, weight = drawn(3, 4, 0)
    expected = fitted(code, scatter + 0.25 * np.eye(4), weight)
    np.testing.assert_allclose(fitted(code, scatter, weight, 0.25), expected, rtol=1e-12, atol=1e-13)


@every_relation
def test_a_component_without_weight_has_no_say_and_stays_of_the_family(code: str) -> None:
    scatter, weight = drawn(4, 3, 0)
    found = fitted(code, scatter, np.where(np.arange(4) == 1, 0.0, weight))
    rest = np.array([0, 2, 3])
    np.testing.assert_allclose(found[rest], fitted(code, scatter[rest], weight[rest]), rtol=1e-11, atol=1e-12)
    assert np.linalg.eigvalsh(found).min() > 0
    structure = STRUCTURES[code]
    held = structure.form.condensed(found)
    assert structure.holds(held)


def test_volumes_are_found_to_all_digits_but_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each change is half of the one before here: the first that is below 1e-13 is the last."""
    structure, values, found = STRUCTURES["VEI"], np.array([[1.0, 8], [8, 2]]), []
    trace = type(structure).trace

    def watched(self: Any, *args: Any) -> Any:
        found.append(trace(self, *args))
        return found[-1]

    monkeypatch.setattr(type(structure), "trace", watched)
    structure.covariance(values, np.ones(2))
    *_, before, last = np.abs(np.diff(found, axis=0) / found[1:]).max(axis=1)
    assert 0.5e-13 < last <= 1e-13 < before <= 2e-13


@every_relation
def test_the_unit_of_weights_does_not_matter(code: str) -> None:
    scatter, weight = drawn(3, 4, 1)
    np.testing.assert_allclose(fitted(code, scatter, 2.0**-60 * weight), fitted(code, scatter, weight), rtol=1e-12)


@every_relation
def test_shape_is_lent_to_a_component_that_is_flat_by_itself(code: str) -> None:
    scatter, weight = drawn(3, 4, 0)
    scatter[1, 2] = scatter[1, :, 2] = 0.0
    if code[1] == "E":
        assert np.linalg.eigvalsh(fitted(code, scatter, weight)).min() > 1e-3
        return
    with pytest.raises(CollapseError, match="component 1") as caught:
        fitted(code, scatter, weight)
    assert caught.value.component == 1


@every_relation
@pytest.mark.parametrize("ridge", [0.0, 1e-6])
def test_a_component_on_one_point_collapses_unless_there_is_a_ridge(code: str, ridge: float) -> None:
    scatter, weight = drawn(3, 4, 0)
    scatter[1] = 0.0
    if ridge or code == "EEV":  # which takes size and shape from the others
        assert np.linalg.eigvalsh(fitted(code, scatter, weight, ridge)).min() > 0
        return
    with pytest.raises(CollapseError) as caught:
        fitted(code, scatter, weight)
    assert caught.value.component == 1


@every_relation
def test_what_is_no_number_is_a_collapse(code: str) -> None:
    scatter, weight = drawn(3, 4, 0)
    scatter[2] = np.nan
    with pytest.raises(CollapseError):
        fitted(code, scatter, weight)


def mixture_of(code: str, k: int = 3, d: int = 4, seed: int = 0) -> Mixture:
    """A mixture of the family."""
    mixture, structure = draw_mixture("full", k, d, seed), STRUCTURES[code]
    values = structure.condensed(mixture.covariance.values)
    return Mixture(mixture.weights, mixture.means, structure.covariance(values, mixture.weights))


@every_relation
def test_answers_and_statistics_are_those_of_the_matrices(code: str) -> None:
    mixture = mixture_of(code)
    x, own = draw_rows(mixture, 300), dense(mixture.covariance.values, 3, 4)
    whole = joint(x, mixture.weights, mixture.means, own, "full").astype(float)
    np.testing.assert_allclose(mixture.score_samples(x), np.logaddexp.reduce(whole, axis=1), rtol=1e-12)
    s, full = (
        mixture.expectation(x),
        Mixture(mixture.weights, mixture.means, FULL.form.of(FULL, own)).expectation(x),
    )
    np.testing.assert_allclose(
        s.scatter, mixture.covariance.structure.condensed(full.scatter), rtol=1e-10, atol=1e-10
    )
    updated = Regularised(1e-3)(mixture, s)
    centred = full.about(updated.means)
    expected = fitted(code, centred.scatter / centred.weight[:, None, None], s.weight, 1e-3)
    np.testing.assert_allclose(dense(updated.covariance.values, 3, 4), expected, rtol=1e-9, atol=1e-10)
    updated.covariance.check()


@every_relation
def test_places_between_are_of_the_family(code: str) -> None:
    mixture = mixture_of(code)
    place = local.coordinates(mixture)
    np.testing.assert_allclose(local.at(place, mixture).covariance.values, mixture.covariance.values, atol=1e-12)
    found = local.at(place + 0.3 * np.random.default_rng(0).normal(size=len(place)), mixture)
    found.covariance.check()
    assert found.covariance.structure is STRUCTURES[code]
    assert np.abs(found.covariance.values - mixture.covariance.values).max() > 0.05


@every_relation
def test_covariances_that_have_nothing_in_common_are_refused(code: str) -> None:
    mixture, other = mixture_of(code), mixture_of("VVI" if code[2] == "I" else "VVV", seed=1)
    wrong = replace(other.covariance, structure=mixture.covariance.structure)
    with pytest.raises(ValueError, match="in common"):
        wrong.check()
    wrong.structure.imposed(other.covariance, mixture.weights).check()


@every_relation
def test_parts_have_nothing_in_common(code: str) -> None:
    mixture = mixture_of(code)
    of_parts = Parts.of(mixture, np.array([2, 0]))
    own = dense(mixture.covariance.values, 3, 4)
    for part, features in ((of_parts.marginal.covariance, [2, 0]), (of_parts.rest, [1, 3])):
        part.check()
        assert part.structure.name == ("diag" if code[2] == "I" else "full")
        if part is not of_parts.rest:
            cut = own[:, np.array(features)[:, None], features]
            np.testing.assert_allclose(dense(part.values, 3, 2), cut, rtol=1e-14)


@every_relation
def test_the_mode_of_a_prior_is_of_the_family(code: str) -> None:
    structure, wide = STRUCTURES[code], mixture_of("VVI" if code[2] == "I" else "VVV", seed=1)
    count = np.array([3.0, 4.0, 5.0])
    scatter = wide.covariance.values * count[structure.form.beside]
    prior = MAP(structure, wide.means, np.ones(3), scatter, count, np.ones(3))
    mode = prior.mode
    mode.covariance.check()
    assert prior.penalty(mode) > max(prior.penalty(changed(mode, code, seed)) for seed in range(5))


def changed(mixture: Mixture, code: str, seed: int) -> Mixture:
    """With other covariances of the family."""
    structure = STRUCTURES[code]
    values = structure.form.condensed(nearby(code, dense(mixture.covariance.values, 3, 4), 0.1, seed))
    return Mixture(mixture.weights, mixture.means, structure.form.of(structure, values))


@every_relation
def test_components_put_elsewhere_are_of_the_family(code: str) -> None:
    mixture = mixture_of(code)
    merged = merge(mixture, 0, 2)
    merged.covariance.check()
    assert merged.covariance.structure is STRUCTURES[code]
    assert merged.n_components == 2


# One variance of each feature, or of all, that all components share: the statistics of all rows together.


@shared_axes
@pytest.mark.parametrize("dtype", ["f8", "f4"])
@given(data=st.data())
@settings(max_examples=10)
def test_shared_axes_are_their_dense_reference(kind: str, dtype: str, data: st.DataObject, reference: Any) -> None:
    mixture = draw_mixture(kind, data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6)), data.draw(seeds))
    x = draw_rows(mixture, data.draw(st.integers(1, 300))).astype(dtype)
    weight = np.random.default_rng(0).choice([0.5, 1.0, 3.0], size=len(x))
    check_structure(mixture, x, weight, reference)
    mixture.covariance.check()


@shared_axes
@given(data=st.data())
@settings(max_examples=10)
def test_statistics_of_shared_axes_add_up_and_move(kind: str, data: st.DataObject) -> None:
    mixture = draw_mixture(kind, 3, 4, data.draw(seeds))
    x = draw_rows(mixture, 200)
    cut = parts(data.draw(chunkings(200)))
    whole, sums = mixture.expectation(x), reduce(add, [mixture.expectation(x[part]) for part in cut])
    away = whole.about(whole.reference + 1.5)
    for found in (sums, away.about(whole.reference)):
        for name in ("weight", "shift", "scatter", "log_likelihood"):
            np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-10, atol=1e-9)
    full = Mixture(
        mixture.weights, mixture.means, FULL.form.of(FULL, matrices(mixture.covariance.values, kind, 3, 4))
    )
    kept = full.expectation(x).about(away.reference).under(mixture.covariance.structure)
    np.testing.assert_allclose(away.scatter, kept.scatter, rtol=1e-10)


@shared_axes
def test_shapes_of_shared_axes(kind: str) -> None:
    structure, values = STRUCTURES[kind], np.asarray(draw_covariances(kind, 3, 4), float)
    assert structure.shape(3, 4) == EVERY[kind].shape(3, 4) == values.shape
    np.testing.assert_array_equal(structure.shown(structure.stored(values, 3, 4), 3, 4), values)
