"""
Anomalies: a threshold on the density
=====================================

A pump works in three states. Its sensors write a row every second, and nobody says which rows are
faults. A mixture learns what is usual; what it thinks least likely is looked at. Faults need not
lie outside of all readings: some lie between the states, where each sensor for itself reads nothing
unusual.
"""

# %%
# A month of readings, and a day
# ------------------------------
# Pressure, flow and vibration of a month lie in a Zarr store. One row in two thousand is a fault: a
# leak (pressure of one state, flow of another) or a worn bearing (vibration). The day after is what
# we watch.

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from matplotlib import pyplot
from numpy.typing import NDArray

from daskgmm import GaussianMixture

Floats = NDArray[np.float64]

MONTH, DAY = (20_000, 20_000) if os.environ.get("DASKGMM_EXAMPLES") == "small" else (2_592_000, 86_400)
SENSORS = ["pressure (bar)", "flow (l/s)", "vibration (mm/s)"]
WEIGHTS = [0.2, 0.5, 0.3]
MEANS = np.array([[2.0, 4.0, 1.0], [5.0, 10.0, 2.0], [8.0, 12.0, 3.5]])
SPREAD = np.array([[0.30, 0.0, 0.0], [0.40, 0.35, 0.0], [0.05, 0.10, 0.20]])  # flow follows pressure


def readings(n: int, faults: float, seed: int) -> tuple[Floats, NDArray[np.int64]]:
    """Rows (n, 3), and what each is: 0 usual, 1 a leak, 2 a worn bearing."""
    random = np.random.default_rng(seed)
    rows = MEANS[random.choice(3, n, p=WEIGHTS)] + random.normal(size=(n, 3)) @ SPREAD.T
    kind = random.choice(3, n, p=[1 - faults, faults / 2, faults / 2])
    leak, worn = kind == 1, kind == 2
    rows[leak] = [5.0, 5.5, 2.0] + random.normal(size=(leak.sum(), 3)) @ SPREAD.T
    rows[worn, 2] += random.uniform(1.5, 3.0, worn.sum())
    return rows, kind


folder = tempfile.TemporaryDirectory()
month = Path(folder.name) / "month.zarr"
zarr.create_array(month, data=readings(MONTH, 0.0005, seed=0)[0], chunks=(MONTH // 20, 3))
day, kind = readings(DAY, 0.002, seed=1)
faulty = kind > 0
print(f"{MONTH:,} rows to learn from; {DAY:,} rows to watch, {faulty.sum()} of them faults")

# %%
# A model and its threshold
# -------------------------
# The faults of the month are too few to get a component of their own. ``threshold`` finds, in one
# more pass over the month, the log-density below which one row in a thousand lies. That is how many
# alarms there will be, those for faults included, and the only number to choose.

model = GaussianMixture(3, random_state=0).fit(month)
threshold = model.threshold(month, 0.001)
alarms = model.is_outlier(day, threshold)
found, false = (alarms & faulty).sum(), (alarms & ~faulty).sum()
print(f"log-density below {threshold:.2f} is an alarm")
print(
    f"{alarms.sum()} alarms: {found} of the {faulty.sum()} faults, and {false} of {(~faulty).sum():,} usual rows"
)

# %%
# One Gaussian, with a threshold of the same rate, sees a leak as one more reading in the middle.

single = GaussianMixture(1).fit(month)
by_one = single.is_outlier(day, single.threshold(month, 0.001))
found, false = (by_one & faulty).sum(), (by_one & ~faulty).sum()
print(f"one Gaussian: {found} of the {faulty.sum()} faults, and {false} usual rows")

# %%
# Why a row is an alarm
# ---------------------
# ``mahalanobis`` is the distance of a row from each component in standard deviations: from the
# nearest state it says how bad it is. ``regress`` tells what each sensor should read, given the two
# others; the one that is farthest from that is where to look first.

first = np.flatnonzero(alarms)[:8]
distance = model.mahalanobis(day[first])
off, expected, spread = np.empty((3, len(first), 3))
for sensor in range(3):
    others = [i for i in range(3) if i != sensor]
    told = model.regress(day[first][:, others], given=others, of=sensor, return_std=True)
    expected[:, sensor], spread[:, sensor] = told
    off[:, sensor] = np.abs(day[first, sensor] - told[0]) / told[1]
print("second  from the nearest state  first to look at")
for i, row in enumerate(first):
    j = off[i].argmax()
    name, unit = SENSORS[j].strip(")").split(" (")
    look = f"{name} {day[row, j]:.1f} {unit} where {expected[i, j]:.1f} ± {spread[i, j]:.1f} is usual"
    print(f"{row:6d}  {distance[i].min():20.1f} σ  {look:48} {('(usual)', 'a leak', 'a worn bearing')[kind[row]]}")

# %%
# The threshold as a line
# -----------------------
# On the left the density of pressure and flow alone (``marginal``), with every alarm of the day; a
# worn bearing shows in vibration only. On the right the log-density of all rows.

LEAK, WORN = "#d55e00", "#cc79a7"  # told apart with any colour vision
figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 4.3), layout="constrained")
pressure, flow = np.meshgrid(np.linspace(0, 10.5, 200), np.linspace(1, 15, 200))
grid: Any = np.column_stack([pressure.ravel(), flow.ravel()])
density = model.marginal([0, 1]).score_samples(grid).reshape(pressure.shape)
left.contourf(pressure, flow, density, levels=np.arange(-16, 0, 2), cmap="Blues", extend="both")
for number, colour, label in ((1, LEAK, "leak"), (2, WORN, "worn bearing"), (0, "black", "usual")):
    rows = alarms & (kind == number)
    left.plot(*day[rows, :2].T, ".", color=colour, label=f"{label}: {rows.sum()} alarms")
left.set(xlabel=SENSORS[0], ylabel=SENSORS[1], title="alarms of the day")
left.legend(frameon=False, loc="upper left")
log_density = np.maximum(model.score_samples(day), -40)
bins = np.linspace(-40, log_density.max(), 60)
right.hist(log_density[~faulty], bins, color="0.6", label="usual")
right.hist(log_density[faulty], bins, color=LEAK, label="faults", alpha=0.8)
right.axvline(threshold, color="black", linestyle="--", label="threshold")
right.set(yscale="log", xlabel="log-density (nats; below -40: at -40)", ylabel="rows", title="all rows of the day")
right.legend(frameon=False)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
pyplot.show()
folder.cleanup()
