"""
Old Faithful: EM step by step
=============================

The geyser Old Faithful in Yellowstone erupts for two to five minutes, and then rests for about an
hour. Short eruptions come before short rests: the 272 eruptions fall into two groups. We fit a
mixture of two Gaussians to them, watch EM find it, and compare the result with the published one.
"""

# %%
# The data
# --------
# Duration of an eruption and waiting time to the next one, both in minutes (Azzalini & Bowman
# 1990). The table is so small that it stands here, row after row.

import warnings
from typing import Any

import numpy as np
from matplotlib import pyplot
from numpy.typing import NDArray
from scipy.stats import multivariate_normal
from sklearn.exceptions import ConvergenceWarning

from daskgmm import GaussianMixture
from daskgmm.display import ConvergenceDisplay, EvolutionDisplay

Floats = NDArray[np.float64]

X = np.fromstring(
    """
3.6 79 1.8 54 3.333 74 2.283 62 4.533 85 2.883 55 4.7 88 3.6 85 1.95 51 4.35 85 1.833 54 3.917 84 4.2 78 1.75 47
4.7 83 2.167 52 1.75 62 4.8 84 1.6 52 4.25 79 1.8 51 1.75 47 3.45 78 3.067 69 4.533 74 3.6 83 1.967 55 4.083 76
3.85 78 4.433 79 4.3 73 4.467 77 3.367 66 4.033 80 3.833 74 2.017 52 1.867 48 4.833 80 1.833 59 4.783 90 4.35 80
1.883 58 4.567 84 1.75 58 4.533 73 3.317 83 3.833 64 2.1 53 4.633 82 2 59 4.8 75 4.716 90 1.833 54 4.833 80 1.733
54 4.883 83 3.717 71 1.667 64 4.567 77 4.317 81 2.233 59 4.5 84 1.75 48 4.8 82 1.817 60 4.4 92 4.167 78 4.7 78
2.067 65 4.7 73 4.033 82 1.967 56 4.5 79 4 71 1.983 62 5.067 76 2.017 60 4.567 78 3.883 76 3.6 83 4.133 75 4.333
82 4.1 70 2.633 65 4.067 73 4.933 88 3.95 76 4.517 80 2.167 48 4 86 2.2 60 4.333 90 1.867 50 4.817 78 1.833 63
4.3 72 4.667 84 3.75 75 1.867 51 4.9 82 2.483 62 4.367 88 2.1 49 4.5 83 4.05 81 1.867 47 4.7 84 1.783 52 4.85 86
3.683 81 4.733 75 2.3 59 4.9 89 4.417 79 1.7 59 4.633 81 2.317 50 4.6 85 1.817 59 4.417 87 2.617 53 4.067 69 4.25
77 1.967 56 4.6 88 3.767 81 1.917 45 4.5 82 2.267 55 4.65 90 1.867 45 4.167 83 2.8 56 4.333 89 1.833 46 4.383 82
1.883 51 4.933 86 2.033 53 3.733 79 4.233 81 2.233 60 4.533 82 4.817 77 4.333 76 1.983 59 4.633 80 2.017 49 5.1
96 1.8 53 5.033 77 4 77 2.4 65 4.6 81 3.567 71 4 70 4.5 81 4.083 93 1.8 53 3.967 89 2.2 45 4.15 86 2 58 3.833 78
3.5 66 4.583 76 2.367 63 5 88 1.933 52 4.617 93 1.917 49 2.083 57 4.583 77 3.333 68 4.167 81 4.333 81 4.5 73
2.417 50 4 85 4.167 74 1.883 55 4.583 77 4.25 83 3.767 83 2.033 51 4.433 78 4.083 84 1.833 46 4.417 83 2.183 55
4.8 81 1.833 57 4.8 76 4.1 84 3.966 77 4.233 81 3.5 87 4.366 77 2.25 51 4.667 78 2.1 60 4.35 82 4.133 91 1.867 53
4.6 78 1.783 46 4.367 77 3.85 84 1.933 49 4.5 83 2.383 71 4.7 80 1.867 49 3.833 75 3.417 64 4.233 76 2.4 53 4.8
94 2 55 4.15 76 1.867 50 4.267 82 1.75 54 4.483 75 4 78 4.117 79 4.083 78 4.267 78 3.917 70 4.55 79 4.083 70
2.417 54 4.183 86 2.217 50 4.45 90 1.883 54 1.85 54 4.283 77 3.95 79 2.333 64 4.15 75 2.35 47 4.933 86 2.9 63
4.583 85 3.833 82 2.083 57 4.367 82 2.133 67 4.35 74 2.2 54 4.45 83 3.567 73 4.5 73 4.15 88 3.817 80 3.917 71
4.45 83 2 56 4.283 79 4.767 78 4.533 84 1.85 58 4.25 83 1.983 43 2.25 60 4.75 75 4.117 81 2.15 46 4.417 90 1.817
46 4.467 74
""",
    sep=" ",
).reshape(-1, 2)
print(f"{len(X)} eruptions; means {X.mean(axis=0).round(2)} min, standard deviations {X.std(axis=0).round(2)} min")

