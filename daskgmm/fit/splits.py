"""What rows gain where a component becomes two: EM of two halves on the rows of each component, all at once.

Under the responsibilities r that a component's rows have, log-densities of the halves together in its place bound
the likelihood of the new mixture: Σ r·(log q − log f) is a gain before EM of the whole has gone on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csc_array, csr_array, vstack
from scipy.special import expit

from daskgmm._typing import Array
from daskgmm.compute.engines import on_threads
from daskgmm.model.blas import one_thread
from daskgmm.model.covariance import Covariance
from daskgmm.model.mixture import Mixture, pieces
from daskgmm.model.moments import moments
from daskgmm.model.structure import Structure
from daskgmm.model.update import Quiet

# Of a row: with less, a component has no say in it when splits are looked for; and when mergers are judged.
SHARE, FAINT = 0.05, 1e-3
# Rows of a component that splits are tried on, and that promising ones are followed on: so many, and so many more
# for each feature and one.
FEW, MANY = (250, 10), (2000, 200)
SCREEN, BEGUN, FOLLOW = 2, 3, 5  # EM steps there: on few, on many, and on those of what is promising still
HOPE = 0.25, 0.5  # of what a split has to gain: one of less, after the first steps on few and many, is left
APART = 0.8  # standard deviations: √(2/π), where the halves of a Gaussian cut in two have their means
SCALES = 0.4, 2.0  # of the variances, of two halves about one mean
PIECE_BYTES = 2 * 2**20  # of the rows whose components are tried at once, so that they stay in the cache
HEAVY = 1e25  # weight of a row: sums of more are no float32
JITTER = 1e-6  # of a component's variances, that is added to those of its halves


@dataclass(frozen=True, eq=False)
class Split:
    """A component in two, and what a row of all gains by that beyond noise."""

    component: int
    halves: Mixture  # their weights sum to 1
    gain: float


def splits(
    mixture: Mixture,
    members: "Members",
    components: Sequence[int] | Array,
    random: np.random.RandomState,
    price: float = 0.0,
) -> list[Split]:
    """Of each of these components the best split, if it gains by one that leaves both halves 2·(d + 1) rows.

    Those that promise a row of all much less than a ``price`` are left out.
    """
    total, d = members.weight.sum(), mixture.n_features
    rows = mixture.weights * total
    large = [int(j) for j in components if rows[j] >= 4 * (d + 1) and len(members.column(j, SHARE)[0])]
    few, many = (base + more * (d + 1) for base, more in (FEW, MANY))
    at_once = max(1, PIECE_BYTES // (8 * d * many))
    pieces = [np.array(large[first : first + at_once]) for first in range(0, len(large), at_once)]
    far = 1 if mixture.covariance.structure.form.axes == 2 else 2  # rows: a second one in place of a second axis
    draws = [random.uniform(size=(far, len(piece), 1)) for piece in pieces]

    def halved(piece: Array, draws: Array) -> list[Split]:
        # What the calling thread has set up need not reach another.
        with one_thread(), np.errstate(over="ignore", invalid="ignore"):  # what is no number is no gain
            for most, hope in zip((few, many), HOPE, strict=True):
                crowd = Crowd.of(mixture, members, piece, most)
                if most == few:
                    halves, gains = _screened(mixture.covariance.structure.loose, crowd, draws)
                else:
                    halves, _, gains = climbed(halves, crowd, BEGUN)
                keep = np.flatnonzero(gains > hope * (crowd.noise(mixture) + price * total))
                if not len(keep):
                    return []
                piece, crowd, halves = piece[keep], crowd.take(keep), halves.take(keep)
            return list(_followed(mixture, members, crowd, halves))

    return [split for found in on_threads(halved, pieces, draws) for split in found]


def _screened(structure: Structure, crowd: "Crowd", draws: Array) -> tuple["Halves", Array]:
    """Of each component the most promising trial, and what its rows gain by it, (c,)."""
    first, *others = (climbed(trial, crowd, SCREEN) for trial in trials(structure, crowd, draws))
    best, _, gains = first
    for halves, _, gain in others:
        best, gains = halves.where(gain > gains, best), np.maximum(gain, gains)
    return best, gains


def _followed(mixture: Mixture, members: "Members", crowd: "Crowd", halves: "Halves") -> Iterator[Split]:
    """What becomes of halves; they end as components of the mixture's kind."""
    d, structure = mixture.n_features, mixture.covariance.structure
    _, resp, gains = climbed(halves, crowd, FOLLOW)
    gains = (gains - crowd.noise(mixture)) / members.weight.sum()
    for i, j in enumerate(crowd.components):
        weight, share = crowd.weight[i].astype(np.float64), resp[i].T.astype(np.float64, order="C")
        if not gains[i] > 0 or (weight @ share).min() < 2 * (d + 1):
            continue
        s = moments(structure, members.x[crowd.rows[i]], weight, share, 2)
        both = mixture.covariance.take(np.array([j, j]))
        pair = Quiet(0.0, both)(Mixture(np.full(2, 0.5), s.means, both), s)
        yield Split(int(j), pair, float(gains[i]))


