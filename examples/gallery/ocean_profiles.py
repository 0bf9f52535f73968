"""
Ocean profiles: water masses on a map
=====================================

A profile of the ocean is a temperature and a salinity at each of some depths. Profiles of one water
mass are alike, wherever they were taken (Maze et al. 2017). The mixture knows nothing of places;
its labels, put back on the map, show regions all the same. Land is missing, cells near the poles
are small, and the number of water masses is not known.
"""

# %%
# A Dataset
# ---------
# The ocean is made up, with five water masses and meandering fronts, so that the truth is known. It
# lies in a Zarr store in chunks, and xarray opens it without reading it.

import os
import tempfile

import numpy as np
import xarray as xr
from matplotlib import pyplot
from matplotlib.colors import BoundaryNorm, ListedColormap

from daskgmm import GaussianMixtureSearch

DEGREES = 4 if os.environ.get("DASKGMM_EXAMPLES") == "small" else 0.5  # of a cell
DEPTHS = np.array([10, 100, 300, 1000])  # m
#              temperatures (°C)          salinities (g/kg)
WATER_MASSES = {
    "polar": ([0.0, -0.5, 0.8, 0.4], [33.8, 34.1, 34.6, 34.7]),
    "subpolar": ([8.0, 7.2, 6.0, 3.6], [34.6, 34.8, 34.9, 34.8]),
    "subtropical": ([20.0, 18.5, 15.5, 6.0], [36.2, 36.1, 35.6, 34.9]),
    "tropical": ([27.5, 22.0, 12.0, 5.0], [34.8, 35.6, 35.0, 34.7]),
    "inland sea": ([19.0, 15.0, 13.6, 13.2], [37.8, 38.0, 38.5, 38.5]),
}

lat = xr.DataArray(np.arange(-80 + DEGREES / 2, 80, DEGREES), dims="lat", attrs={"units": "degrees_north"})
lon = xr.DataArray(np.arange(-180 + DEGREES / 2, 180, DEGREES), dims="lon", attrs={"units": "degrees_east"})
meander = 3 * np.sin(np.deg2rad(5 * lon)) + 2 * np.sin(np.deg2rad(11 * lon + 3 * lat))
distance = abs(lat + meander)  # degrees from a wavy equator
inland = (abs(lat - 37) < 6) & (abs(lon - 20) < 22)
land = ((lon - 20) / 30) ** 2 + ((lat + 2) / 32) ** 2 < 1
land = land | (((lon + 85 + lat / 2) / 20) ** 2 + ((lat - 5) / 60) ** 2 < 1)
land = land | ((((lon - 80) / 85) ** 2 + ((lat - 58) / 24) ** 2 < 1) & ~inland)
water_mass = (3 - (distance > 15) - (distance > 40) - (distance > 58)).where(~inland, 4).astype(int)

random = np.random.default_rng(0)
temperatures, salinities = (np.array([values[i] for values in WATER_MASSES.values()]) for i in (0, 1))
shape = (lat.size, lon.size, len(DEPTHS))
heave = random.normal(size=(lat.size, lon.size, 1))  # moves a whole profile
temperature = temperatures[water_mass] + 0.8 * heave + 0.4 * random.normal(size=shape)
salinity = salinities[water_mass] + 0.10 * heave + 0.08 * random.normal(size=shape)
ocean = xr.Dataset(
    {
        f"{name} at {depth} m": (("lat", "lon"), values[..., i].astype("float32"))
        for name, values in (("temperature", temperature), ("salinity", salinity))
        for i, depth in enumerate(DEPTHS)
    },
    coords={"lat": lat, "lon": lon},
).where(~land)

folder = tempfile.TemporaryDirectory()
ocean.chunk(lat=40, lon=180).to_zarr(folder.name, consolidated=False)
ocean = xr.open_zarr(folder.name, consolidated=False)[list(ocean)]  # a store has no order of variables
print(ocean)

