"""
Cytometry: saturated events and a rare population
=================================================

A flow cytometer measures some hundred thousand cells, one by one. Two things trouble a mixture of
Gaussians there. The detector has a maximum, and all brighter events lie exactly on it. And the
cells that one looks for may be two in a thousand.
"""

# %%
# Events
# ------
# They are made up, so that the truth is known: four markers, on the scale that is usual for
# fluorescence, asinh(signal / 150). Five populations, one of which is rare. The detector counts to
# 262,143 (18 bits): 8.16 on that scale.

import os
from typing import Any

import numpy as np
from matplotlib import pyplot

from daskgmm import GaussianMixture

N = 20_000 if os.environ.get("DASKGMM_EXAMPLES") == "small" else 300_000
MARKERS = ["CD3", "CD4", "CD8", "CD19"]
LIMIT = np.arcsinh(262_143 / 150)
#                        share, means, common deviation
POPULATIONS: dict[str, Any] = {
    "T helper": (0.448, (6.0, 6.2, 1.5, 1.0), 0.45),
    "T killer": (0.25, (6.1, 1.2, 6.6, 1.1), 0.50),
    "B": (0.15, (1.0, 1.1, 1.2, 7.9), 0.55),
    "monocyte": (0.15, (1.2, 4.0, 1.4, 1.3), 0.60),
    "double positive": (0.002, (6.0, 6.0, 6.2, 1.2), 0.30),
}
random = np.random.default_rng(0)
population = random.choice(len(POPULATIONS), N, p=[share for share, _, _ in POPULATIONS.values()])
means, deviations = (np.array([values[i] for values in POPULATIONS.values()]) for i in (1, 2))
signal = means[population] + deviations[population, None] * random.normal(size=(N, len(MARKERS)))
events = np.minimum(signal, LIMIT)
saturated = (events >= LIMIT).any(axis=1)
print(
    f"{N:,} events, {saturated.sum():,} on the limit of {LIMIT:.2f}; {(population == 4).sum():,} double positive"
)

# %%
# What saturation does
# --------------------
# Events on the limit have no variance in that marker, so the likelihood has no bound: a component
# that takes them alone shrinks until ``reg_covar`` stops it, and every criterion prefers it. It
# describes the detector.

five, seven = (GaussianMixture(k, n_init=10, random_state=0).fit(events) for k in (5, 7))
widths = np.sqrt(seven.covariances_[:, range(4), range(4)])  # (k, d)
tight, marker = np.unravel_index(widths.argmin(), widths.shape)
print(f"all events: bic {five.bic(events):,.0f} with 5 components, {seven.bic(events):,.0f} with 7;")
thin, share = widths[tight, marker], seven.weights_[tight]
print(f"one of the 7 has {share:.1%} of the events and is {thin:.3f} wide in {MARKERS[marker]}")

# %%
# Rows of weight zero
# -------------------
# Rows of weight zero are left out of the fit, and need no copy of the data without them. The
# restarts (``n_init``) run on a sample, and the best goes on to all events: the two in a thousand
# are found.

kept = (~saturated).astype(float)
model = GaussianMixture(5, n_init=10, random_state=0).fit(events, sample_weight=kept)
seven = GaussianMixture(7, n_init=10, random_state=0).fit(events, sample_weight=kept)
print(
    f"without those on the limit: bic {model.bic(events, kept):,.0f} with 5, {seven.bic(events, kept):,.0f} with 7"
)

# %%
# What is left out is missed in the weights: many B cells were on the limit. But every event gets a
# label, and those on the limit that of the population which they were cut off from. So shares are
# counted from the labels.

labels = model.predict(events)
nearest = [int(np.linalg.norm(model.means_ - mean, axis=1).argmin()) for mean in means]
print("population         true share   weight   share of labels   right labels")
for i, (name, j) in enumerate(zip(POPULATIONS, nearest, strict=True)):
    own, true = labels == j, population == i
    right = true[own].mean()
    print(f"{name:16}  {true.mean():10.2%}   {model.weights_[j]:7.2%}   {own.mean():14.2%}   {right:11.2%}")

# %%
# The picture
# -----------

COLOURS = ["#0072b2", "#56b4e9", "#009e73", "#999999", "#d55e00"]  # told apart with any colour vision
shown = random.permutation(N)[:20_000]
figure, (left, beside) = pyplot.subplots(1, 2, figsize=(9, 4.4), layout="constrained")
for axes, (x, y) in ((left, (1, 2)), (beside, (0, 3))):
    for name, j, colour in zip(POPULATIONS, nearest, COLOURS, strict=True):
        own = np.flatnonzero(labels == j) if name == "double positive" else shown[labels[shown] == j]
        axes.plot(*events[own][:, [x, y]].T, ".", color=colour, markersize=2, label=name)
    axes.set(xlabel=f"{MARKERS[x]}, asinh(signal / 150)", ylabel=f"{MARKERS[y]}, asinh(signal / 150)")
    axes.spines[["top", "right"]].set_visible(False)
figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5, markerscale=6, frameon=False)
beside.axhline(LIMIT, color="black", linewidth=1, linestyle="--")
beside.annotate("the detector's limit", (7.8, LIMIT), (0, -14), textcoords="offset points", ha="right")
pyplot.show()
