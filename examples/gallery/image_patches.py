"""
Image patches: a prior that removes noise
=========================================

A mixture of Gaussians that has learnt millions of patches of 8x8 pixels knows what photographs look
like: smooth, with edges of all directions. Zoran & Weiss (2011) use such a mixture, of 200
components, as a prior that removes noise. Here it is learnt in one online pass and up to three
batch passes, over patches that are cut out of the photographs as they are read: 739 MB that nobody
holds.
"""

# %%
# The patches
# -----------
# The two photographs that come with scikit-learn, in grey. Lines 160 to 287 of each are kept for
# the test; all patches of the lines above and below are learnt from, turned and mirrored in all
# eight ways. A patch is a row of 64 features, less its own mean, so that brightness plays no role.
#
# This page learns from every tenth patch, which takes a minute or two. ``DASKGMM_EXAMPLES=full
# python image_patches.py`` learns from all of them, with up to 200 components, which takes a quarter
# of an hour of a processor.

import os
import time
import warnings
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.delayed import delayed
from matplotlib import pyplot
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images
from sklearn.exceptions import ConvergenceWarning

from daskgmm import GaussianMixture, MiniBatchGaussianMixture

Floats = NDArray[np.float64]

COMPONENTS, EVERY, INIT_SIZE = {
    "small": ((1, 4), 200, 1_000),  # for tests
    "": ((1, 10, 50), 10, 20_000),
    "full": ((1, 10, 50, 200), 1, 50_000),
}[os.environ.get("DASKGMM_EXAMPLES", "")]
SIDE, SHADES, RED_GREEN_BLUE = 8, 255, (0.299, 0.587, 0.114)
TEST = slice(160, 288)  # lines

photographs = [image @ RED_GREEN_BLUE / SHADES for image in load_sample_images().images]


def cut(image: Floats) -> Floats:
    """All patches of an image, (n, 64)."""
    return np.reshape(sliding_window_view(image, (SIDE, SIDE)), (-1, SIDE * SIDE))


def rows_of(image: Floats) -> Any:
    """What is learnt from: patches less their means, in float32."""
    patches = cut(image)[::EVERY]
    return (patches - patches.mean(axis=1, keepdims=True)).astype("float32")


