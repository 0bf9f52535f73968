"""Blocks that stay in memory between passes: read and decoded once, where there is room."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock

from daskgmm.compute.block import Block


@dataclass(eq=False)
class Shelf:
    """The first blocks that there is room for; any thread may put one there.

    Attributes
    ----------
    room : bytes that are left.
    blocks : by their number.
    """

    room: float
    blocks: dict[int, Block] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def put(self, block: Block) -> None:
        """Keep the block, if it fits."""
        with self.lock:
            fits = block.nbytes <= self.room
            self.room -= block.nbytes * fits
        if fits:
            self.blocks[block.index] = block

    def clear(self) -> None:
        """Let go of all; a task that an interrupt left running puts nothing there any more."""
        self.room = 0
        self.blocks.clear()
