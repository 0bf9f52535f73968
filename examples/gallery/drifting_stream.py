"""
A stream that drifts
====================

A machine sends two readings a second, of three states of operation. Over the weeks a sensor drifts,
and one day a repair moves a state at once. Three models learn from the same stream: one stops after
the first day, one learns for ever and gives all rows the same weight, and one forgets.
"""

# %%
# The stream
# ----------
# Batches of 500 rows come one after another; none of them is kept.

import os
from collections.abc import Iterator

import numpy as np
from matplotlib import pyplot
from numpy.typing import NDArray

from daskgmm import GaussianMixture, MiniBatchGaussianMixture
from daskgmm.display import StreamDisplay

Floats = NDArray[np.float64]

N_BATCHES = 60 if os.environ.get("DASKGMM_EXAMPLES") == "small" else 300
BATCH, REPAIR = 500, 0.6  # rows; the share of the stream after which the repair comes
WEIGHTS, DEVIATIONS = np.array([0.5, 0.3, 0.2]), np.array([1.0, 0.8])  # °C, bar
FIRST_MEANS = np.array([[40.0, 5.0], [46.0, 9.0], [52.0, 6.0]])


def true_means(share: float) -> Floats:
    """Where the states are when this share of the stream has passed, (3, 2)."""
    means: Floats = FIRST_MEANS + np.array([8.0 * share, 0.0])  # the temperature creeps
    if share >= REPAIR:
        means[2, 1] -= 4.0
    return means


def stream() -> Iterator[tuple[float, Floats]]:
    """Batches, each with the share of the stream before it."""
    random = np.random.default_rng(0)
    for number in range(N_BATCHES):
        share = number / N_BATCHES
        state = random.choice(3, BATCH, p=WEIGHTS)
        yield share, true_means(share)[state] + DEVIATIONS * random.normal(size=(BATCH, 2))


def true_log_likelihood(share: float, x: Floats) -> float:
    """Mean log-likelihood of a batch under the mixture that it was drawn from: nothing does better."""
    truth = GaussianMixture.from_parameters(WEIGHTS, true_means(share), np.tile(DEVIATIONS**2, (3, 1)), "diag")
    return truth.score(x)


# %%
# Learn, and watch
# ----------------
# ``half_life`` says after how many rows a row counts half. Short ones follow faster, long ones are
# more precise: a model of :math:`p` parameters lies :math:`p \ln 2 / (4 \cdot \text{half-life})`
# nats below the best one. The log-likelihood of each batch *before* it is learnt says whether the
# model still fits. ``StreamDisplay`` keeps what the model that forgets has been through.

HALF_LIFE = 2_000  # rows
models = {
    "stops after the first rows": MiniBatchGaussianMixture(3, random_state=0),
    "learns, forgets nothing": MiniBatchGaussianMixture(3, random_state=0),
    f"half-life of {HALF_LIFE:,} rows": MiniBatchGaussianMixture(3, half_life=HALF_LIFE, random_state=0),
}
frozen, _, forgets = models.values()
gaps: dict[str, list[float]] = {name: [] for name in models}
history = StreamDisplay()
for number, (share, batch) in enumerate(stream()):
    best = true_log_likelihood(share, batch)
    for name, model in models.items():
        if number >= 5:
            gaps[name].append(best - model.score(batch))
        if number < 5 or model is not frozen:
            model.partial_fit(batch)
    history.record(forgets)

third = len(gaps["learns, forgets nothing"]) // 3
print("nats per row below the truth    first third   second    last")
for name, values in gaps.items():
    parts = [np.mean(part) for part in np.split(np.array(values), [third, 2 * third])]
    print(f"{name:30}  {parts[0]:11.3f}   {parts[1]:6.3f}   {parts[2]:5.3f}")
means = forgets.means_[np.argsort(forgets.means_[:, 0])]
print(f"\nmeans at the end (°C, bar): {np.round(means, 1).tolist()}")
print(f"in truth                    {np.round(true_means(1 - 1 / N_BATCHES), 1).tolist()}")
effective, seen = forgets.effective_sample_size_, forgets.n_samples_seen_
print(f"effective rows of the model that forgets: {effective:,.0f} of {seen:,}")

# %%
# A drift shows
# -------------
# The model that forgets finds its way back within some half-lives of the repair. The one that
# forgets nothing has ever more rows from a time that is over. Dashed is the truth; a triangle marks a
# batch that is too improbable to be chance.

figure, panels = pyplot.subplots(4, 1, figsize=(8, 9), sharex=True, layout="constrained")
history.names = ("temperature (°C)", "pressure (bar)")
history.plot(panels[:3], features="pressure (bar)")
rows = (1 + np.arange(N_BATCHES)) * BATCH
truth = np.array([true_means(number / N_BATCHES) for number in range(N_BATCHES)])
panels[0].plot(rows, truth[:, :, 1], color="black", linewidth=1, linestyle="--")
panels[0].set_title(f"a model with a half-life of {HALF_LIFE:,} rows")
for (name, values), colour in zip(gaps.items(), ("0.45", "#e69f00", "#0072b2"), strict=True):
    panels[3].plot(rows[5:], values, color=colour, label=name)
panels[3].set(xlabel="rows learnt", ylabel="nats per row\nbelow the truth")
panels[3].set_yscale("symlog", linthresh=0.1)
panels[3].legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
panels[3].spines[["top", "right"]].set_visible(False)
panels[2].set_xlabel("")
for axes in panels:
    axes.axvline(REPAIR * N_BATCHES * BATCH, color="0.8", zorder=0)
pyplot.show()