# %%
# How many water masses?
# ----------------------
# The variables of a Dataset are the features, and all of its dimensions together are the rows.
# ``GaussianMixtureSearch`` fits all sizes in the same passes. ``nan_policy="omit"`` leaves out what
# is land. Each cell counts by its area; a weight may have fewer dimensions than the rows.

area = np.cos(np.deg2rad(ocean["lat"]))
search = GaussianMixtureSearch(range(1, 9), n_init=5, nan_policy="omit", random_state=0)
search.fit(ocean, sample_weight=area)
model, bic = search.best_estimator_, search.results_["bic"]
chosen = model.n_components
print("components  bic")
for k, value in enumerate(bic, start=1):
    print(f"{k:10d}  {value:12,.0f}{'  <- lowest' * (k == chosen)}")
print(f"{search.n_passes_} passes over the ocean for all {len(bic)} candidates")

# %%
# Back on the map
# ---------------
# Labels have the dimensions and coordinates of the rows. They are computed when they are asked for,
# and could as well be written to a store of their own with ``to_zarr``. Land is -1.

labels = model.predict(ocean).compute()
print(labels.drop_attrs())
warmest = np.argsort(-model.means_[:, 0])  # components, by temperature at the surface
rank = labels.copy(data=np.where(labels < 0, -1, np.argsort(warmest)[labels]))
names = []
for place, j in enumerate(warmest):
    masses, cells = np.unique(water_mass.values[rank.values == place], return_counts=True)
    names.append(list(WATER_MASSES)[masses[cells.argmax()]])
    share, right = model.weights_[j], cells.max() / cells.sum()
    print(f"component {place}: {share:5.1%} of the area, {right:.2%} of it {names[-1]}")

# %%
# A component is a mean profile and what varies around it. Here the covariance knows that cells are
# warmer or colder at all depths at once.

COLOURS = ["#d55e00", "#e69f00", "#009e73", "#56b4e9", "#0072b2", "#cc79a7", "#999999", "#000000"]  # Okabe & Ito
figure, panels = pyplot.subplot_mosaic(
    [["map"] * 3, ["warm", "salty", "choice"]], figsize=(9, 7), height_ratios=[1.25, 1], layout="constrained"
)
colours, norm = ListedColormap(COLOURS[:chosen]), BoundaryNorm(np.arange(chosen + 1), chosen)
drawn = panels["map"].pcolormesh(lon, lat, rank.where(rank >= 0), cmap=colours, norm=norm)
panels["map"].set(title="water masses", xlabel="longitude (°E)", ylabel="latitude (°N)", facecolor="0.85")
bar = figure.colorbar(drawn, ax=panels["map"], ticks=np.arange(chosen) + 0.5)
bar.ax.set_yticklabels(names)
bar.ax.invert_yaxis()
warm, salty, choice = (panels[name] for name in ("warm", "salty", "choice"))
for place, j in enumerate(warmest):
    deviations = np.sqrt(np.diag(model.covariances_[j]))
    for axes, of in ((warm, slice(0, 4)), (salty, slice(4, 8))):
        axes.errorbar(
            model.means_[j, of], DEPTHS, xerr=deviations[of], color=COLOURS[place], marker=".", capsize=2
        )
for axes, label in ((warm, "temperature (°C)"), (salty, "salinity (g/kg)")):
    axes.set(xlabel=label, ylabel="depth (m)", yscale="log", title="mean profiles, ± 1 σ")
    axes.invert_yaxis()
choice.plot(range(1, 9), bic / 1e6, "k.-")
choice.plot(chosen, bic[chosen - 1] / 1e6, "o", color="#d55e00", markersize=9, label=f"lowest: {chosen}")
choice.set(xlabel="components", ylabel="bic, millions", title="how many", xticks=range(1, 9))
choice.legend(frameon=False)
for axes in (warm, salty, choice):
    axes.spines[["top", "right"]].set_visible(False)
pyplot.show()
folder.cleanup()
