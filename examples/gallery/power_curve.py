"""
Regression with uncertainty: a power curve
==========================================

How much power does a wind turbine make at a given wind, and how sure is that? A mixture of wind and
power answers both: its conditional mean bends, and its conditional variance widens, where the rows
do. Whether that is to be believed, new rows tell.
"""

# %%
# Wind and power
# --------------
# The turbine is made up, so that the truth is known. It starts at 3 m/s, and makes 3 MW from 12 m/s
# on. In between power swings more than at either end. For 15 % of the time the grid takes only half
# of it.

import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from matplotlib import pyplot
from numpy.typing import NDArray
from scipy.stats import norm

from daskgmm import GaussianMixture

Floats = NDArray[np.float64]

N = 20_000 if os.environ.get("DASKGMM_EXAMPLES") == "small" else 1_000_000
THROTTLED = 0.15


def curve(wind: Floats) -> tuple[Floats, Floats]:
    """Full power at a wind, and its standard deviation, in MW."""
    rise = np.clip((wind - 3) / 9, 0, 1)
    full = 3 * rise**2 * (3 - 2 * rise)
    return full, 0.02 + full * (3 - full) / 15


def measured(n: int, random: np.random.Generator) -> tuple[Floats, Floats]:
    """Wind in m/s and power in MW."""
    wind = 9 * random.weibull(2.1, n)
    full, deviation = curve(wind)
    share = np.where(random.random(n) < THROTTLED, 0.5, 1)
    return wind, share * full + deviation * random.normal(size=n)


def expected(wind: Floats) -> tuple[Floats, Floats]:
    """The true mean and standard deviation of power at a wind."""
    full, deviation = curve(wind)
    return (1 - THROTTLED / 2) * full, np.sqrt(deviation**2 + THROTTLED * (1 - THROTTLED) * full**2 / 4)