@dataclass(frozen=True, eq=False)
class Members:
    """Rows of a sample by the components that have a say in them."""

    x: Array  # (n, d)
    weight: Array  # (n,)
    resp: csc_array  # (n, k) responsibilities, those above `FAINT`
    lost: Array  # (k,) what a row of all loses where a component is left out; of a single row 35 nats at most

    @classmethod
    def of(cls, mixture: Mixture, x: Array, weight: Array | None) -> "Members":
        """One E-step, some rows at a time: no (n, k) array is there at once."""
        weight, most = np.ones(len(x)) if weight is None else np.minimum(weight, HEAVY), 1 - 1e-15

        def seen(rows: slice) -> tuple[csr_array, Array]:
            resp = mixture.responsibilities(x[rows])
            lost = (weight[rows, None] * np.log1p(-np.minimum(resp, most))).sum(axis=0)
            return csr_array(np.where((resp > FAINT) & (weight[rows, None] > 0), resp, 0.0)), lost

        parts, lost = zip(*on_threads(seen, list(pieces(len(x)))), strict=True)
        level = np.log1p(-np.minimum(mixture.weights, most))
        return cls(x, weight, vstack(parts, format="csc"), level - sum(lost) / weight.sum())

    def column(self, component: int, least: float = 0.0) -> tuple[Array, Array]:
        """Rows of a component, and its responsibility for each, of more than that."""
        part = slice(*self.resp.indptr[component : component + 2])
        rows, resp = self.resp.indices[part], self.resp.data[part]
        return rows[resp > least], resp[resp > least]

    def between(self, component: int, other: int) -> tuple[Array, Array, Array]:
        """Rows in which both have a say: their weights, and either's responsibility for each."""
        (rows, resp), (others, theirs) = self.column(component), self.column(other)
        at = np.searchsorted(others, rows)
        at[at == len(others)] = 0
        both = others[at] == rows if len(others) else np.zeros(len(rows), bool)
        return self.weight[rows[both]], resp[both], theirs[at[both]]


