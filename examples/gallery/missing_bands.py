"""
A sky survey with missing bands
===============================

One telescope takes the whole field in the bands g and r. Another adds the infrared band J, for
objects that are bright in r; and a fifth of the field was never seen in g. So most rows miss
something. Without these rows a fit tells of bright objects alone. ``nan_policy="missing"`` takes
each row with what it has.
"""

# %%
# A catalogue with gaps
# ---------------------
# The objects are made up, so that the truth is known: three populations in the magnitude r and the
# colours g-r and r-J. Faint galaxies are redder. Whether J was taken depends on r, which every row
# has: that is called *missing at random*. In the store a gap is NaN.

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from matplotlib import pyplot
from matplotlib.patches import Ellipse
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import expit

from daskgmm import GaussianMixture

Floats = NDArray[np.float64]

N = 30_000 if os.environ.get("DASKGMM_EXAMPLES") == "small" else 1_000_000
#                 share, means of r, g-r and r-J, deviations, correlations (r, g-r), (r, r-J), (g-r, r-J)
POPULATIONS: dict[str, Any] = {
    "star": (0.45, (18.5, 0.7, 1.1), (1.2, 0.25, 0.25), (0.0, 0.0, 0.8)),
    "galaxy": (0.50, (20.0, 1.2, 2.4), (1.0, 0.25, 0.40), (0.5, 0.8, 0.5)),
    "quasar": (0.05, (19.8, 0.2, 1.3), (0.8, 0.15, 0.30), (0.0, 0.0, 0.0)),
}
NAMES, GALAXY, R_J = list(POPULATIONS), 1, 2
shares, means, deviations, correlations = map(np.array, zip(*POPULATIONS.values(), strict=True))
covariances = np.zeros((3, 3, 3)) + np.eye(3)
for (i, j), values in zip([(0, 1), (0, 2), (1, 2)], correlations.T, strict=True):
    covariances[:, i, j] = covariances[:, j, i] = values
covariances *= deviations[:, :, None] * deviations[:, None, :]
sky = GaussianMixture.from_parameters(shares, means, covariances).set_params(random_state=0)


def with_gaps(objects: Floats, no_infrared: Floats) -> Floats:
    """The rows as they were seen: of each is known how probable it was to miss J."""
    random = np.random.default_rng(0)
    seen = objects.copy()
    seen[random.random(len(seen)) < no_infrared, R_J] = np.nan
    seen[random.random(len(seen)) < 0.2, 1] = np.nan
    return seen


