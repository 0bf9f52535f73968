"""What can be wrong with data, as types; every one is a ``ValueError``, as in scikit-learn. And warnings."""

import sys
import warnings

# Whose lines tell a user nothing: this package, and what it is called through.
BETWEEN = ("daskgmm", "sklearn", "contextlib", "functools", "dask")


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warn, with the line of the user's that called: the nearest outside this package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, category, stacklevel=level)


def printable(text: str, keep: str = "") -> str:
    """``text`` that a terminal shows and does not obey: escapes for what is not printable, except to ``keep``.

    Names in stores and models are others' text, with control characters and changes of direction, if they like.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


class DataError(ValueError):
    """Rows, weights or starts that cannot be fitted or scored."""

    def __str__(self) -> str:
        return printable(super().__str__(), keep="\n")


class CollapseError(DataError):
    """A component's covariance is not positive definite.

    Attributes
    ----------
    component : int
        Number of the first such component.
    """

    def __init__(self, message: str, component: int) -> None:
        super().__init__(message, component)
        self.component = component

    def __str__(self) -> str:
        return str(self.args[0])


class ModelFileError(DataError):
    """A file that is no model, or is damaged, or a model that this version or this class does not read."""


class CheckpointError(DataError):
    """A checkpoint of other data or settings, or a damaged one."""


class InUseError(DataError):
    """Another process is writing the same output; once that has ended, the same call may go on."""


class CheckpointInUseError(CheckpointError, InUseError):
    """Another fit is writing the checkpoint; once that has ended, the same fit goes on from it."""


class OutputError(ValueError):
    """An output that cannot be written, or not without loss of something else."""


class ClusterLostError(RuntimeError):
    """No worker or no scheduler is left to go on with; a fit with a checkpoint can be resumed."""


class WorkersKilledError(ClusterLostError):
    """Workers died each time they tried the same blocks: most often these need more memory than they have."""


class UnfitWorkersError(ClusterLostError):
    """Workers, or the scheduler, cannot import this package."""


class BlockTooLargeError(DataError):
    """A block of rows that does not fit in the memory of a worker."""
