"""
Stars behind their errors
=========================

Stars in a plane of colour and magnitude lie along narrow tracks. Errors of measurement blur them,
each star by its own. A plain fit describes the blurred plane. A fit that is told the errors
(``noise=``) finds the plane behind them, which astronomers call extreme deconvolution (Bovy, Hogg &
Roweis 2011): here a second track that no one sees in the data.
"""

# %%
# Stars, and what is seen of them
# -------------------------------
# The stars are made up, so that the truth is known. Most lie on a sequence from hot and bright to
# cool and faint. A quarter of these are pairs, which look like one star of twice the light: .75 mag
# brighter. There are a clump of giants and a track of dwarfs besides.
#
# Colour is b - r, and magnitude is r less what the distance adds. So the error of the band r is in
# both, with opposite signs: each star has a covariance, not just two variances.

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from matplotlib import pyplot
from numpy.typing import NDArray

from daskgmm import GaussianMixture, MiniBatchGaussianMixture

Floats = NDArray[np.float64]

N = 20_000 if os.environ.get("DASKGMM_EXAMPLES") == "small" else 400_000


def stars(n: int, random: np.random.Generator) -> Floats:
    """True colours and magnitudes, (n, 2)."""
    kind = random.choice(4, n, p=[0.5625, 0.1875, 0.15, 0.10])  # single, pair, giant, dwarf
    colour = 0.1 + 3.2 * random.beta(2, 2.5, n)
    sequence = 1.2 + 4.2 * colour - 0.35 * colour**2 - 0.75 * (kind == 1) + random.normal(0, 0.08, n)
    giants = random.normal([1.25, 0.5], [0.05, 0.12], (n, 2))
    blue = random.normal(0.3, 0.25, n)
    dwarfs = np.column_stack([blue, 11.5 + 2.5 * blue + random.normal(0, 0.15, n)])
    return np.select(
        [(kind == 2)[:, None], (kind == 3)[:, None]], [giants, dwarfs], np.column_stack([colour, sequence])
    )


def errors(true: Floats, random: np.random.Generator) -> tuple[Floats, Floats]:
    """What is measured of them, (n, 2), and the covariances of the errors, (n, 2, 2)."""
    of_b = 0.02 + 0.06 * np.exp((true[:, 1] - 9) / 3)  # mag; more for faint stars
    of_r, of_distance = of_b / 2, random.gamma(2, 0.1, len(true))
    b, r, distance = random.normal(size=(3, len(true))) * [of_b, of_r, of_distance]
    covariances = np.empty((len(true), 2, 2))
    covariances[:, 0, 0], covariances[:, 1, 1] = of_b**2 + of_r**2, of_r**2 + of_distance**2
    covariances[:, 0, 1] = covariances[:, 1, 0] = -(of_r**2)
    return true + np.column_stack([b - r, r + distance]), covariances


