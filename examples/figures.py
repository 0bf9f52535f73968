"""Compare the figures of the quickstart that its page shows with what the program prints now.

    python examples/quickstart.py > told.txt && python examples/figures.py docs/quickstart.md told.txt

Iterations are the same in number, and log-likelihoods to within the fit's ``tol``: other processors and libraries
round otherwise. Memory differs from machine to machine: what took less than the data is as promised. Time is not
compared.
"""

import re
import sys
from pathlib import Path
from typing import NamedTuple

TOLERANCE = 0.01  # nats per patch
# A line of each kind of figure.
ITERATION = re.compile(r"^ *(\d+) +(-?\d+\.\d{4})$", re.MULTILINE)
HELD_OUT = re.compile(r"^ *(\d+) component\(s\) +(-?\d+\.\d{4})$", re.MULTILINE)
PEAK = re.compile(r"^peak above idle +(\d+\.\d) MB$", re.MULTILINE)
SIZE = re.compile(r"^size of the data +(\d+\.\d) MB$", re.MULTILINE)


class Figures(NamedTuple):
    """What a run printed."""

    iterations: dict[int, float]  # log-likelihood of each
    held_out: dict[int, float]  # log-likelihood, by number of components
    peak: float  # MB above the idle process
    size: float  # MB of the data

    @classmethod
    def of(cls, text: str, name: str) -> "Figures":
        """Those in a text; ends the program where some are missing, or stand there twice."""
        peaks, sizes = PEAK.findall(text), SIZE.findall(text)
        iterations, held_out = ITERATION.findall(text), HELD_OUT.findall(text)
        numbers = [{int(n): float(value) for n, value in found} for found in (iterations, held_out)]
        once = [len(found) for found in numbers] == [len(iterations), len(held_out)]
        if not (once and len(peaks) == len(sizes) == 1 and iterations and held_out):
            sys.exit(f"{name} does not have the figures of one run of the quickstart.")
        return cls(numbers[0], numbers[1], float(peaks[0]), float(sizes[0]))


def differences(shown: Figures, now: Figures) -> list[str]:
    """What the page shows and is not so, in words."""
    found = []
    for what, old, new in (
        ("iteration", shown.iterations, now.iterations),
        ("held-out log-likelihood, components:", shown.held_out, now.held_out),
    ):
        for n in sorted(old.keys() | new.keys()):
            if n not in old or n not in new or abs(old[n] - new[n]) > TOLERANCE:
                found.append(f"{what} {n}: shown {old.get(n)}, now {new.get(n)}")
    for name, figures in (("shown", shown), ("now", now)):
        if figures.peak >= figures.size:
            found.append(
                f"peak above idle, {name}: {figures.peak} MB, not below the {figures.size} MB of the data"
            )
    if shown.size != now.size:
        found.append(f"size of the data: shown {shown.size} MB, now {now.size} MB")
    return found


def main() -> None:
    """Compare two files."""
    page, told = (Figures.of(Path(name).read_text(encoding="utf-8"), name) for name in sys.argv[1:3])
    if found := differences(page, told):
        sys.exit("\n".join([f"error: {sys.argv[1]} shows old figures of the quickstart:", *found]))
    print(f"{sys.argv[1]} shows the quickstart as it is")


if __name__ == "__main__":
    main()
