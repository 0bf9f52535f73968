"""Fit a Gaussian mixture to a Zarr store in less memory than the data would take.

Every overlapping 8x8 grey patch of the two photographs that ship with scikit-learn makes 531,720
rows of 64 float32 features, 136 MB. Another process writes them to a Zarr store, a 16-component
mixture with full covariances is fitted to that store in blocks of 1 MiB, and unseen parts of the
photographs are scored. With matplotlib installed, ``patches.png`` shows what was learnt.

    python examples/quickstart.py --output quickstart-output

What is counted is the highest resident memory of this process during the fit, less that of the idle
process: one that has imported all libraries and has made two tiny fits, so that compiled code is
loaded. On a first run the process that writes the rows also compiles, for a compiler keeps a
hundred megabytes, in which a fit could hide its own. The program ends with an error where the
difference is not below the size of the data; it is with up to 8 threads.
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
from dask.system import CPU_COUNT
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images

from daskgmm import GaussianMixture

if sys.platform != "win32":
    import resource

SIDE = 8  # pixels along a patch
PHOTOGRAPHS, TALL, WIDE = 2, 420, 633  # patches down and across one photograph of 427 x 640 pixels
N_ROWS = PHOTOGRAPHS * TALL * WIDE
STRIP = 5  # lines of patches written at once: one chunk of 3,165 rows, 0.8 MiB
BLOCK = "1 MiB"  # rows that a thread works on at a time: one chunk
MOST_THREADS = 8  # each needs some memory of its own
SHADES, RED_GREEN_BLUE = 255, (0.299, 0.587, 0.114)


def write_patches(path: Path) -> None:
    """Write all patches to a Zarr store, strip by strip."""
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
        elif sys.platform == "linux":  # what getrusage tells there may be of the program before this one
            lines = Path("/proc/self/status").read_text().splitlines()
            (mark,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
            self.peak = int(mark) * 1024
        else:
            unit = 1 if sys.platform == "darwin" else 1024
            self.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    @property
    def above_idle(self) -> int:
        """What the block took, in bytes."""
        return self.peak - self.idle


def warm_up(patches: Path, place: Path) -> None:
    """Load and start all that a fit needs, and compile it if that was never done.

    Two tiny fits: of a few patches, whose pixels are so much alike that sums are in float64, and of
    noise, where float32 will do. There is compiled code for either.
    """
    stored = zarr.open_array(patches, mode="r")
    few = np.concatenate([stored[row : row + 64] for row in range(0, N_ROWS, N_ROWS // 8)])
    noise = np.random.default_rng(0).normal(size=few.shape).astype("float32")
    for rows in (few, noise):
        store = zarr.create_array(place, data=rows, chunks=(64, SIDE * SIDE), overwrite=True)
        tiny = GaussianMixture(2, tol=0.1, init_params="kmeans", random_state=0)
        tiny.fit(store, sample_weight=np.ones(len(rows), dtype="float32"))


def prepare(output: Path) -> None:
    """Write the rows, and keep compiled code on disk; runs in another process."""
    write_patches(output / "patches.zarr")
    warm_up(output / "patches.zarr", output / "warm-up.zarr")


def draw(model: Any, negative_log_likelihood: Sequence[float], path: Path) -> None:
    """Draw each component's mean and leading directions as tiles, beside the course of the fit."""
    # Optional: comes with the extra "examples".
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    heaviest = np.argsort(model.weights_)[::-1]
    columns = 2 if len(heaviest) > 8 else 1
    lines = -(-len(heaviest) // columns)
    figure = Figure(figsize=(3.7 * columns + 4.6, max(4, 1.2 + 0.51 * lines)))
    figure.set_layout_engine("constrained", w_pad=0.1)
    grid = figure.add_gridspec(1, columns + 1, width_ratios=[3.7] * columns + [4.6])
    for column in range(columns):
        axes = figure.add_subplot(grid[column])
        draw_tiles(axes, model, heaviest[column * lines : (column + 1) * lines])
    axes = figure.add_subplot(grid[columns])
    values = np.array(negative_log_likelihood)
    axes.plot(np.arange(len(values)) + 1, values, "k.-")
    # The first steps are so large that the others would look flat beside them.
    above = int(np.argmax(values < values[-1] + 2))
    axes.set_ylim(values[-1] - 0.1, values[above] + 0.1)
    told = f" (the first {above} lie above)" if above else ""
    axes.set(xlabel=f"EM iteration{told}", ylabel="negative log-likelihood per patch (nats)")
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


def number_of_threads(asked: int | None) -> int:
    """As asked for, here or in Dask's configuration; else one for each core, within reason."""
    return int(asked or dask.config.get("num_workers", None) or min(MOST_THREADS, CPU_COUNT))


def check_promise(above_idle: int, n_bytes: int) -> None:
    """End with an error where the fit took as much memory as the data would."""
    if above_idle >= n_bytes:
        sys.exit(
            f"error: the fit took {above_idle / 1e6:.1f} MB above the idle process, which is not below "
            f"the {n_bytes / 1e6:.1f} MB of its data. Fewer --threads need less."
        )


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Fit a mixture to image patches in a Zarr store.")
    parser.add_argument("--output", type=Path, default=Path("quickstart-output"), metavar="DIR")
    parser.add_argument("--components", type=int, default=16)
    parser.add_argument("--max-iter", type=int, default=50)
    told = f"that compute at a time; by default one for each core, and no more than {MOST_THREADS}"
    parser.add_argument("--threads", type=int, help=told)
    return parser.parse_args()


def report(models: Sequence[GaussianMixture], patches: Path, held_out: NDArray[np.float32]) -> None:
    """Print the course of the first model's fit, and how likely unseen patches are under each model."""
    print("\niteration  log-likelihood per patch")
    for iteration, log_likelihood in enumerate(models[0].lower_bounds_, start=1):
        print(f"{iteration:9d}  {log_likelihood:24.4f}")
    print("\nheld-out log-likelihood per patch")
    for model in models:
        score = model.score(patches, sample_weight=held_out)
        print(f"{model.n_components:9d} component(s)  {score:11.4f}")


def main() -> None:
    """Write the store, fit, score and draw."""
    given = options()
    given.output.mkdir(parents=True, exist_ok=True)
    patches, picture = given.output / "patches.zarr", given.output / "patches.png"
    # A process of its own, so that what it holds is not counted below.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        other.submit(prepare, given.output).result()
    n_bytes = zarr.open_array(patches, mode="r").nbytes
    print(f"{N_ROWS:,} patches of {SIDE}x{SIDE} pixels, {n_bytes / 1e6:.0f} MB, in {patches}")
    train, held_out = split()
    dask.config.set(num_workers=number_of_threads(given.threads))
    warm_up(patches, given.output / "warm-up.zarr")

    # The patches stay as they are, brightness included: with that removed the covariances would
    # be singular. The default reg_covar=1e-6 is the variance of rounding to 255 shades, 1/12/255².
    mixture = GaussianMixture(
        given.components,
        tol=0.01,  # nats per patch, of about 200
        max_iter=given.max_iter,
        # On a third of the rows that the default would keep: that ends higher by .2 nats here, and took
        # 145 MB with two threads, 211 MB with eight.
        init_params="kmeans",
        block_size=BLOCK,
        random_state=0,
    )
    start = time.perf_counter()
    # Nothing is kept between passes: this shows what rows larger than memory need.
    with dask.config.set({"daskgmm.memory-limit": 0}), PeakMemory() as memory:
        mixture.fit(patches, sample_weight=train)
    seconds = time.perf_counter() - start

    single = GaussianMixture(1, block_size=BLOCK)
    report((mixture, single.fit(patches, sample_weight=train)), patches, held_out)
    print(f"\nwall time of the fit    {seconds:6.1f} s")
    print(f"idle process            {memory.idle / 1e6:6.1f} MB")
    print(f"peak of the fit         {memory.peak / 1e6:6.1f} MB")
    print(f"peak above idle         {memory.above_idle / 1e6:6.1f} MB")
    print(f"size of the data        {n_bytes / 1e6:6.1f} MB")
    try:
        draw(mixture, [-bound for bound in mixture.lower_bounds_], picture)
    except ImportError:
        print("\nno picture: matplotlib is not installed")
    else:
        print(f"\npicture: {picture}")
    check_promise(memory.above_idle, n_bytes)


if __name__ == "__main__":
    main()
