"""Rows that are held out, each by a hash of its number: whoever reads a block knows which they are."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from daskgmm._typing import Array
from daskgmm.compute.block import Block
from daskgmm.compute.cost import Bundle
from daskgmm.fit.survey import PIECE, Survey
from daskgmm.fit.tasks import Rate
from daskgmm.model.checks import require
from daskgmm.model.mixture import Mixture
from daskgmm.store.values import storable


@storable
@dataclass(frozen=True)
class HeldOut:
    """A share of all rows, that blocks, workers and weights do not change."""

    share: float
    seed: int

    def check(self) -> None:
        """Raise `ValueError` unless it is a share."""
        require(0 < self.share < 1 and 0 <= self.seed < 2**63, "No share of the rows is held out.")

    def among(self, numbers: Array) -> Array:
        """Which of the rows of these numbers are held out: SplitMix64 of each (Steele, Lea & Flood 2014)."""
        z = numbers.astype(np.uint64)
        z += np.uint64(self.seed)
        z *= np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z ^= z >> np.uint64(shift)
            z *= np.uint64(factor)
        z ^= z >> np.uint64(31)
        return z < np.uint64(round(self.share * 2**64))

    def apart(self, block: Block) -> tuple[Block, Block]:
        """A block without the rows that are held out, and with those alone: all others weigh nothing."""
        first, n = block.first_number, len(block.x)
        held = np.empty(n, bool)
        for start in range(0, n, PIECE):  # no temporary grows with the block
            end = min(n, start + PIECE)
            held[start:end] = self.among(np.arange(first + start, first + end))
        weight = 1.0 if block.weight is None else block.weight
        parts = (np.where(held, 0.0, weight), np.where(held, weight, 0.0))
        return replace(block, weight=parts[0]), replace(block, weight=parts[1])

    def without(self, survey: Survey) -> Survey:
        """A survey whose sample, which starts are found on, has none of these rows."""
        return replace(survey, sample=survey.sample.split(self.among(survey.sample.position))[0])


@dataclass(frozen=True, eq=False)
class Apart:
    """Maps a block to what a task finds in rows to learn from, and the `Score` of a mixture on those held out."""

    task: Any
    mixture: Mixture
    held_out: HeldOut

    def __call__(self, block: Block) -> Bundle:
        seen, held = self.held_out.apart(block)
        return Bundle((self.task(seen), Rate(self.mixture)(held)))
