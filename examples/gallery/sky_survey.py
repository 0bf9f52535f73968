"""
A sky survey: weights undo a selection
======================================

A spectrograph looks at few of the objects that a camera sees, and it does not choose them evenly:
nearly all candidates for quasars, and one star in forty. Each object comes with a weight, how many
of the sky it stands for. With weights the mixture is that of the sky; without, that of the plan.
"""

# %%
# A table
# -------
# The objects are made up, so that the truth is known: colours (differences of magnitudes in the
# bands g, r, i and z) of four populations. They lie in a Parquet file in many row groups, as
# catalogues do.

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot

from daskgmm import GaussianMixture

N_SKY = 100_000 if os.environ.get("DASKGMM_EXAMPLES") == "small" else 2_000_000
COLOURS = ["g-r", "r-i", "i-z"]
#            share in the sky, one in so many observed, mean colours, their deviations
POPULATIONS = {
    "star, cool": (0.55, 40, (1.40, 1.15, 0.62), (0.09, 0.22, 0.12)),
    "star, sun-like": (0.28, 40, (0.47, 0.15, 0.05), (0.12, 0.06, 0.05)),
    "galaxy, red": (0.14, 8, (1.55, 0.55, 0.33), (0.16, 0.07, 0.06)),
    "quasar": (0.03, 1.25, (0.15, 0.12, 0.02), (0.13, 0.13, 0.11)),
}
NAMES = list(POPULATIONS)

random = np.random.default_rng(0)
tables = []
for name, (share, one_in, mean, deviation) in POPULATIONS.items():
    observed = random.poisson(N_SKY * share / one_in)
    table = pd.DataFrame(random.normal(mean, deviation, (observed, 3)), columns=COLOURS)
    tables.append(table.assign(weight=one_in, population=name))
catalogue = pd.concat(tables).sample(frac=1, random_state=0, ignore_index=True)
folder = tempfile.TemporaryDirectory()
path = Path(folder.name) / "catalogue.parquet"
catalogue.to_parquet(path, row_group_size=20_000)
print(f"{len(catalogue):,} objects observed, which stand for {catalogue['weight'].sum():,.0f}")
print(catalogue.head(4).round(2).to_string(index=False))

# %%
# Fit, with weights and without
# -----------------------------
# ``variables`` names the columns that are features; the weights are a column of the same file. A
# row of weight 40 counts as 40 rows. So the log-likelihood and ``bic`` are of the sky's two million
# objects, although far fewer were seen: weights that stand for selection overstate how much is
# known, and a choice of the number of components by ``bic`` should use weights that sum to the
# number of rows.

weight = catalogue["weight"].to_numpy(float)
settings: dict[str, Any] = {"variables": COLOURS, "n_init": 10, "tol": 1e-5, "random_state": 0}
of_sky = GaussianMixture(4, **settings).fit(path, sample_weight=weight)
of_plan = GaussianMixture(4, **settings).fit(path)


def matched(model: GaussianMixture) -> list[int]:
    """For each population the component with the nearest mean."""
    means = [mean for _, _, mean, _ in POPULATIONS.values()]
    return [int(np.linalg.norm(model.means_ - mean, axis=1).argmin()) for mean in means]


sky, plan = of_sky.weights_[matched(of_sky)], of_plan.weights_[matched(of_plan)]
print("population        in the sky   with weights   without")
for name, with_weights, without in zip(NAMES, sky, plan, strict=True):
    print(f"{name:16}  {POPULATIONS[name][0]:10.2%}   {with_weights:12.2%}   {without:7.2%}")

# %%
# What it changes
# ---------------
# The components lie in the same places; what differs is how many objects each has. So does the
# answer to the question whether a given object is a quasar, of which there are few in the sky.

blue = catalogue.loc[(catalogue["g-r"].between(0.25, 0.35)) & (catalogue["r-i"].between(0.05, 0.2))]
true = np.average(blue["population"] == "quasar", weights=blue["weight"])
row = NAMES.index("quasar")
for model, how in ((of_sky, "with weights"), (of_plan, "without")):
    probability = model.predict_proba(blue[COLOURS])[:, matched(model)[row]]
    print(
        f"objects of the sky near g-r = 0.3: {np.average(probability, weights=blue['weight']):.0%} quasars {how}"
    )
print(f"in truth {true:.0%}")

figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 4.2), layout="constrained", width_ratios=[1.15, 1])
drawn = left.hexbin(
    catalogue["g-r"], catalogue["r-i"], C=weight, reduce_C_function=np.sum, gridsize=70, bins="log", cmap="cividis"
)
figure.colorbar(drawn, ax=left, label="objects of the sky")
for name, j, beside in zip(NAMES, matched(of_sky), ((10, 0), (14, 12), (10, -14), (-26, -34)), strict=True):
    left.plot(*of_sky.means_[j, :2], "o", markerfacecolor="white", markeredgecolor="black")
    box = {"facecolor": "white", "alpha": 0.8, "pad": 1}
    left.annotate(name, of_sky.means_[j, :2], beside, textcoords="offset points", bbox=box)
left.set(xlabel="g-r (mag)", ylabel="r-i (mag)", title="colours, and means with weights")
lines = np.arange(len(NAMES))
truth = [POPULATIONS[name][0] for name in NAMES]
for offset, shares, label, colour in (
    (-0.27, truth, "in the sky", "black"),
    (0.0, sky, "with weights", "#0072b2"),
    (0.27, plan, "without", "#e69f00"),
):
    right.barh(lines + offset, np.multiply(shares, 100), 0.25, label=label, color=colour)
right.set(yticks=lines, yticklabels=NAMES, xlabel="share (%)", title="share of each population", xlim=(0, 75))
right.invert_yaxis()
right.legend(frameon=False, loc="center right")
right.spines[["top", "right"]].set_visible(False)
pyplot.show()
folder.cleanup()
