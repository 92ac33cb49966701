"""Means over independent blocks, with their standard errors."""

from typing import NamedTuple

import numpy as np

from robjax.samples import is_concrete


class BlockMean(NamedTuple):
    """A mean over B independent blocks; the leading axes are the caller's.

    Attributes:
      mean: [...].
      stderr: [...], its standard error √(Var / B); NaN for one block.
    """

    mean: np.ndarray
    stderr: np.ndarray

    def __repr__(self) -> str:
        """The shape and the mean standard error."""
        if not (is_concrete(self.mean) and is_concrete(self.stderr)):
            return "BlockMean(traced)"
        shape = list(np.shape(self.mean))
        return f"BlockMean({shape}, s.e. {np.mean(self.stderr):.2g} on average)"


def block_mean(blocks: np.ndarray) -> BlockMean:
    """Mean and standard error over the last axis, the blocks.

    >>> block_mean(np.array([1.0, 3.0])).stderr.tolist()
    1.0

    Args:
      blocks: [..., B].
    """
    count = blocks.shape[-1]
    mean = blocks.mean(-1)
    squares = ((blocks - mean[..., None]) ** 2).sum(-1)
    freedom = count - 1 if count > 1 else np.nan
    stderr = np.sqrt(squares / freedom / count)
    return BlockMean(mean=np.asarray(mean), stderr=np.asarray(stderr))
