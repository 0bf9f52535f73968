"""What can be wrong with data, as types; every one is a ``ValueError``, as in scikit-learn."""


class DataError(ValueError):
    """Rows, weights or starts that cannot be fitted or scored."""


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


class CheckpointInUseError(CheckpointError):
    """Another fit is writing the checkpoint; once that has ended, the same fit goes on from it."""


class ClusterLostError(RuntimeError):
    """No worker or no scheduler is left to go on with; a fit with a checkpoint can be resumed."""


class WorkersKilledError(ClusterLostError):
    """Workers died each time they tried the same blocks: most often these need more memory than they have."""


class BlockTooLargeError(ValueError):
    """A block of rows that does not fit in the memory of a worker."""