random = np.random.default_rng(0)
folder = tempfile.TemporaryDirectory()
store = Path(folder.name) / "turbine.zarr"
group = zarr.create_group(store)
learnt = measured(N, random)
for name, values in zip(("wind", "power"), learnt, strict=True):
    group.create_array(name, data=values, chunks=(N // 10,))

# %%
# Two mixtures
# ------------
# A mixture of one component is least squares: a straight line, as wide at each wind.

settings: dict[str, Any] = {"n_init": 3, "tol": 1e-5, "max_iter": 500, "random_state": 0}
models = {k: GaussianMixture(k, variables=["wind", "power"], **settings).fit(store) for k in (1, 20)}
line = np.polynomial.Polynomial.fit(*learnt, 1)
by_one = models[1].regress([[5.0], [10.0]], given=["wind"], of="power")
by_line = line(np.array([5.0, 10.0]))
print(f"power at 5 and 10 m/s: {by_one.round(3)} MW by one component, {by_line.round(3)} by least squares")

# %%
# What is to be expected
# ----------------------
# ``regress`` tells mean and standard deviation of power for the wind of each row, lazily for a
# store.

wind, power = measured(50_000, random)  # new ones
new = Path(folder.name) / "wind.zarr"
zarr.create_array(new, data=wind[:, None], chunks=(10_000, 1))
told = {k: model.regress(new, given=["wind"], of="power", return_std=True) for k, model in models.items()}
print(told[20][0])
told = {k: [values.compute() for values in pair] for k, pair in told.items()}

true_mean, true_deviation = expected(wind)
for k, (mean, deviation) in told.items():
    off = [float(np.sqrt(((a - b) ** 2).mean())) for a, b in ((mean, true_mean), (deviation, true_deviation))]
    print("{:2} component(s): E[y|x] is {:.3f} MW off, its standard deviation {:.3f} MW".format(k, *off))

# %%
# For a single wind ``conditional`` has the whole distribution, a mixture again: at 10 m/s of full
# power and of half of it.

at_ten = models[20].conditional({"wind": 10.0})
full = curve(np.array(10.0))[0]
middle, widths = 0.75 * full, np.sqrt(at_ten.covariances_[:, 0, 0])
half = at_ten.weights_ @ norm.cdf(middle, at_ten.means_[:, 0], widths)
print(f"at 10 m/s, power below {middle:.2f} MW has a probability of {half:.1%}; in truth {THROTTLED:.1%}")

# %%
# Is the spread right?
# --------------------
# In rows that the fit has not seen, (y - E[y|x]) / σ should have a mean square of 1, at each wind.
# For the line that is so over all rows together, and at hardly any wind.
#
# And 90 % of the new rows should lie between the quantiles of 5 % and 95 %. These follow from the
# components, given the wind. A multiple of σ would not do, as the distribution is not normal.


def quantile(model: GaussianMixture) -> Floats:
    """Where the power of each new row lies in its distribution given the wind, from 0 to 1."""
    covariances, apart = model.covariances_, wind[:, None] - model.means_[:, 0]  # (n, k)
    slopes = covariances[:, 0, 1] / covariances[:, 0, 0]
    left = np.sqrt(covariances[:, 1, 1] - slopes * covariances[:, 0, 1])
    r = model.marginal("wind").predict_proba(pd.DataFrame({"wind": wind}))
    found: Floats = np.sum(r * norm.cdf(power[:, None], model.means_[:, 1] + slopes * apart, left), axis=1)
    return found


EDGES = [0, 2, 4, 6, 8, 10, 12, 15, 30]  # m/s
inside = [(wind >= low) & (wind < high) for low, high in itertools.pairwise(EDGES)]
spread, within = {}, {}
for k, (mean, deviation) in told.items():
    squares = ((power - mean) / deviation) ** 2
    central = np.abs(quantile(models[k]) - 0.5) < 0.45
    spread[k] = [np.sqrt(squares[rows].mean()) for rows in (*inside, wind >= 0)]
    within[k] = [central[rows].mean() for rows in (*inside, wind >= 0)]
print("wind (m/s)  root mean square of (y - E[y|x]) / σ     within the central 90 %")
print("            1 component   20 components              1 component   20 components")
names = [f"{low:2} to {high:2}" for low, high in itertools.pairwise(EDGES)] + ["all rows"]
for name, *shown in zip(names, spread[1], spread[20], within[1], within[20], strict=True):
    print("{:10}  {:11.2f}   {:13.2f}   {:22.1%}   {:13.1%}".format(name, *shown))

# %%
# The picture
# -----------
# Above a band of two standard deviations about E[y|x]. Below how the spread compares with what new
# rows show, and the distribution at a single wind.

LINE: dict[str, Any] = {"color": "#d55e00", "linestyle": "--"}
MIXTURE: dict[str, Any] = {"color": "#0072b2"}
figure, panels = pyplot.subplot_mosaic(
    [["curve", "curve"], ["spread", "cut"]], figsize=(9, 7.5), height_ratios=[1.3, 1], layout="constrained"
)
at = np.linspace(0, 20, 201)
panels["curve"].hexbin(wind, power, gridsize=(110, 60), bins="log", cmap="Greys", extent=(0, 20, -0.5, 3.5))
for k, look, label in ((1, LINE, "1 component"), (20, MIXTURE, "20 components")):
    mean, deviation = models[k].regress(at[:, None], given=["wind"], of="power", return_std=True)
    panels["curve"].plot(at, mean, linewidth=2, label=f"{label}: E[y|x]", **look)
    for sign in (-2, 2):
        panels["curve"].plot(at, mean + sign * deviation, linewidth=1, **look)
panels["curve"].plot(at, expected(at)[0], "k:", linewidth=2, label="true E[y|x]")
panels["curve"].set(xlabel="wind (m/s)", ylabel="power (MW)", ylim=(-0.5, 3.5), title="power, and E[y|x] ± 2 σ")
for k, look, marker in ((1, LINE, "^"), (20, MIXTURE, "o")):
    panels["spread"].plot(names[:-1], spread[k][:-1], marker=marker, label=f"{k} component{'s' * (k > 1)}", **look)
panels["spread"].axhline(1, color="black", linewidth=1)
panels["spread"].set(xlabel="wind (m/s)", ylabel="root mean square of (y - E[y|x]) / σ", ylim=(0, None))
panels["spread"].set_title("spread of new rows: 1 is right")
panels["spread"].tick_params(axis="x", rotation=45)
levels = np.linspace(0.5, 3.5, 301)
density = norm.pdf(levels[:, None], at_ten.means_[:, 0], widths) @ at_ten.weights_
one = models[1].conditional({"wind": 10.0})
near = np.abs(wind - 10) < 0.2
panels["cut"].hist(power[near], list(levels[::6]), density=True, color="0.8", label="new rows")
panels["cut"].plot(
    levels, norm.pdf(levels, one.means_[0, 0], np.sqrt(one.covariances_[0, 0, 0])), label="1 component", **LINE
)
panels["cut"].plot(levels, density, label="20 components", **MIXTURE)
panels["cut"].set(xlabel="power (MW)", ylabel="density (1/MW)", title="at a wind of 10 m/s")
for axes in panels.values():
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
pyplot.show()
folder.cleanup()