bands = [
    photograph[lines] for photograph in photographs for lines in (slice(None, TEST.start), slice(TEST.stop, None))
]
views = [np.rot90(image, turns) for band in bands for image in (band, band.T) for turns in range(4)]
lengths = [-(-(view.shape[0] - SIDE + 1) * (view.shape[1] - SIDE + 1) // EVERY) for view in views]
X = da.concatenate(
    [
        da.from_delayed(delayed(rows_of)(view), (length, SIDE * SIDE), "float32")
        for view, length in zip(views, lengths, strict=True)
    ]
)
held_out = np.concatenate([rows_of(photograph[TEST]) for photograph in photographs])
print(f"{len(X):,} patches to learn from, {X.nbytes / 1e6:.0f} MB in {X.npartitions} blocks")
print(f"{len(held_out):,} patches held out")

# %%
# Online, then batch
# ------------------
# ``MiniBatchGaussianMixture`` learns from mini-batches: one pass brings it close. Batch EM goes on
# from there; three passes are enough. ``memory-limit`` 0 keeps nothing between passes, as with rows
# that are larger than memory.


def learn(k: int) -> GaussianMixture:
    """A mixture of k components."""
    online = MiniBatchGaussianMixture(k, init_size=INIT_SIZE, random_state=0).fit(X)
    batch = GaussianMixture(
        k,
        weights_init=online.weights_,
        means_init=online.means_,
        precisions_init=online.precisions_,
        max_iter=3,
        tol=0.05,  # nats, of about 200
    )
    batch.fit(X)
    return batch


warnings.simplefilter("ignore", ConvergenceWarning)  # three passes are all that is asked for
models = {}
with dask.config.set({"daskgmm.memory-limit": 0}):
    for k in COMPONENTS:
        start = time.perf_counter()
        models[k] = learn(k)
        print(f"{k:4d} components: learnt in {time.perf_counter() - start:.0f} s", flush=True)

# %%
# What it has learnt
# ------------------
# The leading directions of a component's covariance show what its patches have in common: an edge
# of one direction, a texture, or little of anything.

model = models[max(COMPONENTS)]
heaviest = np.argsort(model.weights_)[::-1][:: max(1, len(model.weights_) // 8)][:8]
figure, tiles = pyplot.subplots(5, len(heaviest), figsize=(8, 5.2), layout="constrained", squeeze=False)
for column, j in zip(tiles.T, heaviest, strict=True):
    values, directions = np.linalg.eigh(model.covariances_[j])
    for axes, direction in zip(column, directions.T[::-1], strict=False):
        axes.imshow(direction.reshape(SIDE, SIDE), cmap="gray")
        axes.set(xticks=[], yticks=[])
    column[0].set_title(f"{model.weights_[j]:.2%}\n±{SHADES * np.sqrt(values.mean()):.1f}", fontsize=10)
for axes, name in zip(tiles[:, 0], ("1st", "2nd", "3rd", "4th", "5th"), strict=True):
    axes.set_ylabel(name)
figure.suptitle("weight, deviation per pixel in shades of 255, and leading directions of some components")
pyplot.show()

# %%
# Removing noise
# --------------
# Of a photograph :math:`x` we see :math:`y`, with noise of standard deviation :math:`\sigma =
# 25/255` in every pixel. The most probable photograph balances the noise against the prior of all
# of its patches :math:`P_i x`, the expected patch log-likelihood:
#
# .. math::
#    \min_x \; \frac{\lambda}{2} \lVert x - y \rVert^2 - \sum_i \log p(P_i x),
#    \qquad \lambda = \frac{64}{\sigma^2} .
#
# Half-quadratic splitting gives each patch a stand-in :math:`z_i` that is :math:`P_i x` up to a
# variance of :math:`1/\beta`, and alternates while :math:`\beta` grows:
#
# - **patches**: the component :math:`j` under which the patch is most probable, its variance grown by
#   :math:`1/\beta`; then its Wiener filter,
#   :math:`z_i = \mu_j + \Sigma_j (\Sigma_j + I/\beta)^{-1} (P_i x - \mu_j)`;
# - **pixels**: the weighted mean of the noisy pixel and of all stand-ins that cover it.
#
# A mixture that sees noise is again a mixture: ``from_parameters`` makes it, and ``predict`` finds
# the components.

SIGMA = 25 / SHADES
BETAS = np.array([1, 4, 8, 16, 32]) / SIGMA**2


def filtered(model: GaussianMixture, patches: Floats, variance: float) -> Floats:
    """The most probable patches, given patches with noise of this variance; (n, 64)."""
    noise = variance * np.eye(SIDE * SIDE)
    seen = GaussianMixture.from_parameters(model.weights_, model.means_, model.covariances_ + noise)
    brightness = patches.mean(axis=1, keepdims=True)
    apart = patches - brightness
    clean: Floats = np.empty_like(apart)
    labels = seen.predict(apart)
    for j in np.unique(labels):
        mean, covariance = model.means_[j], model.covariances_[j]
        own = labels == j
        clean[own] = mean + (apart[own] - mean) @ np.linalg.solve(covariance + noise, covariance)
    clean += brightness
    return clean


def put_together(patches: Floats, shape: tuple[int, ...]) -> Floats:
    """The sum of the patches that cover each pixel: the reverse of ``cut``."""
    total = np.zeros(shape)
    down, across = shape[0] - SIDE + 1, shape[1] - SIDE + 1
    for i, pixels in enumerate(patches.reshape(down, across, SIDE * SIDE).transpose(2, 0, 1)):
        total[i // SIDE :, i % SIDE :][:down, :across] += pixels
    return total


def denoised(model: GaussianMixture, noisy: Floats) -> Floats:
    """The most probable photograph."""
    clean, covering = noisy, put_together(np.ones_like(cut(noisy)), noisy.shape)
    for beta in BETAS:
        stand_ins = put_together(filtered(model, cut(clean), 1 / beta), noisy.shape)
        clean = (SIDE**2 / SIGMA**2 * noisy + beta * stand_ins) / (SIDE**2 / SIGMA**2 + beta * covering)
    return clean


def psnr(image: Floats, truth: Floats) -> float:
    """Peak signal-to-noise ratio in decibels; the peak is 1."""
    return float(-10 * np.log10(np.mean((image - truth) ** 2)))


truths = [photograph[TEST] for photograph in photographs]
random = np.random.default_rng(0)
noisy = [truth + random.normal(scale=SIGMA, size=truth.shape) for truth in truths]
results = {k: [denoised(model, image) for image in noisy] for k, model in models.items()}

# %%
# Result
# ------
# Peak signal-to-noise ratio of the test lines, which no model has seen. Of all patches, in the full
# setting, it is
#
# .. code-block:: text
#
#    components  held-out log-likelihood    PSNR china   flower    mean gain
#         noisy                               20.17 dB 20.13 dB
#             1               80.73 nats      23.45 dB 25.80 dB    +4.47 dB
#            10              172.69 nats      25.17 dB 29.84 dB    +7.35 dB
#            50              178.69 nats      25.58 dB 30.21 dB    +7.75 dB
#           200              180.55 nats      25.61 dB 30.27 dB    +7.79 dB
#
# and of every tenth patch:

before = [psnr(*pair) for pair in zip(noisy, truths, strict=True)]
print("components  held-out log-likelihood    PSNR china   flower    mean gain")
print(f"{'noisy':>10}  {'':23}    {before[0]:7.2f} dB {before[1]:5.2f} dB")
gains = {}
for k, model in models.items():
    after = [psnr(*pair) for pair in zip(results[k], truths, strict=True)]
    gains[k] = np.mean(after) - np.mean(before)
    china, flower, score = *after, model.score(held_out)
    print(f"{k:10d}  {score:18.2f} nats    {china:7.2f} dB {flower:5.2f} dB    {gains[k]:+.2f} dB")

figure, panels = pyplot.subplots(4, 1, figsize=(8, 7.4), layout="constrained")
shown = {
    "held-out lines": truths[0],
    f"with noise of 25/255: {before[0]:.1f} dB": noisy[0],
    **{
        f"by {k} component{'s' * (k > 1)}: {psnr(results[k][0], truths[0]):.1f} dB": results[k][0]
        for k in (min(COMPONENTS), max(COMPONENTS))
    },
}
for axes, (title, image) in zip(panels, shown.items(), strict=True):
    axes.imshow(image, cmap="gray", vmin=0, vmax=1)
    axes.set(title=title, xticks=[], yticks=[])
pyplot.show()
