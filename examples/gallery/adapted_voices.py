"""
A background model adapted to a voice
=====================================

To know a voice again one would fit a mixture to it. But some seconds of speech are too few rows
for a mixture of all sounds. So a background model learns from many voices what they have in common.
It is then adapted to a new voice, as far as the rows of that voice tell otherwise (Reynolds,
Quatieri & Dunn 2000).
"""

# %%
# Voices
# ------
# They are made up, so that the truth is known. A row stands for a hundredth of a second: twelve
# numbers that describe the sound. There are 32 sounds, each a Gaussian. A voice shifts all of them
# together, and each a bit by itself.

import itertools
import os
from typing import Any

import numpy as np
from matplotlib import pyplot
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from daskgmm import GaussianMixture, NormalInverseWishart

Floats = NDArray[np.float64]

N_VOICES, N_BACKGROUND = (12, 60) if os.environ.get("DASKGMM_EXAMPLES") == "small" else (60, 600)
N_SOUNDS, N_FEATURES = 32, 12
random = np.random.default_rng(0)
SOUNDS = random.normal(0, 3, (N_SOUNDS, N_FEATURES))
DEVIATIONS = random.uniform(0.7, 1.5, (N_SOUNDS, N_FEATURES))
SHARES = random.dirichlet(np.full(N_SOUNDS, 3.0))


def voice() -> Floats:
    """The mean of each sound of a new voice, (32, 12)."""
    return SOUNDS + random.normal(0, 0.15, N_FEATURES) + random.normal(0, 0.25, SOUNDS.shape)


def speech(of: Floats, n: int) -> Floats:
    """So many rows of a voice, (n, 12)."""
    sound = random.choice(N_SOUNDS, n, p=SHARES)
    return of[sound] + DEVIATIONS[sound] * random.normal(size=(n, N_FEATURES))


many = np.concatenate([speech(voice(), 500) for _ in range(N_BACKGROUND)])
voices = [voice() for _ in range(N_VOICES)]
background = GaussianMixture(N_SOUNDS, covariance_type="diag", random_state=0).fit(many)
print(f"a background of {len(many):,} rows of {N_BACKGROUND} voices; {N_VOICES} other voices to know again")

# %%
# Three seconds of each voice
# ---------------------------
# ``from_mixture`` makes a prior of the background: each of its components counts as 16 rows
# (``relevance``). So n rows of a sound move its mean by n / (n + 16) of the way to theirs. The best
# relevance is the variance of rows within a sound divided by that of its mean between voices: here
# 1.26 / 0.085, or 15. Of a sound that is seldom heard its rows tell less than the background, and of
# one that is often heard more. The adapted model is as near to the voice as the better of the two,
# or nearer.

prior = NormalInverseWishart.from_mixture(background, relevance=16)


def adapted(x: Floats) -> GaussianMixture:
    """The background, as far as these rows do not tell otherwise."""
    return GaussianMixture(N_SOUNDS, covariance_type="diag", prior=prior).fit(x)


sound = linear_sum_assignment(np.linalg.norm(background.means_[:, None] - SOUNDS, axis=2))[1]  # of each component
found = []
for of in voices:
    heard = speech(of, 300)
    r = background.predict_proba(heard)  # (n, k)
    rows = r.sum(axis=0)
    theirs = r.T @ heard / np.maximum(rows, 1e-9)[:, None]
    off = [
        np.linalg.norm(means - of[sound], axis=1) for means in (background.means_, theirs, adapted(heard).means_)
    ]
    found.append(np.column_stack([rows, *off]))
rows, *off = np.concatenate(found).T
inside = [(rows >= low) & (rows < high) for low, high in itertools.pairwise((0.5, 2, 4, 8, 16, 32, 64))]
near = np.array([[values[some].mean() for values in (rows, *off)] for some in inside])
print("rows of a sound   its mean is off by, in the background   mean of its rows   adapted")
for line in near:
    print("{:15.1f}   {:37.2f}   {:16.2f}   {:7.2f}".format(*line))

