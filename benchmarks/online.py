"""Print what online EM reaches, each figure beside its target.

    python benchmarks/online.py                      # all sections, about half an hour on two cores
    python benchmarks/online.py one-pass drift       # some
    python benchmarks/online.py published --seeds 5  # fewer seeds
    python benchmarks/online.py cost --before PYTHON # against another daskgmm, that of this interpreter

A gap is the mean log-likelihood of held-out rows under the truth less that under the model; p counts the free
parameters, and p / (2n) is the gap to expect of maximum likelihood on n rows. Medians over seeds.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import zarr
from common import JUDGED_ROWS, Peer, in_turn, judged, origins, slower
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import load_iris
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture as Sklearn

from daskgmm import GaussianMixture, MiniBatchGaussianMixture

WINDOW_BLOCKS = 4  # of rows, that a fit holds at once to draw each mini-batch from: see docs/memory.md
Row = tuple[str, str, str]  # what, found, target
ONE_PASS = {"k=8 d=4 means 3²I": (8, 4, 3.0, 2.5), "k=16 d=16 means I": (16, 16, 1.0, 2.5)}
ONE_PASS |= {"k=8 d=4 means 1.5²I": (8, 4, 1.5, 4.0)}


def truth(k: int, d: int, scale: float, random: np.random.Generator) -> GaussianMixture:
    """Covariances I + AAᵀ with A ~ .4·N(0, 1), weights Dirichlet(5), means N(0, scale²)."""
    a = 0.4 * random.normal(size=(k, d, d))
    covariances = np.eye(d) + a @ a.transpose(0, 2, 1)
    return mixture_of(random.dirichlet(np.full(k, 5.0)), scale * random.normal(size=(k, d)), covariances)


def mixture_of(weights: Any, means: Any, covariances: Any) -> GaussianMixture:
    """A mixture with full covariances."""
    return GaussianMixture.from_parameters(weights, means, covariances)


def n_parameters(mixture: GaussianMixture) -> int:
    """Free ones: weights, means and covariances."""
    k, d = mixture.means_.shape
    return int(k - 1 + k * d + k * d * (d + 1) // 2)


def draw(mixture: GaussianMixture, n: int, random: np.random.Generator, sort: bool = False) -> tuple[Any, Any]:
    """Rows and their components, in random order unless sorted by component."""
    k, d = mixture.means_.shape
    labels = random.choice(k, n, p=mixture.weights_)
    if sort:
        labels.sort()
    lower = np.linalg.cholesky(mixture.covariances_)
    x = random.standard_normal((n, d))
    for j in range(k):
        rows = labels == j
        x[rows] = x[rows] @ lower[j].T + mixture.means_[j]
    return x, labels


def start_of(mixture: GaussianMixture) -> dict[str, Any]:
    """A mixture as the start of an estimator."""
    names = ("weights_init", "means_init", "precisions_init")
    return dict(zip(names, (mixture.weights_, mixture.means_, mixture.precisions_), strict=True))


def batch_em(x: Any, start: GaussianMixture, tol: float = 1e-7, **settings: Any) -> GaussianMixture:
    """Converged batch EM."""
    model = GaussianMixture(start.n_components, tol=tol, max_iter=500, **start_of(start), **settings)
    model.fit(x)
    return model


def plain_em(x: Any, true: GaussianMixture) -> GaussianMixture:
    """Plain EM on 20,000 rows, from the truth: where components overlap, it stops short of those rows' optimum."""
    return batch_em(x[:20_000], true, acceleration=None)


