"""How to train: everything but the model, the data and the objective."""

import dataclasses
import math
import numbers
from typing import Literal, NoReturn


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How to train. The defaults are `FULL`.

    >>> dataclasses.replace(TRACKING, epochs=3).learning_rate
    0.01

    Attributes:
      epochs: passes over the data set.
      batch_size: samples in a step, over all devices. What is left over at the end of
        an epoch's shuffled order is dropped.
      optimizer: "sgd" (weight decay added to the gradient, then momentum) or "adam"
        (decoupled weight decay, AdamW).
      learning_rate: at the start.
      momentum: of "sgd".
      weight_decay: coefficient of the L2 pull on all weights.
      schedule: of the learning rate: "constant", divided by 10 at "steps", or "cosine"
        down to 0 at the end.
      milestones: epochs after which the schedule "steps" divides.
      clip_norm: largest norm of the whole gradient; None for no limit.
      ema_decay: γ of the running mean of the weights, ema ← γ ema + (1 − γ) weights,
        after every update; None to keep none.
      warmup_epochs: over these the strength of the attack grows linearly up to 1.
      replays: steps taken on each batch, m of FreeAT (Shafahi et al., "Adversarial
        training for free!", NeurIPS 2019, algorithm 1, with objective `standard`). Each
        moves the weights down the gradient and the images by replay_eps up theirs,
        both from one backward pass. The paper divides its epochs by m. Here the
        perturbation starts uniformly at random in each batch; theirs goes on from the
        batch before.
      replay_eps: L∞ radius and step of that perturbation; images stay in [0, 1].
      pad: pixels of zero padding of the random crop; 0 for no crop.
      flip: random left-right flips.
      balanced: every class is equally frequent in an epoch, by leaving out examples of
        large classes and repeating those of small ones (`data.balanced_indices`).
      dtype: precision in which the model computes, "bfloat16" or None for that of its
        weights. Weights and images are rounded on their way in; all that is not the
        model stays in float32, see `training.trainable.rounded`. A module that asks
        for a dtype itself gets that.
      seed: of the initial weights, the order, the augmentation and the attacks.
      checkpoint_every: steps between checkpoints inside an epoch; 0 for none. The end
        of every epoch has one in any case.
    """

    epochs: int = 200
    batch_size: int = 128
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Literal["constant", "steps", "cosine"] = "steps"
    milestones: tuple[int, ...] = (80, 120)
    clip_norm: float | None = None
    ema_decay: float | None = None
    warmup_epochs: float = 0.0
    replays: int = 1
    replay_eps: float = 0.0
    pad: int = 0
    flip: bool = False
    balanced: bool = False
    dtype: Literal["bfloat16"] | None = None
    seed: int = 0
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        whole = {
            "epochs": 1,
            "batch_size": 1,
            "replays": 1,
            "pad": 0,
            "seed": 0,
            "checkpoint_every": 0,
        }
        for name, least in whole.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not least <= value < 2**32:
                self._reject(name, f"a whole number from {least} to 2^32 − 1")
        for name in ("learning_rate", "weight_decay", "warmup_epochs", "replay_eps"):
            if not (_is_number(value := getattr(self, name)) and 0 <= value < math.inf):
                self._reject(name, "a finite number that is not negative")
        if not (_is_number(self.momentum) and 0 <= self.momentum < 1):
            self._reject("momentum", "a number in [0, 1)")
        clip = self.clip_norm
        if clip is not None and not (_is_number(clip) and 0 < clip < math.inf):
            self._reject("clip_norm", "a positive number or None")
        decay = self.ema_decay
        if decay is not None and not (_is_number(decay) and 0 <= decay < 1):
            self._reject("ema_decay", "a number in [0, 1) or None")
        milestones = self.milestones
        if type(milestones) is not tuple or any(type(m) is not int for m in milestones):
            self._reject("milestones", "a tuple of whole numbers")
        if self.optimizer not in ("sgd", "adam"):
            self._reject("optimizer", "'sgd' or 'adam'")
        if self.schedule not in ("constant", "steps", "cosine"):
            self._reject("schedule", "'constant', 'steps' or 'cosine'")
        if self.dtype not in ("bfloat16", None):
            self._reject("dtype", "'bfloat16' or None")

    def _reject(self, name: str, allowed: str) -> NoReturn:
        raise ValueError(f"{name} must be {allowed}, got {getattr(self, name)!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real)


FULL = FitConfig()
"""The full CIFAR-10 runs of arXiv 1906.02494 (code)."""

TRACKING = FitConfig(epochs=10, learning_rate=0.01, momentum=0.5, schedule="constant")
"""The short runs of arXiv 1906.02494 (code), whose every epoch is measured."""
