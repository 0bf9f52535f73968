"""Mergers of components of a posterior: what inference by itself takes as many iterations for as there are rows.

Two components that share a cluster are worth less than one, by what the prior says of each: some nats in all,
however many rows are to change sides.
"""

from dataclasses import replace

import numpy as np
from scipy.special import xlogy

from daskgmm._typing import Array
from daskgmm.model.blas import one_thread
from daskgmm.model.mixture import Mixture
from daskgmm.model.moments import moments
from daskgmm.model.posterior import Posterior, Variational
from daskgmm.model.statistics import Statistics

CANDIDATES = 4  # pairs for each component that are looked at, those whose rows are most alike
LEAST = 1.0  # rows of a component that is worth it; fewer get lost by themselves
GAIN = 1e-6, 1e-12  # nats of a merger at least, and of the bound


def merged(held: Mixture, belief: Variational, x: Array, weight: Array) -> Posterior | None:
    """The posterior after mergers, the best first, while they raise the lower bound of these rows; None without.

    Each row's responsibilities for two components become those for one (Hughes & Sudderth 2013, section 4.2); the
    other one is empty, and what is believed of it is the prior.
    """
    with one_thread():
        resp = held.responsibilities(x)
        s, n_mergers = moments(belief.structure, x, weight, resp, held.n_components), 0
        while found := _mergers(belief, s, resp, weight):
            touched: set[int] = set()
            for _, a, b in found:
                if not touched & {a, b}:
                    s, n_mergers = _joined(s, a, b), n_mergers + 1
                    resp[:, a] += resp[:, b]
                    resp[:, b] = 0.0
                    touched |= {a, b}
        return belief(None, s) if n_mergers else None


def _mergers(belief: Variational, s: Statistics, resp: Array, weight: Array) -> list[tuple[float, int, int]]:
    """Pairs of components that are worth more as one, with what that gains in nats, the most first."""
    level, own, found = belief(None, s).log_normaliser, weight @ xlogy(resp, resp), []
    for a, b in _alike(resp, weight, s.weight):
        both = resp[:, a] + resp[:, b]
        lost = weight @ xlogy(both, both) - own[a] - own[b]  # of the entropy of responsibilities
        gain = belief(None, _joined(s, a, b)).log_normaliser - level - lost
        if gain > max(GAIN[0], GAIN[1] * abs(level)):
            found.append((float(gain), a, b))
    return sorted(found, reverse=True)


def _alike(resp: Array, weight: Array, counts: Array) -> list[tuple[int, int]]:
    """Pairs of components by how far they share rows, those that share most."""
    shared = (weight[:, None] * resp).T @ resp
    length = np.sqrt(np.maximum(np.diag(shared), np.finfo(np.float64).tiny))
    a, b = np.triu_indices(len(counts), 1)
    cosine = shared[a, b] / (length[a] * length[b])
    order = [p for p in np.argsort(-cosine, kind="stable") if min(counts[a[p]], counts[b[p]]) > LEAST]
    return [(int(a[p]), int(b[p])) for p in order[: CANDIDATES * len(counts)]]


def _joined(s: Statistics, a: int, b: int) -> Statistics:
    """Statistics with the rows of component ``b`` in ``a``."""
    reference = s.reference.copy()
    reference[b] = reference[a]
    s = s.about(reference)
    names = ("weight", "shift") if s.structure.shared else ("weight", "shift", "scatter")
    sums = {name: getattr(s, name).copy() for name in names}
    for values in sums.values():
        values[a] += values[b]
        values[b] = 0.0
    return replace(s, **sums)