def one_pass(seeds: int) -> Iterator[Row]:
    """One pass from EM on 20,000 rows, n = 1e6; and from the optimum on those, which is further from the truth."""
    n = 10**6
    for name, (k, d, scale, target) in ONE_PASS.items():
        gaps = []
        for seed in range(seeds):
            random = np.random.default_rng(seed)
            true = truth(k, d, scale, random)
            x, held = draw(true, n, random)[0], draw(true, n, random)[0]
            starts = plain_em(x, true), batch_em(x[:20_000], true)
            unit, best = n_parameters(true) / (2 * n), true.score(held)
            after = [MiniBatchGaussianMixture(k, random_state=seed, **start_of(s)).fit(x) for s in starts]
            models = (*after, *starts, batch_em(x, true, 1e-8))
            gaps.append([(best - m.score(held)) / unit for m in models])
        online, further, first, optimum, batch = np.median(gaps, axis=0)
        worst = np.max(gaps, axis=0)
        yield name, f"{online:.2f} p/2n (worst {worst[0]:.2f})", f"<= {target} p/2n"
        yield f"{name}: converged batch EM", f"{batch:.2f} p/2n", ""
        yield f"{name}: the start", f"{first:.1f} p/2n", ""
        yield f"{name}: from the optimum", f"{further:.2f} p/2n (worst {worst[1]:.2f})", ""
        yield f"{name}: that optimum", f"{optimum:.1f} p/2n", ""


def iris_mixture() -> GaussianMixture:
    """Proportions, means and covariances of the three species."""
    data = load_iris()
    groups = [data.data[data.target == j] for j in range(3)]
    covariances = np.stack([np.cov(g.T, bias=True) for g in groups])
    return mixture_of(np.full(3, 1 / 3), np.stack([g.mean(axis=0) for g in groups]), covariances)


def plane_mixture() -> GaussianMixture:
    """The second mixture of Nguyen, Forbes & McLachlan (2020)."""
    sigma = np.array([[0.09, 0.09], [0.05, 0.1], [0.035, 0.035]])
    means = np.array([[0.3, 0.3], [0.85, 0.35], [0.45, 0.85]])
    return mixture_of(np.array([0.5, 0.3, 0.2]), means, np.stack([np.diag(s**2) for s in sigma]))


def published(seeds: int, max_iter: int = 1) -> Iterator[Row]:
    """The published simulation, n = 1e6, from the library's own seeding."""
    n = 10**6
    for name, true, target in (("(a) iris", iris_mixture(), 1e-4), ("(b) plane", plane_mixture(), 1e-3)):
        gaps, differences, seconds, passes = [], [], [], []
        for seed in range(seeds):
            random = np.random.default_rng(seed)
            (x, labels), (held, _) = draw(true, n, random), draw(true, n, random)
            began = perf_counter()
            model = MiniBatchGaussianMixture(3, random_state=seed, max_iter=max_iter).fit(x)
            seconds.append(perf_counter() - began)
            passes.append(model.n_iter_)
            gaps.append(true.score(held) - model.score(held))
            scores = [adjusted_rand_score(labels, found) for found in (true.predict(x), model.predict(x))]
            differences.append(scores[0] - scores[1])
        good = np.sum((np.array(gaps) <= target) & (np.array(differences) <= 0.002))
        yield f"{name}: gap", f"median {np.median(gaps):.1e}, worst {max(gaps):.1e}", f"<= {target:.0e}"
        yield f"{name}: adjusted Rand index below the truth's", f"worst {max(differences):.5f}", "<= 0.002"
        yield f"{name}: seeds that meet both", f"{good} of {seeds}", "49 of 50"
        told = f"{np.median(seconds):.2f} s, {max(passes)} pass(es) after the survey"
        yield f"{name}: fit", told, "<= 10 passes"


def rate(seeds: int) -> Iterator[Row]:
    """RMSE of the parameters against n, one pass each."""
    true, sizes = plane_mixture(), np.array([10**4, 10**5, 10**6, 10**7])
    errors = np.zeros((seeds, len(sizes)))
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        x, _ = draw(true, int(sizes[-1]), random)
        for i, n in enumerate(sizes):
            found = MiniBatchGaussianMixture(3, random_state=seed).fit(x[:n])
            _, order = linear_sum_assignment(((true.means_[:, None] - found.means_) ** 2).sum(axis=2))
            parts = (
                found.weights_[order] - true.weights_,
                found.means_[order] - true.means_,
                found.covariances_[order] - true.covariances_,
            )
            errors[seed, i] = np.mean(np.concatenate([p.ravel() for p in parts]) ** 2)
    rmse = np.sqrt(errors.mean(axis=0))
    for n, value in zip(sizes, rmse, strict=True):
        yield f"RMSE, n = {n:,}", f"{value:.2e}", ""
    yield "slope", f"{np.polyfit(np.log(sizes), np.log(rmse), 1)[0]:.3f}", "-0.50 ± 0.05"