@dataclass(frozen=True, eq=False)
class Crowd:
    """Rows of c components side by side, m for each, as that component sees them; in float32, for a ranking."""

    components: Array  # (c,)
    rows: Array  # (c, m) their numbers in the sample
    weight: Array  # (c, m) with the component's responsibility; 0 where it has fewer rows
    z: Array  # (c, m, d) whitened: all together N(0, 1)
    axis: Array  # (c, d) a standard deviation along the direction of most variance, whitened
    stands: Array  # (c, 1) how many rows each stands for

    @classmethod
    def of(cls, mixture: Mixture, members: Members, components: Array, most: int) -> "Crowd":
        """Every so-manieth row of components that have more than ``most``: they stand for those left out."""
        columns = [members.column(j, SHARE) for j in components]
        m = min(most, max(len(rows) for rows, _ in columns))
        rows, weight, stands = np.zeros((len(columns), m), int), np.zeros((len(columns), m)), []
        for i, (seen, resp) in enumerate(columns):
            chosen = np.arange(min(m, len(seen))) * len(seen) // min(m, len(seen))
            whole = members.weight[seen] * resp
            stands.append(whole.sum() / whole[chosen].sum())
            rows[i, : len(chosen)], weight[i, : len(chosen)] = seen[chosen], stands[i] * whole[chosen]
        apart = members.x[rows] - mixture.means[components][:, None]
        own = mixture.covariance.take(components)
        axis = whitened(own, _longest(apart, weight)[:, None])[:, 0]
        single: tuple[Array, ...] = tuple(a.astype(np.float32) for a in (weight, whitened(own, apart), axis))
        return cls(components, rows, single[0], single[1], single[2], np.array(stands)[:, None])

    def take(self, components: Array) -> "Crowd":
        """That of some of the components."""
        return Crowd(*(values[components] for values in vars(self).values()))

    def noise(self, mixture: Mixture) -> Array:
        """What rows without structure gain, (c,): half a nat a parameter, times the rows that one stands for."""
        structure, d = mixture.covariance.structure, mixture.n_features
        parameters = (0 if structure.shared else structure.n_parameters(1, d)) + d + 1
        return np.asarray(0.5 * parameters * self.stands[:, 0])


def whitened(covariance: Covariance, apart: Array) -> Array:
    """Rows (c, m, d) about the means of components, in the standard deviations of those."""
    factor = covariance.factor
    return np.asarray(apart @ factor if covariance.structure.form.axes == 2 else apart * factor[:, None])


def _longest(apart: Array, weight: Array) -> Array:
    """A standard deviation along the long axis, (c, d): a few steps of the power method."""
    axis = np.ones((*apart.shape[::2], 1))
    for _ in range(8):
        axis = np.swapaxes(apart, 1, 2) @ (weight[..., None] * (apart @ axis))
        axis /= np.maximum(np.linalg.norm(axis, axis=1, keepdims=True), np.finfo(float).tiny)
    variance = (weight * np.square(apart @ axis)[..., 0]).sum(axis=1) / weight.sum(axis=1)
    return np.asarray(np.sqrt(variance)[:, None] * axis[..., 0])


@dataclass(frozen=True, eq=False)
class Halves:
    """Two parts of each of c components, whitened as its rows are."""

    share: Array  # (c, 2), sums to 1
    means: Array  # (c, 2, d)
    covariance: Covariance  # of 2c components, or one that all share

    def logits(self, z: Array) -> Array:
        """log share·density of rows (c, m, d) in either half, up to a constant: (c, 2, m)."""
        c, _, d = z.shape
        levels = self.covariance.factor, self.covariance.half_log_det(d)
        factor, level = (np.broadcast_to(a, (2 * c, *a.shape[1:])) for a in levels)
        factor = factor.reshape(c, 2, *factor.shape[1:]).astype(z.dtype)
        level = (level.reshape(c, 2) + np.log(self.share)).astype(z.dtype)
        y = z[:, None] - self.means[:, :, None].astype(z.dtype)
        y = y @ factor if factor.ndim == 4 else y * factor[:, :, None]
        return np.asarray(level[..., None] - np.float32(0.5) * np.einsum("chmd,chmd->chm", y, y))

    @classmethod
    def of(cls, structure: Structure, crowd: Crowd, resp: Array) -> "Halves":
        """M-step from responsibilities (c, 2, m).

        A half of fewer than 2·(d + 1) rows is filled up by rows that lie as those of the whole component do.
        """
        z, form = crowd.z, structure.form
        c, _, d = z.shape
        part = crowd.weight[:, None] * resp
        mass = np.maximum(part.sum(axis=2), np.finfo(np.float32).tiny)
        means = part @ z / mass[..., None]
        share, unit = mass / mass.sum(axis=1, keepdims=True), form.unit(1 if structure.isotropic else d)
        if structure.shared:
            return cls(share, means, form.of(structure, unit[None], np.inf))
        y = z[:, None] - means[:, :, None]
        y, weighed = y.reshape(2 * c, -1, d), (part[..., None] * y).reshape(2 * c, -1, d)
        scatter = np.swapaxes(weighed, 1, 2) @ y if form.axes == 2 else (weighed * y).sum(axis=1)
        scatter = scatter.mean(axis=1, keepdims=True) if structure.isotropic else scatter
        extra = np.maximum(0.0, 2 * (d + 1) * crowd.stands - mass)
        beside, total = extra.ravel()[form.beside], (mass + extra).ravel()[form.beside]
        values = (scatter + beside * unit) / total + JITTER * unit
        return cls(share, means, form.of(structure, values, np.inf))

    def take(self, components: Array) -> "Halves":
        """Those of some components."""
        both = (2 * components[:, None] + np.arange(2)).ravel()
        return Halves(self.share[components], self.means[components], self.covariance.take(both))

    def where(self, better: Array, other: "Halves") -> "Halves":
        """These of components that are better so, (c,), the other's of the rest."""
        covariance = self.covariance
        if not covariance.structure.shared:
            covariance = covariance.where(np.repeat(better, 2), other.covariance)
        share = np.where(better[:, None], self.share, other.share)
        return Halves(share, np.where(better[:, None, None], self.means, other.means), covariance)


