"""Watch a Gaussian mixture follow a stream that drifts.

Four components wander in the plane, and one of them jumps. Batches of 200 rows arrive one after another;
``partial_fit`` learns from each and drops it. The terminal shows the log-likelihood of each batch, under the
model before it was learnt, and the effective number of rows in the model's statistics. With matplotlib
installed, ``stream.png`` shows where the means were, and where the model saw them.

    python examples/stream.py --output stream-output
"""

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from daskgmm import MiniBatchGaussianMixture

Floats = NDArray[np.float64]

BATCH, N_BATCHES, HALF_LIFE = 200, 600, 1500
JUMP = 0.6  # of the stream, when the third component moves at once
WEIGHTS = np.array([0.4, 0.3, 0.2, 0.1])
BARS = "▁▂▃▄▅▆▇█"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


def true_means(share: float) -> Floats:
    """Where the components are when this share of the stream has passed, (4, 2)."""
    angle = np.pi / 2 * np.arange(4) + np.pi * share
    means = 6.0 * np.column_stack([np.cos(angle), np.sin(angle)])
    if share >= JUMP:
        means[2] *= 1.9  # outwards
    return means


def draw_batch(share: float, random: np.random.Generator) -> Floats:
    """One batch of the stream, (BATCH, 2)."""
    component = random.choice(4, BATCH, p=WEIGHTS)
    rows: Floats = true_means(share)[component] + random.normal(size=(BATCH, 2))
    return rows


def true_log_likelihood(x: Floats, share: float) -> float:
    """Mean log-likelihood of a batch under the mixture that it was drawn from."""
    squares = ((x[:, None] - true_means(share)) ** 2).sum(axis=2)
    return float(np.log(np.exp(-squares / 2) @ WEIGHTS / (2 * np.pi)).mean())


@dataclass
class History:
    """What happened at each batch: numbers for the display and the figure."""

    rows: list[int] = field(default_factory=list)
    log_likelihood: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    effective: list[float] = field(default_factory=list)
    means: list[Floats] = field(default_factory=list)
    truth: list[Floats] = field(default_factory=list)


def line(values: list[float], width: int = 50) -> str:
    """All values as a row of bars, each the mean of some; the lowest is the shortest."""
    shown = np.array([part.mean() for part in np.array_split(values, min(width, len(values)))])
    low, high = shown.min(), shown.max()
    levels = np.round((shown - low) / max(high - low, 1e-9) * (len(BARS) - 1)).astype(int)
    return "".join(BARS[level] for level in levels)


def display(history: History, seconds: float) -> Panel:
    """The stream so far, 80 columns wide."""
    table = Table.grid(padding=(0, 2))
    table.add_column(width=14)
    table.add_column(width=50)
    table.add_column(justify="right", width=8)
    for name, values, colour, form in (
        ("log-likelihood", history.log_likelihood, "cyan", "{:.3f}"),
        ("best possible", history.best, "green", "{:.3f}"),
        ("effective rows", history.effective, "yellow", "{:,.0f}"),
    ):
        table.add_row(name, Text(line(values), style=colour), form.format(values[-1]))
    done, total = history.rows[-1], BATCH * N_BATCHES
    where = Text("means  ", style="dim")
    for (x, y), colour in zip(history.means[-1], COLOURS, strict=True):
        where.append(f"({x:5.1f},{y:5.1f})  ", style=colour)
    bar = Table.grid(padding=(0, 2))
    bar.add_row(ProgressBar(total=total, completed=done, width=40), f"{done:,} rows, {seconds:.1f} s")
    return Panel(Group(table, where, bar), title="a stream that drifts", width=80)


def follow(console: Console, pause: float) -> History:
    """Learn from the stream, and show it."""
    random = np.random.default_rng(0)
    model = MiniBatchGaussianMixture(4, half_life=HALF_LIFE, init_size=1000, random_state=0)
    history, began = History(), time.perf_counter()
    with Live(console=console, refresh_per_second=20) as live:
        for number in range(N_BATCHES):
            share = number / N_BATCHES
            batch = draw_batch(share, random)
            model.partial_fit(batch)
            if not hasattr(model, "means_"):  # the first rows wait until they can seed the model
                continue
            history.rows.append(model.n_samples_seen_)
            history.log_likelihood.append(model.lower_bound_)  # before the batch was learnt
            history.best.append(true_log_likelihood(batch, share))
            history.effective.append(model.effective_sample_size_)
            history.means.append(model.means_)
            history.truth.append(true_means(share))
            live.update(display(history, time.perf_counter() - began))
            time.sleep(pause)
    return history


def draw(history: History, path: Path) -> None:
    """Means over time, and how much likelihood the model falls short of the truth."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows, means, truth = np.array(history.rows) / 1000, np.array(history.means), np.array(history.truth)
    figure, axes = pyplot.subplots(3, 1, figsize=(8, 8), sharex=True, layout="constrained")
    for axis, feature, name in zip(axes, (0, 1), ("first feature", "second feature"), strict=False):
        for j, colour in enumerate(COLOURS):
            # The components of the model come in any order: each is compared with the one it began at.
            nearest = int(np.argmin(((truth[0] - means[0, j]) ** 2).sum(axis=1)))
            shade: dict[str, Any] = {"color": colour, "linewidth": 1.6}
            axis.plot(rows, truth[:, nearest, feature], color="0.55", linewidth=1, linestyle=(0, (4, 2)))
            axis.plot(rows, means[:, j, feature], **shade)
        axis.set_ylabel(f"means, {name}")
    axes[0].plot([], [], color="0.55", linestyle=(0, (4, 2)), label="truth")
    axes[0].plot([], [], color=COLOURS[0], label="model, a colour for each component")
    axes[0].legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=2)
    short = np.array(history.best) - np.array(history.log_likelihood)
    axes[2].plot(rows, short, color="0.8", linewidth=0.6)
    axes[2].plot(rows[9:], np.convolve(short, np.full(10, 0.1), mode="valid"), color="0.1", linewidth=1.4)
    axes[2].set_yscale("symlog", linthresh=0.1)
    axes[2].set_ylabel("nats per row below the truth")
    axes[2].set_xlabel("rows seen, thousands")
    for axis in axes:
        axis.axvline(JUMP * BATCH * N_BATCHES / 1000, color="0.8", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"A stream that drifts, and jumps once; half-life {HALF_LIFE:,} rows")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Follow the stream, then draw it."""
    parser = argparse.ArgumentParser(description="Follow a drifting mixture batch by batch.")
    parser.add_argument("--output", type=Path, default=Path("stream-output"), metavar="DIR")
    parser.add_argument("--pause", type=float, default=0.01, help="seconds between batches")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    history = follow(Console(), options.pause)
    try:
        draw(history, options.output / "stream.png")
    except ImportError:
        print("no picture: matplotlib is not installed")
    else:
        print(f"picture: {options.output / 'stream.png'}")


if __name__ == "__main__":
    main()