# %%
# The model
# ---------
# A row :math:`x_n` is drawn in two steps: first a component :math:`j` with probability
# :math:`\pi_j`, then the row from the Gaussian of this component. So its density is
#
# .. math::
#    p(x) = \sum_{j=1}^{k} \pi_j \, \mathcal{N}(x \mid \mu_j, \Sigma_j),
#    \qquad \sum_j \pi_j = 1 .
#
# The log-likelihood :math:`\ell = \sum_n \log p(x_n)` has a sum inside of the logarithm, and its
# maximum no closed form. Were it known which component each row came from, there would be one: the
# shares, means and covariances of the rows of each component. EM (Dempster, Laird & Rubin 1977)
# goes back and forth between the two.
#
# **E-step.** By Bayes' rule, component :math:`j` is responsible for row :math:`n` with probability
#
# .. math::
#    r_{nj} = \frac{\pi_j \, \mathcal{N}(x_n \mid \mu_j, \Sigma_j)}
#                  {\sum_i \pi_i \, \mathcal{N}(x_n \mid \mu_i, \Sigma_i)} .
#
# **M-step.** With :math:`N_j = \sum_n r_{nj}` rows for component :math:`j`, the expected complete
# log-likelihood is greatest for
#
# .. math::
#    \pi_j = \frac{N_j}{N}, \qquad
#    \mu_j = \frac{1}{N_j} \sum_n r_{nj} \, x_n, \qquad
#    \Sigma_j = \frac{1}{N_j} \sum_n r_{nj} \, (x_n - \mu_j)(x_n - \mu_j)^\top .
#
# In NumPy that is


def em_step(x: Floats, weights: Floats, means: Floats, covariances: Floats) -> tuple[Floats, Floats, Floats]:
    """One iteration of EM, as the formulas say it."""
    densities = [multivariate_normal(m, c).pdf(x) for m, c in zip(means, covariances, strict=True)]
    joint = weights * np.column_stack(densities)  # (n, k)
    r = joint / joint.sum(axis=1, keepdims=True)
    rows = r.sum(axis=0)  # (k,)
    means = r.T @ x / rows[:, None]
    apart = x[:, None] - means  # (n, k, d)
    covariances = np.einsum("nj,njd,nje->jde", r, apart, apart) / rows[:, None, None]
    return rows / len(x), means, covariances


# %%
# A poor start
# ------------
# We start as Bishop (2006, fig. 9.8) does: two components as wide as all rows together, on either
# side of them. ``max_iter`` stops EM after 0, 1, 2, 5 and 20 iterations; ``tol=0`` keeps it from
# stopping earlier, ``reg_covar=0`` makes each step the exact one, and ``acceleration=None`` lets no
# step look further.

centre, scale = X.mean(axis=0), X.std(axis=0)
start: dict[str, Any] = {
    "weights_init": [0.5, 0.5],
    "means_init": centre + scale * [[-1.5, 1], [1.5, -1]],
    "precisions_init": [np.diag(scale**-2)] * 2,
}
ITERATIONS = (0, 1, 2, 5, 20)
warnings.simplefilter("ignore", ConvergenceWarning)  # they are stopped on purpose
exact: dict[str, Any] = {"tol": 0, "reg_covar": 0, "acceleration": None}
models = [GaussianMixture(2, max_iter=n, **exact, **start).fit(X) for n in ITERATIONS]

by_hand = em_step(X, np.array([0.5, 0.5]), start["means_init"], np.array([np.diag(scale**2)] * 2))
for ours, theirs in zip((models[1].weights_, models[1].means_, models[1].covariances_), by_hand, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)
print("One iteration of daskgmm equals the formulas to ten digits.\n")

print("iteration  log-likelihood   weights        means (eruption, waiting) in minutes")
for n, model in zip(ITERATIONS, models, strict=True):
    means = "   ".join(f"({m[0]:.2f}, {m[1]:.1f})" for m in model.means_)
    print(f"{n:9d}  {model.score(X) * len(X):14.3f}   {model.weights_.round(3)}  {means}")

# %%
# Responsibilities as colour
# --------------------------
# A row of which only one component is responsible has the colour of that component; others lie in
# between. The ellipses are one and two standard deviations. No step lowers the log-likelihood. It
# rises fast at first, slowly while the components overlap and every row belongs a little to both,
# and fast again once they part.

names = ("eruption (min)", "waiting time (min)")
figure, panels = pyplot.subplots(2, 3, figsize=(9, 6), layout="constrained")
EvolutionDisplay(
    {n: model.mixture_ for n, model in zip(ITERATIONS, models, strict=True)},
    names=names,
    features=(0, 1),
    rows=X,
    lower_bounds=models[-1].lower_bounds_,
).plot(panels.flat[:5])
ConvergenceDisplay(models[-1].lower_bounds_).plot(panels[1, 2])
for axes in panels.flat[:5]:
    axes.set(xlabel=names[0], ylabel=names[1])
pyplot.show()

# %%
# The published answer
# --------------------
# Scrucca, Fraley, Murphy & Raftery print, in the vignette of mclust 6.1, the criterion
# :math:`\mathrm{BIC} = 2\ell - p \log N` of this model (there, more is better; :math:`p` is the
# number of free parameters): -2322.192. The default settings find the same optimum from k-means.

model = GaussianMixture(2, tol=1e-9, reg_covar=0, random_state=0).fit(X)
print(f"BIC as mclust counts it  {-model.bic(X):.3f}")
print(f"log-likelihood           {model.score(X) * len(X):.3f} after {model.n_iter_} iterations")
for j in np.argsort(model.weights_):
    deviations = np.sqrt(np.diag(model.covariances_[j]))
    eruption, waiting = (f"{m:.2f} ± {s:.2f}" for m, s in zip(model.means_[j], deviations, strict=True))
    print(f"{model.weights_[j]:.1%} of the eruptions: {eruption} min, then {waiting} min of rest")