def sorted_rows(seeds: int) -> Iterator[Row]:
    """Rows sorted by component in a store, against the same rows shuffled; from EM on 20,000 rows, n = 1e6.

    All in memory at once, and in four windows one after the other.
    """
    for (name, (k, d, scale, _)), windows in itertools.product(ONE_PASS.items(), (1, 4)):
        gaps = []
        for seed in range(seeds):
            random = np.random.default_rng(seed)
            true = truth(k, d, scale, random)
            x, held = draw(true, 10**6, random, sort=True)[0], draw(true, 10**6, random)[0]
            start, pair = start_of(plain_em(random.permutation(x), true)), []
            size = int(1.05 * x.nbytes / windows / WINDOW_BLOCKS)  # pieces do not fill a window to the last byte
            for rows in (x, random.permutation(x)):
                with tempfile.TemporaryDirectory() as folder:
                    store = write(f"{folder}/x.zarr", rows, 1024)
                    model = MiniBatchGaussianMixture(k, block_size=size, random_state=seed, **start).fit(store)
                pair.append(true.score(held) - model.score(held))
            gaps.append(pair)
        found = np.median(gaps, axis=0)
        told = ", ".join(f"{gap * 2e6 / n_parameters(true):.2f} p/2n" for gap in found)
        yield f"{name}, {windows} window(s): sorted, shuffled", told, ""
        yield f"{name}, {windows} window(s): sorted / shuffled", f"{found[0] / found[1]:.2f}", "<= 1.5"


def write(place: str, rows: Any, chunk: int = 16384) -> str:
    """Rows in a Zarr store."""
    array = zarr.create_array(place, shape=rows.shape, chunks=(chunk, rows.shape[1]), dtype=rows.dtype)
    array[...] = rows
    return place


def beats_the_sample(seeds: int) -> Iterator[Row]:
    """n = 2e6, d = 32, k = 64: one pass against scikit-learn converged on 50,000 of the rows."""
    gains, ours, theirs = [], [], []
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        true = truth(64, 32, 1.0, random)
        x, held = draw(true, 2 * 10**6, random)[0], draw(true, 10**5, random)[0]
        began = perf_counter()
        model = MiniBatchGaussianMixture(64, random_state=seed).fit(x)
        ours.append(perf_counter() - began)
        began = perf_counter()
        sample = Sklearn(64, random_state=seed, max_iter=200).fit(x[random.choice(len(x), 50_000, replace=False)])
        theirs.append(perf_counter() - began)
        gains.append(model.score(held) - sample.score(held))
        truly = true.score(held) - model.score(held)
        yield f"seed {seed}: gap of one pass", f"{truly:.4f} nats", ""
    yield "gain per held-out row", f"{np.median(gains):.3f} nats (least {min(gains):.3f})", ">= 0.15"
    yield "time, fit with seeding / scikit-learn on the sample", f"{max(ours):.0f} s / {min(theirs):.0f} s", "less"


