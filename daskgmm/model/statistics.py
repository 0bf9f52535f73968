"""Sufficient statistics of k components: a mergeable value."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

import numpy as np

from daskgmm._typing import Array
from daskgmm.errors import DataError
from daskgmm.model.checks import at_least, holds, positive, require
from daskgmm.model.structure import Structure


@dataclass(frozen=True, eq=False)
class Statistics:
    """Weighted sums over rows, for k components, each about a reference point of its own.

    Laws: ``a + b`` equals the statistics of the concatenated rows; ``a.about(r).about(a.reference)`` equals
    ``a``. Both hold up to rounding: a move by δ costs a relative error of about ``eps * |δ|**2 / σ**2`` in the
    covariance, which is why references stay close to the component.

    Examples
    --------
    >>> import numpy as np
    >>> from daskgmm.model.moments import moments
    >>> from daskgmm.model.structure import DIAGONAL
    >>> x = np.array([[0.0], [1.0], [5.0]])
    >>> parts = moments(DIAGONAL, x[:1]) + moments(DIAGONAL, x[1:])
    >>> whole = parts.about(np.array([[2.0]]))
    >>> whole.weight, whole.shift, whole.scatter
    (array([3.]), array([[0.]]), array([[14.]]))
    """

    structure: Structure  # decides the shape of ``scatter``
    reference: Array  # (k, d) points that ``shift`` and ``scatter`` are taken about
    weight: Array  # (k,) Σ w·r, with w the row weights and r the responsibilities
    shift: Array  # (k, d) Σ w·r·(x − reference)
    # Σ w·r·(x − reference)(x − reference)ᵀ, (k, d, d); tied: summed over components, (1, d, d); diag: its
    # diagonal, (k, d); spherical: the mean of the diagonal, (k, 1).
    scatter: Array
    log_likelihood: float  # Σ w·log p(x) under the parameters *before* the update
    total_weight: float  # Σ w
    n_rows: float  # rows of positive weight; where rows were blended, as many as would be as uncertain

    # Σ w·r·E[log p(missing | there)] where rows miss values: what an entropy leaves out.
    unseen: float = field(default=0.0, metadata={"later": True})

    def check(self) -> None:
        """Raise `ValueError` unless these are sums over rows that weigh something."""
        k, d = self.reference.shape
        require(min(k, d) > 0 and holds(self.reference, (k, d)), "References are no points (k, d).")
        require(holds(self.weight, (k,), 0.0) and positive(self.weight.sum()), "The components weigh nothing.")
        require(holds(self.shift, (k, d)), "Shifts are not those of the references.")
        require(holds(self.scatter, self.structure.held(k, d)), "The scatter is not that of the references.")
        symmetric = np.array_equal(self.scatter, self.structure.form.completed(self.scatter))
        require(symmetric, "The scatter is not symmetric.")
        require(positive(self.total_weight) and at_least(0, self.n_rows), "The rows weigh nothing.")
        require(isfinite(self.log_likelihood), "The log-likelihood is no number.")

    def matches(self, means: Array, structure: Structure) -> bool:
        """Whether these are statistics for such means and covariances."""
        return self.reference.shape == means.shape and self.structure is structure

    def about(self, reference: Array) -> "Statistics":
        """The same rows about other points ``reference`` (k, d): the parallel-axis theorem."""
        delta = reference - self.reference
        if not delta.any():
            return self
        return replace(
            self,
            reference=reference,
            shift=self.shift - self.weight[:, None] * delta,
            scatter=self.scatter + self.structure.move(self.weight, self.shift, delta),
        )

    def __add__(self, other: "Statistics") -> "Statistics":
        """Statistics of both sets of rows, about the reference of the heavier side of each component."""
        if self.reference is other.reference or np.array_equal(self.reference, other.reference):
            a, b = self, other
        else:
            # The lighter side moves: an almost empty component has no reference worth keeping.
            lighter = (self.weight < other.weight)[:, None]
            reference = np.where(lighter, other.reference, self.reference)
            a, b = self.about(reference), other.about(reference)
        return Statistics(
            self.structure,
            a.reference,
            a.weight + b.weight,
            a.shift + b.shift,
            a.scatter + b.scatter,
            a.log_likelihood + b.log_likelihood,
            a.total_weight + b.total_weight,
            a.n_rows + b.n_rows,
            a.unseen + b.unseen,
        )

    def __sub__(self, other: "Statistics") -> "Statistics":
        """Statistics of the rows without those of ``other``, which were among them: ``(a + b) - b`` equals ``a``.

        Of a component of which rounding alone is left, there is nothing. `DataError` where they were not, or were
        all there are.
        """
        left = self + replace(other.scaled(-1.0), n_rows=-other.n_rows)
        rounding = 64 * np.finfo(np.float64).eps * np.maximum(self.weight, self.total_weight)
        if (left.weight < -rounding).any() or not left.total_weight > rounding.max() or left.n_rows < 1:
            raise DataError("The rows that are to be taken away are not a part of these.")
        return replace(left, weight=np.where(left.weight <= rounding, 0.0, left.weight))

    @classmethod
    def gathered(cls, parts: Mapping[int, "Statistics"], means: Array) -> "Statistics":
        """Statistics of components with ``means`` (k, d), out of those of some by number: others are empty."""
        first, *_ = parts.values()
        structure, reference = first.structure, means.copy()
        weight, shift, scatter = np.zeros(len(means)), np.zeros_like(means), np.zeros(structure.held(*means.shape))
        for j, s in parts.items():
            reference[j], weight[j], shift[j] = s.reference[0], s.weight[0], s.shift[0]
            scatter[0 if structure.shared else j] += s.scatter[0]
        totals = ("log_likelihood", "total_weight", "n_rows", "unseen")
        sums = (sum(getattr(s, name) for s in parts.values()) for name in totals)
        return cls(structure, reference, weight, shift, scatter, *sums)

    def pooled(self) -> "Statistics":
        """The same rows as one component, about their mean."""
        whole, k = self.weight.sum(keepdims=True), len(self.weight)
        first = self.about(np.broadcast_to(self.reference[:1], self.reference.shape))
        mean = first.reference[:1] + first.shift.sum(axis=0, keepdims=True) / whole
        s = self.about(np.repeat(mean, k, axis=0))
        scatter, shift = s.scatter.sum(axis=0, keepdims=True), s.shift.sum(axis=0, keepdims=True)
        return replace(s, reference=mean, weight=whole, shift=shift, scatter=scatter)

    def scaled(self, factor: float) -> "Statistics":
        """All sums times ``factor`` > 0, as if every row weighed that much more; ``n_rows`` stays."""
        return Statistics(
            self.structure,
            self.reference,
            factor * self.weight,
            factor * self.shift,
            factor * self.scatter,
            factor * self.log_likelihood,
            factor * self.total_weight,
            self.n_rows,
            factor * self.unseen,
        )

    def under(self, structure: Structure) -> "Statistics":
        """What another structure keeps of the same rows; these have to be full ones, or its own."""
        if structure == self.structure:
            return self
        return replace(self, structure=structure, scatter=structure.condensed(self.scatter))

    def first(self, k: int) -> "Statistics":
        """The same without the components after the first k, which must have no rows."""
        scatter = self.scatter if self.structure.shared else self.scatter[:k]
        reference, weight, shift = (sums[:k] for sums in (self.reference, self.weight, self.shift))
        return replace(self, reference=reference, weight=weight, shift=shift, scatter=scatter)

    @classmethod
    def of(cls, reference: Array, structure: Structure, sums: Any, x: Array, weight: Array | None) -> "Statistics":
        """What the kernels added up about ``reference`` over rows ``x``, without their padding."""
        d, form = reference.shape[1], structure.form
        scatter = form.completed(sums.scatter[(slice(None), *(slice(d),) * form.axes)])
        total = float(len(x) if weight is None else weight.sum())
        n_rows = len(x) if weight is None else int(np.count_nonzero(weight))
        return cls(
            structure,
            reference,
            sums.weight,
            sums.shift[:, :d],
            scatter.mean(axis=1, keepdims=True) if structure.isotropic else scatter,
            float(sums.log_likelihood[0]),
            total,
            n_rows,
        )

    @property
    def means(self) -> Array:
        """Weighted means (k, d); the reference where a component is empty."""
        w = self.weight[:, None]
        return self.reference + np.divide(self.shift, w, out=np.zeros_like(self.shift), where=w > 0)