def climbed(halves: Halves, crowd: Crowd, steps: int) -> tuple[Halves, Array, Array]:
    """After EM steps: the halves; responsibilities (c, 2, m) before the last, and what rows had gained, (c,)."""
    for _ in range(steps):
        logits = halves.logits(crowd.z)
        first = expit(logits[:, 0] - logits[:, 1])
        resp = np.stack([first, 1 - first], axis=1)
        halves = Halves.of(halves.covariance.structure, crowd, resp)
    whole = np.float32(-0.5) * np.square(crowd.z).sum(axis=2)
    gain = np.logaddexp(logits[:, 0], logits[:, 1]) - whole
    return halves, resp, (crowd.weight * gain).sum(axis=1, dtype=np.float64)


def trials(structure: Structure, crowd: Crowd, draws: Array) -> Iterator[Halves]:
    """Where to begin: along the long axis, along that of least kurtosis, at two scales, at a row far away.

    Of six kinds each was the best on some of eleven problems, and no two found nine tenths of what all did.
    ``draws``: random numbers that choose rows far away, (rows, c, 1).
    """
    z, form = crowd.z, structure.form
    c, m, d = z.shape
    unit = form.unit(1 if structure.isotropic else d)[None]
    same = form.of(structure, unit if structure.shared else np.repeat(unit, 2 * c, axis=0), np.inf)
    share, square = np.full((c, 2), 0.5), np.square(z).sum(axis=2)
    axes = [crowd.axis]
    if form.axes == 2:  # clusters of alike weight lie along it (Peña & Prieto 2001)
        fourth = np.swapaxes((crowd.weight * square)[..., None] * z, 1, 2) @ z
        axes.append(np.linalg.eigh(fourth)[1][..., 0])
    for axis in axes:
        yield Halves(share, APART * np.stack([-axis, axis], axis=1), same)
    if not structure.shared:
        scales = np.tile(SCALES, c)[form.beside]
        yield Halves(share, np.zeros((c, 2, d)), form.of(structure, scales * unit, np.inf))
    for draw in draws:
        chance = np.cumsum(crowd.weight * np.square(np.maximum(square - d, 0.0)), axis=1, dtype=np.float64)
        row = (chance < draw * chance[:, -1:]).sum(axis=1)
        far = z[np.arange(c), np.minimum(row, m - 1)]
        yield Halves(share, np.stack([np.zeros_like(far), far], axis=1), same)