def drift(seeds: int) -> Iterator[Row]:
    """A stream of batches of 500, k = 8, d = 4, means 12σ apart; then one mean jumps by 5σ."""
    b, half_life, k, d, lives = 500, 20_000, 8, 4, 12
    per_life, gaps = half_life // b, []
    gamma = 1 - 2 ** (-b / half_life)
    floor = n_parameters(truth(k, d, 1.0, np.random.default_rng(0))) * gamma / (2 * b * (2 - gamma))
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        true = apart(k, d, 12.0, random)
        model = MiniBatchGaussianMixture(k, half_life=half_life, random_state=seed, init_size=5000)
        model.partial_fit(draw(true, 5000, random)[0])
        series = []
        for phase in range(2):
            if phase:
                means = true.means_.copy()
                step = random.normal(size=d)
                means[int(np.argmax(true.weights_))] += 5 * step / np.linalg.norm(step)
                true = mixture_of(true.weights_, means, true.covariances_)
            for _ in range(lives * per_life):
                x, _ = draw(true, b, random)
                series.append(true.score(x) - model.score(x))
                model.partial_fit(x)
        gaps.append(np.array(series).reshape(2, lives, per_life).mean(axis=2))
    stationary, after = np.mean(gaps, axis=0) / floor
    yield "stationary, mean of half-lives 7 to 12", f"{stationary[6:].mean():.2f} floors", "<= 1.5"
    for h in (0, 3, 5, 6):
        yield f"half-life {h + 1} after the jump", f"{after[h]:.2f} floors", ""
    yield "half-life 8 after the jump", f"{after[7]:.2f} floors", "<= 2"
    yield "the floor p·γ/(2b(2 − γ))", f"{floor:.2e} nats", ""


def apart(k: int, d: int, distance: float, random: np.random.Generator) -> GaussianMixture:
    """Unit covariances, means at least ``distance`` apart, the closest as far as that."""
    means = random.normal(size=(k, d))
    gaps = np.linalg.norm(means[:, None] - means, axis=2) + 1e9 * np.eye(k)
    return mixture_of(
        random.dirichlet(np.full(k, 5.0)), means * distance / gaps.min(), np.tile(np.eye(d), (k, 1, 1))
    )


def small_batches(seeds: int) -> Iterator[Row]:
    """Batches of 10 rows through partial_fit alone, k = 8, d = 4, 1e5 rows, means N(0, 6²I)."""
    k, d, good, shares, ratios = 8, 4, 0, [], []
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        weights, means = random.dirichlet(np.full(k, 5.0)), 6 * random.normal(size=(k, d))
        true = mixture_of(weights, means, np.tile(np.eye(d), (k, 1, 1)))
        x, _ = draw(true, 10**5, random)
        model = MiniBatchGaussianMixture(k, random_state=seed)
        for first in range(0, len(x), 10):
            model.partial_fit(x[first : first + 10])
        values = np.linalg.eigvalsh(model.covariances_)
        shares.append(model.weights_.min() / true.weights_.min())
        ratios.append(max(values.max(), 1 / values.min()))
        good += shares[-1] >= 0.1 and ratios[-1] <= 10
    yield "smallest weight / true smallest", f"least {min(shares):.2f}", ">= 0.1"
    yield "eigenvalue / true one, or its inverse", f"largest {max(ratios):.2f}", "<= 10"
    yield "seeds that meet both", f"{good} of {seeds}", "9 of 10"


def cost(seeds: int, before: str | None = None, scale: float = 1.0) -> Iterator[Row]:
    """One pass against one iteration of batch EM over the same store, seeding excluded.

    In a process of its own, of two threads; with another daskgmm, in two, which take their turn.
    """
    peers = [Peer("daskgmm"), *([Peer("daskgmm-before", before)] if before else [])]
    try:
        if before:
            yield origins(peers), "", ""
        for n, d, k in ((4_000_000, 16, 16), (2_000_000, 32, 64), (8_000_000, 4, 8)):
            yield from cost_of(peers, int(scale * n), d, k)
    finally:
        for peer in peers:
            peer.close()