random = np.random.default_rng(0)
measured, noise = errors(stars(N, random), random)
folder = tempfile.TemporaryDirectory()
rows, variances = (Path(folder.name) / name for name in ("stars.zarr", "errors.zarr"))
zarr.create_array(rows, data=measured, chunks=(N // 10, 2))
zarr.create_array(variances, data=noise, chunks=(N // 10, 2, 2))
typical = np.median(np.sqrt(noise[:, [0, 1], [0, 1]]), axis=0)
print("{:,} stars; half of the errors are below {:.2f} mag in colour, {:.2f} mag in magnitude".format(N, *typical))

# %%
# With errors, without, and with the best stars alone
# ---------------------------------------------------
# Errors are read in step with the rows, block by block, in batch and online. A usual way around
# them is to keep the stars that are measured best alone: here a tenth.

settings: dict[str, Any] = {"tol": 1e-5, "max_iter": 1000, "random_state": 0}
precise = np.argsort(np.linalg.det(noise))[: N // 10]
models: dict[str, Any] = {
    "plain": GaussianMixture(12, n_init=5, **settings).fit(rows),
    "plain, best tenth": GaussianMixture(12, n_init=5, **settings).fit(measured[precise]),
    "with noise": GaussianMixture(12, **settings).fit(rows, noise=variances),
    "with noise, online": MiniBatchGaussianMixture(12, max_iter=20, random_state=0).fit(rows, noise=variances),
}

# %%
# New stars tell how good each is, without errors, and with errors of their own, which the queries
# are told, too. Those that are measured best are bright: faint stars, and all of the dwarfs, are
# nowhere in that fit.

clean = stars(20_000, random)
new, new_noise = errors(clean, random)
print("log-density (nats)    stars without error    with errors")
for name, model in models.items():
    told = {"noise": new_noise} if "noise" in name else {}
    print(f"{name:20}  {model.score(clean):19.2f}    {model.score(new, **told):11.2f}")

# %%
# Is there a second track?
# ------------------------
# ``conditional`` cuts the plane at one colour. There single stars and pairs are each .08 mag wide.

COLOUR = 2.0
single = 1.2 + 4.2 * COLOUR - 0.35 * COLOUR**2
levels = np.linspace(single - 2, single + 1.5, 701)[:, None]
middle = levels[:, 0] < single - 0.375
cuts = {name: np.exp(model.conditional({0: COLOUR}).score_samples(levels)) for name, model in models.items()}


def track(density: Floats, side: NDArray[np.bool_]) -> str:
    """Place and width of what lies on one side of the middle."""
    weight = np.where(side, density, 0) / density[side].sum()
    place = weight @ levels[:, 0]
    return f"{place - single:+.2f} ± {np.sqrt(weight @ (levels[:, 0] - place) ** 2):.2f}"


print(f"at colour {COLOUR} (mag)     single stars   pairs            share of pairs")
print(f"{'truth':20}  +0.00 ± 0.08   -0.75 ± 0.08   {0.25:14.0%}")
for name, density in cuts.items():
    share = density[middle].sum() / density.sum()
    print(f"{name:20}  {track(density, ~middle)}   {track(density, middle)}   {share:14.0%}")

# %%
# The picture
# -----------
# Stars as they were measured, and the log-density of two mixtures; below the cuts along the dotted
# line.

figure, panels = pyplot.subplot_mosaic(
    [["stars", "plain", "noise"], ["cut"] * 3], figsize=(9, 8), height_ratios=[1.5, 1], layout="constrained"
)
colour, magnitude = np.meshgrid(np.linspace(-0.5, 3.4, 200), np.linspace(-1, 14.5, 320))
grid: Any = np.column_stack([colour.ravel(), magnitude.ravel()])
panels["stars"].hexbin(*measured.T, gridsize=90, bins="log", cmap="cividis", extent=(-0.5, 3.4, -1, 14.5))
for name, model in (("plain", models["plain"]), ("noise", models["with noise"])):
    density = model.score_samples(grid).reshape(colour.shape)
    drawn = panels[name].pcolormesh(colour, magnitude, density, vmin=-8, vmax=1.5, cmap="cividis")
figure.colorbar(drawn, ax=panels["noise"], label="log-density (nats)", extend="both")
for name, title in (("stars", "as measured"), ("plain", "plain fit"), ("noise", "fit with noise=")):
    panels[name].set(title=title, xlabel="colour (mag)", ylim=(14.5, -1), xlim=(-0.5, 3.4))
    panels[name].axvline(COLOUR, color="white", linewidth=1, linestyle=":")
panels["stars"].set_ylabel("magnitude")
near = clean[np.abs(clean[:, 0] - COLOUR) < 0.1]
height = near[:, 1] - (4.2 - 0.7 * COLOUR) * (near[:, 0] - COLOUR)  # along the sequence to the cut
panels["cut"].hist(height, list(levels[::10, 0]), density=True, color="0.8", label="truth")
for name, look, line in (("plain", "#d55e00", "--"), ("with noise", "#0072b2", "-")):
    panels["cut"].plot(levels, cuts[name], color=look, linestyle=line, linewidth=2, label=name)
panels["cut"].set(xlabel="magnitude", ylabel="density (1/mag)", title=f"the cut at colour {COLOUR}")
panels["cut"].legend(frameon=False)
panels["cut"].spines[["top", "right"]].set_visible(False)
pyplot.show()
folder.cleanup()