# %%
# How many rows does it take?
# ---------------------------
# Each voice is learnt from a number of rows: by one Gaussian, by a mixture with a component for
# each ten rows (32 at most), and by adaptation. New rows tell how good the models are. Then the
# voices speak again, each ten times for a second, and the model under which these rows are
# likeliest says who it was.

LENGTHS = (30, 100, 300, 1_000, 3_000, 10_000)


def plain(x: Floats) -> GaussianMixture:
    """A mixture of these rows alone."""
    k = min(N_SOUNDS, len(x) // 10)
    return GaussianMixture(k, covariance_type="diag", reg_covar=1e-2, random_state=0).fit(x)


def single(x: Floats) -> GaussianMixture:
    """One Gaussian."""
    return GaussianMixture(1, covariance_type="diag").fit(x)


WAYS = {"one Gaussian": single, "plain mixture": plain, "adapted": adapted}
new = np.array([speech(of, 1_000) for of in voices])  # (voice, row, feature)
learnt: dict[str, list[float]] = {name: [] for name in WAYS}
mistaken: dict[str, list[float]] = {name: [] for name in WAYS}
for n in LENGTHS:
    of_each = [speech(of, n) for of in voices]
    for name, fit in WAYS.items():
        density = np.array([fit(x).score_samples(new.reshape(-1, N_FEATURES)) for x in of_each])
        said = density.reshape(N_VOICES, N_VOICES, 10, 100).mean(axis=3)  # (model, voice, time)
        own = np.arange(N_VOICES)
        learnt[name].append(float(said[own, own].mean()))
        mistaken[name].append(float((said.argmax(axis=0) != own[:, None]).mean()))
parts = ((of, rows) for of, rows in zip(voices, new, strict=True))
truth = np.mean([GaussianMixture.from_parameters(SHARES, of, DEVIATIONS**2, "diag").score(x) for of, x in parts])
unadapted = background.score(new.reshape(-1, N_FEATURES))
for what, values, form in (
    ("log-density of new rows (nats)", learnt, "{:9.2f}"),
    ("mistaken", mistaken, "{:9.1%}"),
):
    print(f"{what}\n{'learnt from':15}", *(f"{n:9,}" for n in LENGTHS))
    for name in WAYS:
        print(f"{name:15}", *map(form.format, values[name]))
print(f"log-density under the background as it is {unadapted:.2f}, under the truth {truth:.2f}")

# %%
# The picture
# -----------
# On the left how far the means of a voice's sounds are off, on the right what the models are worth.

LOOKS: dict[str, Any] = {
    "background": {"color": "0.4", "linestyle": ":", "marker": "s"},
    "plain": {"color": "#d55e00", "linestyle": "--", "marker": "^"},
    "adapted": {"color": "#0072b2", "marker": "o"},
}
figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 4.3), layout="constrained")
for values, label, look in zip(
    near[:, 1:].T, ("background", "mean of its rows", "adapted"), LOOKS.values(), strict=True
):
    left.plot(near[:, 0], values, label=label, **look)
left.set_xscale("log", base=2)
left.xaxis.set_major_formatter("{x:g}")
left.set(xlabel="rows of a sound", ylabel="distance of its mean from the truth", ylim=(0, None))
left.set_title("sounds, of 300 rows of a voice")
for name, label in (("plain mixture", "plain"), ("adapted", "adapted")):
    right.plot(LENGTHS, np.subtract(truth, learnt[name]), label=name, **LOOKS[label])
right.axhline(truth - unadapted, label="background", color="0.4", linestyle=":")
right.set(xscale="log", yscale="log", xlabel="rows of the voice", ylabel="nats per row below the truth")
right.set_title("new rows of a voice")
for axes in (left, right):
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
pyplot.show()