def cost_of(peers: list[Peer], n: int, d: int, k: int) -> Iterator[Row]:
    """The cost for one shape, and how it compares with that of another daskgmm."""
    random, repeats = np.random.default_rng(0), 3
    true = truth(k, d, 1.0 if d > 4 else 3.0, random)
    with tempfile.TemporaryDirectory() as folder:
        x, begin = draw(true, n, random)[0], Path(folder) / "start.npz"
        store, x = write(f"{folder}/x.zarr", x, 2**20 // (8 * d)), x[:JUDGED_ROWS].copy()
        np.savez(begin, **{name.removesuffix("_init"): value for name, value in start_of(true).items()})
        each, rounds = (1, repeats) if len(peers) > 1 else (repeats, 1)

        def ask(peer: Peer) -> dict[str, Any]:
            return judged(peer.ask(task="online_cost", path=store, start=begin, k=k, repeats=each), x, "full")

        answers = in_turn(peers, rounds, ask)
    for peer, found in zip(peers, answers, strict=True):
        if "error" in found:
            raise SystemExit(f"{peer.name}: {found['error']}")
        times = f"{found['seconds']:.2f} s / {found['iteration']:.2f} s, {found['batches']} batches"
        told = f"{found['ratio']:.2f} ({times}, log-likelihood {found['log_likelihood']:.6f})"
        yield f"n={n:,} d={d} k={k}, {peer.name}", told, "<= 1.3"
    for peer, found in zip(peers[1:], answers[1:], strict=True):
        yield f"n={n:,} d={d} k={k}, a pass of {peer.name} over ours", f"{slower(found, answers[0]):.2f}", ""


def more_passes(seeds: int) -> Iterator[Row]:
    """What further passes gain, from EM on 20,000 rows, n = 1e6: why one is the default."""
    for name, (k, d, scale, _) in ONE_PASS.items():
        gaps = []
        for seed in range(seeds):
            random = np.random.default_rng(seed)
            true = truth(k, d, scale, random)
            x, held = draw(true, 10**6, random)[0], draw(true, 10**6, random)[0]
            start = start_of(plain_em(x, true))
            models = [
                MiniBatchGaussianMixture(k, random_state=seed, max_iter=i, **start).fit(x) for i in (1, 2, 5)
            ]
            best, unit = true.score(held), n_parameters(true) / 2e6
            gaps.append([(best - m.score(held)) / unit for m in models])
        one, two, five = np.median(gaps, axis=0)
        yield name, f"{one:.2f}, {two:.2f}, {five:.2f} p/2n", "1, 2, 5 passes"


def rare(seeds: int) -> Iterator[Row]:
    """90 rows of 200,000 far from two wide clusters: a default fit, and a pass over a model that is taken over."""
    n, kept, gaps = 200_000, np.zeros(2, int), []
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        x = 1.5 * random.normal(size=(n, 4)) + np.where(random.random((n, 1)) < 0.5, [8.0, 0, 0, 0], 0.0)
        x[random.choice(n, 90, replace=False)] = 25 + random.normal(size=(90, 4))
        covariances = np.array([2.25 * np.eye(4), 2.25 * np.eye(4), np.eye(4)])
        means = np.array([[0.0] * 4, [8.0, 0, 0, 0], [25.0] * 4])
        best = batch_em(x, mixture_of([0.4998, 0.49975, 0.00045], means, covariances))
        taken = MiniBatchGaussianMixture.from_parameters(best.weights_, best.means_, best.covariances_)
        taken.set_params(warm_start=True, random_state=seed)
        models = [MiniBatchGaussianMixture(3, random_state=seed).fit(x), taken.fit(x)]
        kept += [bool((abs(m.means_ - 25) < 2).all(axis=1).any()) for m in models]
        gaps.append([best.score(x) - m.score(x) for m in models])
    for name, good, gap in zip(("default fit", "taken over"), kept, np.max(gaps, axis=0), strict=True):
        yield f"{name}: keeps the rare component", f"{good} of {seeds}, gap to batch EM {gap:.1e}", f"{seeds}"


def tight(seeds: int) -> Iterator[Row]:
    """.9 N(0, 10²) + .1 N(40, .01²) in two features: the standard deviation of the tight component."""
    for n in (20_000, 200_000, 1_000_000):
        found, gaps = [], []
        for seed in range(seeds):
            random = np.random.default_rng(seed)
            wide = random.random((n, 1)) < 0.9
            x = np.where(wide, 10 * random.normal(size=(n, 2)), 40 + 0.01 * random.normal(size=(n, 2)))
            model = MiniBatchGaussianMixture(2, random_state=seed).fit(x)
            found.append(np.sqrt(model.covariances_[np.argmin(model.weights_)].diagonal().max()))
            true = mixture_of([0.9, 0.1], [[0.0, 0], [40, 40]], [100 * np.eye(2), 1e-4 * np.eye(2)])
            gaps.append(true.score(x) - model.score(x))
        yield f"n = {n:,}", f"{max(found):.4f} (largest), gap {max(gaps):.1e}", "0.01"


def counted(seeds: int) -> Iterator[Row]:
    """60 bins with counts against the 10,000 rows that they count."""
    off = []
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        counts, edges = np.histogram(np.append(random.normal(0, 1, 7000), random.normal(4, 1, 3000)), 60)
        x, counts = ((edges[1:] + edges[:-1]) / 2)[counts > 0, None], counts[counts > 0]
        bins = MiniBatchGaussianMixture(2, random_state=seed).fit(x, sample_weight=counts.astype(float))
        rows = MiniBatchGaussianMixture(2, random_state=seed).fit(np.repeat(x, counts, axis=0))
        off.append(abs(np.sort(bins.weights_) - np.sort(rows.weights_)).max())
    yield "difference of weights", f"{max(off):.4f} (largest)", "0"


def changing(seeds: int) -> Iterator[Row]:
    """Streams whose first 400 rows are equal, or one of whose clusters is away for 100 half-lives."""
    means, lives, gaps = np.array([[0.0, 0], [6, 0], [0, 6]]), 1000, []
    true = mixture_of(np.full(3, 1 / 3), means, np.tile(np.eye(2), (3, 1, 1)))
    two = mixture_of(np.full(2, 1 / 2), means[:2], np.tile(np.eye(2), (2, 1, 1)))
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        held = draw(true, 10**5, random)[0]
        alike = MiniBatchGaussianMixture(3, random_state=seed).partial_fit(np.ones((400, 2)))
        away = MiniBatchGaussianMixture(3, random_state=seed, half_life=lives)
        for model, phases in ((alike, [(true, 60)]), (away, [(true, 20), (two, 100), (true, 20)])):
            for mixture, n in phases:
                for _ in range(5 * n):
                    model.partial_fit(draw(mixture, lives // 5, random)[0])
        gaps.append([true.score(held) - model.score(held) for model in (alike, away)])
    for name, gap in zip(("equal rows first", "a cluster comes back"), np.max(gaps, axis=0), strict=True):
        yield name, f"gap {gap:.1e} (largest)", "<= 1e-2"


SECTIONS: dict[str, tuple[Callable[..., Iterator[Row]], int]] = {
    "one-pass": (one_pass, 10),
    "published": (published, 50),
    "rate": (rate, 10),
    "sorted": (sorted_rows, 10),
    "sample": (beats_the_sample, 1),
    "drift": (drift, 10),
    "small": (small_batches, 10),
    "rare": (rare, 4),
    "tight": (tight, 2),
    "counts": (counted, 4),
    "changes": (changing, 4),
    "cost": (cost, 1),
    "passes": (more_passes, 10),
}


def main() -> None:
    """Print the sections asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told = f"of {', '.join(SECTIONS)}; all without"
    parser.add_argument("section", nargs="*", choices=[*SECTIONS, []], metavar="section", help=told)
    parser.add_argument("--seeds", type=int, help="instead of as many as the target names")
    parser.add_argument("--before", metavar="PYTHON", help="cost: beside the daskgmm of this interpreter")
    parser.add_argument("--scale", type=float, default=1, help="cost: times the number of rows, for a quick look")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in options.section or SECTIONS:
        function, seeds = SECTIONS[name]
        more = {"before": options.before, "scale": options.scale} if function is cost else {}
        print(f"{name}: {function.__doc__}\n")
        print(f"| {name} | found | target |\n| --- | --- | --- |")
        for what, found, target in function(options.seeds or seeds, **more):
            print(f"| {what} | {found} | {target} |", flush=True)
        print()


if __name__ == "__main__":
    main()