objects, population = sky.sample(N)
seen = with_gaps(objects, expit((objects[:, 0] - 19) / 0.25))
missing = np.isnan(seen)
folder = tempfile.TemporaryDirectory()
path = Path(folder.name) / "catalogue.zarr"
zarr.create_array(path, data=seen, chunks=(N // 10, 3))
print(f"{N:,} objects, of which {(~missing.any(axis=1)).mean():.0%} have all three")
print(f"missing: g-r of {missing[:, 1].mean():.0%}, r-J of {missing[:, R_J].mean():.0%}")

# %%
# Three ways to go on
# -------------------
# ``"missing"`` is exact EM for such rows. ``"omit"`` leaves out each row that misses something, as
# most programs do. The third way fills in the mean of each column: these values become a component.

settings: dict[str, Any] = {"n_init": 5, "tol": 1e-5, "max_iter": 500, "random_state": 0}
filled = np.where(missing, np.nanmean(seen, axis=0), seen)
models = {
    "missing": GaussianMixture(3, nan_policy="missing", **settings).fit(path),
    "omit": GaussianMixture(3, nan_policy="omit", **settings).fit(path),
    "column means": GaussianMixture(3, **settings).fit(filled),
}


def matched(model: GaussianMixture) -> Any:
    """For each population its component: those that lie nearest together."""
    distances = np.linalg.norm(model.means_ - means[:, None], axis=2)
    return linear_sum_assignment(distances)[1]


print("              share of stars  galaxies  quasars   r-J of galaxies (mag)")
width = deviations[GALAXY, R_J]
print(
    f"{'truth':12}  {shares[0]:14.1%}  {shares[1]:8.1%}  {shares[2]:7.1%}   {means[GALAXY, R_J]:.2f} ± {width:.2f}"
)
for name, model in models.items():
    of = matched(model)
    star, galaxy, quasar = model.weights_[of]
    width = np.sqrt(model.covariances_[of[GALAXY], R_J, R_J])
    colour = f"{model.means_[of[GALAXY], R_J]:.2f} ± {width:.2f}"
    print(f"{name:12}  {star:14.1%}  {galaxy:8.1%}  {quasar:7.1%}   {colour}")

# %%
# What an object would show in J
# ------------------------------
# ``impute`` fills in the conditional mean of what a row misses, given what it has. For a single
# value that is the best guess, but all of them together spread too little. With ``random_state`` it
# draws, which keeps the spread.

no_j = missing[:, R_J]
model = models["missing"]
guessed, drawn = model.impute(seen), model.impute(seen, random_state=0)
guesses = {"missing": guessed, "omit": models["omit"].impute(seen), "column means": filled}
errors = {}
for name, rows in guesses.items():
    off = (rows - objects)[no_j, R_J]
    errors[name] = np.sqrt(np.mean(off**2))
    print(f"{name:12}  r-J is {off.mean():+.2f} mag off in the mean, {errors[name]:.2f} as root mean square")
spread = [rows[no_j, R_J].std() for rows in (objects, guessed, drawn)]
print("spread of r-J where J is missing: {:.2f} mag in truth, {:.2f} of guesses, {:.2f} of draws".format(*spread))

# %%
# What it does not mend
# ---------------------
# Had J been taken of everything, and lost where *J itself* is faint, then a gap would tell
# something of its own value. No row tells how much. The fit is off; here it is less so than without
# these rows.

faint = with_gaps(objects, expit((objects[:, 0] - objects[:, R_J] - 17.5) / 0.25))
for policy in ("missing", "omit"):
    model = GaussianMixture(3, nan_policy=policy, **settings).fit(faint)
    found = model.means_[matched(model)[GALAXY], R_J]
    print(f"J lost where J is faint, {policy:7}: r-J of galaxies {found - means[GALAXY, R_J]:+.2f} mag off")

# %%
# The picture
# -----------
# On the left galaxies as each fit sees them (2 σ), over the objects that have J: few beyond r = 19.
# On the right r-J of all objects.

LOOKS = {"truth": ("black", "--"), "missing": ("#0072b2", "-"), "omit": ("#d55e00", "-.")}
figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 4.4), layout="constrained")
left.hexbin(*objects[~no_j][:, [0, R_J]].T, gridsize=60, bins="log", cmap="Greys", extent=(15, 23, 0, 4))
for name, model in {"truth": sky, "missing": models["missing"], "omit": models["omit"]}.items():
    j = matched(model)[GALAXY]
    sizes, axes_of = np.linalg.eigh(model.covariances_[j][np.ix_([0, R_J], [0, R_J])])
    angle = np.degrees(np.arctan2(*axes_of[::-1, 1]))
    colour, line = LOOKS[name]
    place = (model.means_[j, 0], model.means_[j, R_J])
    look: dict[str, Any] = {"edgecolor": colour, "linestyle": line, "linewidth": 2, "fill": False, "label": name}
    left.add_patch(Ellipse(place, *4 * np.sqrt(sizes[::-1]), angle=angle, **look))
left.set(xlabel="r (mag)", ylabel="r-J (mag)", title="galaxies, over objects with J", xlim=(15, 23), ylim=(0, 4))
left.legend(frameon=False, loc="upper left")
bins = np.linspace(0, 4, 81)
right.hist(objects[:, R_J], bins, color="0.8", label="truth")
right.hist(
    drawn[:, R_J], bins, histtype="step", color=LOOKS["missing"][0], linewidth=1.5, label='"missing", draws'
)
right.hist(filled[:, R_J], bins, histtype="step", color=LOOKS["omit"][0], linewidth=1.5, label="column means")
right.set(xlabel="r-J (mag)", ylabel="objects", title="all objects", ylim=(0, N / 12))
right.legend(frameon=False)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
pyplot.show()
folder.cleanup()
