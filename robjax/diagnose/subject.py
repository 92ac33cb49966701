"""What a lens is given: a model, images, and how closely to look."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robjax.balls import Ball
from robjax.checks import Bounds
from robjax.diagnose.results import Lens
from robjax.model import LogitsFn, as_logits_fn
from robjax.runs.files import PathLike


class Subject(NamedTuple):
    """A model and the images on which it is looked at.

    Attributes:
      logits_fn: as in `evaluation.evaluate`.
      x: [n, *S] floating, on the host.
      y: [n] labels.
      key: of all draws.
      ball: the threat model.
      bounds: lowest and highest pixel value.
      eot: draws over which a randomised model is averaged; None: deterministic.
      masks: [n, H, W] 1 on the foreground; None: not known.
      folder: of the run; None: nothing is kept.
    """

    logits_fn: LogitsFn
    x: np.ndarray
    y: np.ndarray
    key: jax.Array
    ball: Ball
    bounds: Bounds
    eot: int | None
    masks: np.ndarray | None
    folder: PathLike | None

    def __repr__(self) -> str:
        return f"Subject({len(self.x)} images, {self.ball})"

    def predicted(self, x: np.ndarray) -> np.ndarray:
        """[B] classes; −1 for a randomised model, which has no single one."""
        if self.eot is not None:
            return np.full(len(x), -1)
        logits = as_logits_fn(self.logits_fn)(jnp.asarray(x))
        return np.asarray(jnp.argmax(logits, axis=1))


class Budget(NamedTuple):
    """How many images each lens looks at, and how closely; sizes are at most.

    Attributes:
      attacked: images that AutoAttack and the curve see.
      curve_steps: of Auto-PGD, for each radius of the curve.
      masked: images that the masking battery sees.
      nearest: images whose minimal distance is searched for.
      starts: of that search, over several attacks; 0: FMN alone, and cheap proofs.
      proven: images whose robustness is to be proven.
      compared: images whose pairs are compared by the KL divergence.
      played: images whose parts play a game.
      grid: rows and columns of these parts.
      trials: draws of noise on foregrounds and backgrounds.
    """

    attacked: int
    curve_steps: int
    masked: int
    nearest: int
    starts: int
    proven: int
    compared: int
    played: int
    grid: int
    trials: int


Found = Mapping[str, Lens]
"""The lenses before this one."""


def left_out_for_noise() -> Lens:
    """Of a lens that a randomised model has no answer for."""
    return Lens(notes=("left out: this lens needs a model without noise",))
