"""Components joined to clusters by the entropy that this takes away (Baudry et al. 2010)."""

from dataclasses import dataclass

import numpy as np
from scipy.special import entr

from daskgmm._typing import Array
from daskgmm.model.missing import Incomplete
from daskgmm.model.mixture import Mixture


@dataclass(frozen=True, eq=False)
class Clusters:
    """A mixture that answers for clusters of its components; its density stays as it is."""

    mixture: Mixture | Incomplete
    labels: Array  # (k,) the cluster of each component, numbered from 0 without a gap

    @property
    def n_components(self) -> int:
        """Number of clusters."""
        return int(self.labels.max()) + 1

    def answer(self, x: Array, question: str) -> tuple[Array, bool]:
        """``labels`` (n,) or ``responsibilities`` (n, clusters), and whether all values of all rows are finite.

        Labels are −1 where a background is likelier than each cluster.
        """
        resp, finite = self.mixture.answer(x, "responsibilities")
        shares = np.stack([resp[:, self.labels == c].sum(axis=1) for c in range(self.n_components)], axis=1)
        if question != "labels":
            return shares, finite
        return np.where(1 - resp.sum(axis=1) > shares.max(axis=1), -1, shares.argmax(axis=1)), finite


def hierarchy(resp: Array, weight: Array | None = None) -> tuple[Array, Array]:
    """Clusters of the components (k, k) for 1, 2, ..., k clusters, and entropies (k,) of their responsibilities.

    ``resp`` are those of rows (n, k). At each step the two clusters become one whose merger takes most entropy
    away; entropies are in nats per unit of ``weight`` (n,).
    """
    k, w = resp.shape[1], np.ones(len(resp)) if weight is None else weight
    shares = dict(enumerate(resp.T))

    def entropy(share: Array) -> float:
        return float((w * entr(np.minimum(share, 1.0))).sum() / w.sum())  # a sum of shares may round to above 1

    own = {c: entropy(share) for c, share in shares.items()}
    gains = {(a, b): own[a] + own[b] - entropy(shares[a] + shares[b]) for b in own for a in own if a < b}
    labels, entropies = [np.arange(k)], [sum(own.values())]
    while gains:
        a, b = max(gains, key=lambda pair: gains[pair])
        shares[a], joined = shares[a] + shares.pop(b), np.where(labels[-1] == b, a, labels[-1])
        own[a] = entropy(shares[a])
        del own[b]
        gains = {pair: gain for pair, gain in gains.items() if not {a, b} & {*pair}}
        gains |= {(min(a, c), max(a, c)): own[a] + own[c] - entropy(shares[a] + shares[c]) for c in own if c != a}
        labels.append(joined)
        entropies.append(sum(own.values()))
    numbered = [np.unique(found, return_inverse=True)[1] for found in labels]
    return np.stack(numbered[::-1]), np.array(entropies[::-1])


def elbow(entropies: Array) -> int:
    """How many clusters: where two lines through the entropies (k,) of 1 to k clusters meet that fit them best."""
    k = len(entropies)

    def misfit(first: int, last: int) -> float:
        x, y = np.arange(first, last + 1.0), entropies[first : last + 1]
        x, y = x - x.mean(), y - y.mean()
        return float(np.square(y - x * (x @ y) / (x @ x)).sum())

    breaks = range(1, k - 1)
    return 1 + min(breaks, key=lambda at: misfit(0, at) + misfit(at, k - 1)) if breaks else k
