"""Fit a Gaussian mixture to a Zarr store, and measure the memory it takes.

Every overlapping 8x8 grey patch of the two photographs that ship with scikit-learn makes 531,720
rows of 64 float32 features, 136 MB. Another process writes them to a Zarr store, a 16-component
mixture with full covariances is fitted to that store in blocks of 8 MiB, and unseen parts of the
photographs are scored. With matplotlib installed, ``patches.png`` shows what was learnt.

    python examples/quickstart.py --output quickstart-output
"""

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import dask
import numpy as np
import psutil
import zarr
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images

from daskgmm import GaussianMixture

if sys.platform != "win32":
    import resource

SIDE = 8  # pixels along a patch
PHOTOGRAPHS, TALL, WIDE = 2, 420, 633  # patches down and across one photograph of 427 x 640 pixels
N_ROWS = PHOTOGRAPHS * TALL * WIDE
STRIP = 10  # lines of patches written at once: one chunk of 6,330 rows, 1.5 MiB
SHADES, RED_GREEN_BLUE = 255, (0.299, 0.587, 0.114)


def write_patches(path: Path) -> None:
    """Write all patches to a Zarr store, strip by strip; runs in another process."""
    store = zarr.create_array(
        path,
        shape=(N_ROWS, SIDE * SIDE),
        chunks=(STRIP * WIDE, SIDE * SIDE),
        dtype="float32",
        overwrite=True,
    )
    row = 0
    for photograph in load_sample_images().images:
        grey = (photograph @ RED_GREEN_BLUE / SHADES).astype("float32")
        patches = sliding_window_view(grey, (SIDE, SIDE))  # (420, 633, 8, 8), nothing copied
        for top in range(0, TALL, STRIP):
            strip = patches[top : top + STRIP].reshape(-1, SIDE * SIDE)
            store[row : row + len(strip)] = strip
            row += len(strip)


