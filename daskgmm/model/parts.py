"""A mixture seen from some of its features: what it says of those, and of the others given those."""

from dataclasses import dataclass

import numpy as np

from daskgmm._typing import Array
from daskgmm.model.covariance import Covariance
from daskgmm.model.mixture import Mixture


@dataclass(frozen=True, eq=False)
class Parts:
    """The features of a mixture in two groups: o that are seen, and m others.

    In each component the others are Gaussian given what is seen, with mean ``means + gain @ (x - marginal.means)``
    and covariance ``rest`` (Anderson 2003, theorem 2.5.1).
    """

    seen: Array  # (o,) their numbers
    unseen: Array  # (m,)
    marginal: Mixture  # of those that are seen
    means: Array  # (k, m) of the others
    gain: Array  # (s, m, o), s = 1 where all components share one
    rest: Covariance  # of the others, given those that are seen

    @classmethod
    def of(cls, mixture: Mixture, seen: Array, unseen: Array | None = None) -> "Parts":
        """``seen`` are numbers of features, at least one, and so are ``unseen``: all others, if not given.

        Under `one_thread`, as the bits of products depend on BLAS's.
        """
        seen = np.asarray(seen, np.intp)
        unseen = np.delete(np.arange(mixture.n_features), seen) if unseen is None else np.asarray(unseen, np.intp)
        covariance, gain, rest = mixture.covariance.parted(seen, unseen)
        marginal = mixture.seen(seen, covariance)
        return cls(seen, unseen, marginal, mixture.means[:, unseen], gain, rest)

    def conditional(self, x: Array) -> Mixture:
        """The mixture of the others where what is seen has the values ``x`` (o,)."""
        means = np.concatenate([self.expected(x[None], j) for j in range(len(self.means))])
        return Mixture(self.marginal.members.responsibilities(x[None])[0], means, self.rest)

    def expected(self, x: Array, component: int) -> Array:
        """Means (n, m) of the others in one component, for rows ``x`` (n, o) of what is seen."""
        gain = self.gain[min(component, len(self.gain) - 1)]
        # Without BLAS, as the bits of a product would depend on its threads.
        mean: Array = self.means[component] + np.einsum("no,mo->nm", x - self.marginal.means[component], gain)
        return mean

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays, with the marginal mixture as the kernels read it."""
        own = (self.marginal.covariance.values, self.gain, self.rest.values)
        return sum(4 * array.nbytes for array in own) + 1024

    def draw(self, x: Array, random: np.random.Generator) -> tuple[Array, bool]:
        """The others (n, m), drawn given rows ``x`` (n, o), and whether these rows are all finite."""
        resp, finite = self.marginal.members.answer(x, "responsibilities")
        chosen = (resp.cumsum(axis=1) < random.random(len(x))[:, None]).sum(axis=1).clip(max=len(self.means) - 1)
        if not finite:
            return np.zeros((len(x), self.means.shape[1])), False
        noise, out = random.standard_normal((len(x), self.means.shape[1])), np.empty((len(x), self.means.shape[1]))
        for j in np.unique(chosen):
            rows = chosen == j
            out[rows] = self.expected(x[rows], j) + self.rest.colour(noise[rows], j)
        return out, finite

    def answer(self, x: Array, question: str) -> tuple[Array, bool]:
        """``mean`` or ``std`` (n, m) of the others in rows ``x`` (n, o), and whether these rows are all finite.

        The law of total variance: what components leave open, and by how much they differ.
        """
        resp, finite = self.marginal.members.answer(x, "responsibilities")
        x, (k, m) = np.asarray(x, np.float64), self.means.shape
        mean, variance = np.zeros((len(x), m)), np.zeros((len(x), m))
        if not finite:  # whoever asks will refuse the rows
            return mean, False
        for j in range(k):
            mean += resp[:, j, None] * self.expected(x, j)
        if question == "mean":
            return mean, finite
        left = np.broadcast_to(self.rest.diagonals(self.rest.values), (len(self.rest.values), m))
        for j in range(k):
            apart = self.expected(x, j) - mean
            variance += resp[:, j, None] * (np.square(apart) + left[min(j, len(left) - 1)])
        return np.sqrt(variance), finite