def split() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights (0 or 1 per row) of the patches to learn from and of those held out.

    Neighbouring patches share pixels, so a random split would leak. Three bands across each
    photograph are held out instead, with a gap on either side: no pixel is on both sides.
    A fifth of the rows has weight zero for the fit, a tenth is scored; the fit looks at no row of
    weight zero.
    """
    line = np.arange(N_ROWS) // WIDE % TALL % 140  # of the patch's top edge, within its band
    train = line < 112
    held_out = (line >= 112 + SIDE - 1) & (line < 140 - SIDE + 1)
    return train.astype("float32"), held_out.astype("float32")


class PeakMemory:
    """Highest resident memory of this process inside a ``with`` block, in bytes.

    The operating system's own high-water mark, which misses nothing. Linux can set it back to
    the present value first; elsewhere it counts from the start of the process and errs upwards.
    """

    def __enter__(self) -> "PeakMemory":
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self.idle = int(psutil.Process().memory_info().rss)
        return self

    def __exit__(self, *_: object) -> None:
        if sys.platform == "win32":
            self.peak = int(psutil.Process().memory_info().peak_wset)
        else:
            unit = 1 if sys.platform == "darwin" else 1024
            self.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def warm_up(path: Path) -> None:
    """Compile and start all that a fit needs, so that the idle process is measured fairly."""
    noise = np.random.default_rng(0).normal(size=(256, SIDE * SIDE)).astype("float32")
    store = zarr.create_array(path, data=noise, chunks=(64, SIDE * SIDE), overwrite=True)
    tiny = GaussianMixture(2, tol=0.1, init_params="subsample", random_state=0)
    tiny.fit(store, sample_weight=np.ones(len(noise), dtype="float32"))


def draw(model: Any, negative_log_likelihood: Sequence[float], path: Path) -> None:
    """Draw each component's mean and leading directions as tiles, beside the course of the fit."""
    # Optional: comes with the extra "examples".
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    heaviest = np.argsort(model.weights_)[::-1]
    columns = 2 if len(heaviest) > 8 else 1
    lines = -(-len(heaviest) // columns)
    figure = Figure(figsize=(3.7 * columns + 4.6, max(4, 1.2 + 0.51 * lines)), layout="constrained")
    grid = figure.add_gridspec(1, columns + 1, width_ratios=[3.7] * columns + [4.6])
    for column in range(columns):
        axes = figure.add_subplot(grid[column])
        draw_tiles(axes, model, heaviest[column * lines : (column + 1) * lines])
    axes = figure.add_subplot(grid[columns])
    axes.plot(range(1, len(negative_log_likelihood) + 1), negative_log_likelihood, "k.-")
    axes.set(xlabel="EM iteration", ylabel="negative log-likelihood per patch (nats)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    figure.suptitle(f"{len(heaviest)} Gaussian components of {N_ROWS:,} image patches")
    figure.savefig(path, dpi=110)


def draw_tiles(axes: Any, model: Any, components: NDArray[np.intp]) -> None:
    """One line of tiles per component: its mean, then its five widest directions."""
    pitch = SIDE + 1  # one pixel between tiles
    titles = ["mean", "1st", "2nd", "3rd", "4th", "5th"]
    left_edges = np.arange(len(titles)) * pitch + [0, 1, 1, 1, 1, 1]  # a wider gap after the mean
    canvas = np.full((len(components) * pitch - 1, len(titles) * pitch), np.nan)
    for line, component in enumerate(components):
        _, directions = np.linalg.eigh(model.covariances_[component])
        widest = directions[:, ::-1][:, : len(titles) - 1].T
        # Symmetric about mid-grey; the sign is arbitrary, the largest pixel is drawn bright.
        widest = widest / widest[np.arange(len(widest)), np.abs(widest).argmax(axis=1)][:, None]
        tiles = [model.means_[component], *(0.5 + 0.5 * widest)]
        for left, tile in zip(left_edges, tiles, strict=True):
            canvas[line * pitch :, left:][:SIDE, :SIDE] = tile.reshape(SIDE, SIDE)
    axes.set_facecolor("lightsteelblue")  # seen between tiles: neither black nor white
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks(left_edges + SIDE / 2 - 0.5, titles)
    axes.set_yticks(
        np.arange(len(components)) * pitch + SIDE / 2 - 0.5,
        [f"{model.weights_[component]:.1%}" for component in components],
    )
    axes.set(xlabel="mean and leading directions of the covariance", ylabel="weight")
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)


def main() -> None:
    """Write the store, fit, score and draw."""
    parser = argparse.ArgumentParser(description="Fit a mixture to image patches in a Zarr store.")
    parser.add_argument("--output", type=Path, default=Path("quickstart-output"), metavar="DIR")
    parser.add_argument("--components", type=int, default=16)
    parser.add_argument("--max-iter", type=int, default=50)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    patches = options.output / "patches.zarr"

    # A process of its own writes, so that what it holds is not counted below.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as writer:
        writer.submit(write_patches, patches).result()
    n_bytes = zarr.open_array(patches, mode="r").nbytes
    print(f"{N_ROWS:,} patches of {SIDE}x{SIDE} pixels, {n_bytes / 1e6:.0f} MB, in {patches}")
    train, held_out = split()
    warm_up(options.output / "warm-up.zarr")

    # The patches stay as they are, brightness included: with that removed the covariances would
    # be singular. The default reg_covar=1e-6 is the variance of rounding to 255 shades, 1/12/255².
    mixture = GaussianMixture(
        options.components,
        tol=0.01,  # nats per patch, of about 200
        max_iter=options.max_iter,
        block_size="8 MiB",
        random_state=0,
    )
    start = time.perf_counter()
    # Nothing is kept between passes: this shows what rows larger than memory need.
    with dask.config.set({"daskgmm.memory-limit": 0}), PeakMemory() as memory:
        mixture.fit(patches, sample_weight=train)
    seconds = time.perf_counter() - start

    print("\niteration  log-likelihood per patch")
    for iteration, log_likelihood in enumerate(mixture.lower_bounds_, start=1):
        print(f"{iteration:9d}  {log_likelihood:24.4f}")
    single = GaussianMixture(1, block_size="8 MiB").fit(patches, sample_weight=train)
    print("\nheld-out log-likelihood per patch")
    for model in (mixture, single):
        score = model.score(patches, sample_weight=held_out)
        print(f"{model.n_components:9d} component(s)  {score:11.4f}")
    print(f"\nwall time of the fit    {seconds:6.1f} s")
    print(f"idle process            {memory.idle / 1e6:6.1f} MB")
    print(f"peak of the fit         {memory.peak / 1e6:6.1f} MB")
    print(f"peak above idle         {(memory.peak - memory.idle) / 1e6:6.1f} MB")
    print(f"size of the data        {n_bytes / 1e6:6.1f} MB")

    try:
        draw(mixture, [-bound for bound in mixture.lower_bounds_], options.output / "patches.png")
    except ImportError:
        print("\nno picture: matplotlib is not installed")
    else:
        print(f"\npicture: {options.output / 'patches.png'}")


if __name__ == "__main__":
    main()
