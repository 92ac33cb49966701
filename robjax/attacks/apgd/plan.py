"""The checkpoints of a run, as data, and the options that a run compiles for.

A plan is a table with a row for each evaluation. The compiled loop reads it row by row,
so that all restarts and targets share one loop.
"""

from typing import NamedTuple

import jax
import numpy as np

from robjax.losses import Loss


class Options(NamedTuple):
    """What a run compiles for; every field is static.

    Attributes:
      loss: (logits, labels) -> [B] to be maximised.
      targeted: runs aim at classes, and report the margin instead of the loss.
      steps: N of each run.
      restarts: runs from independent starts, for each target.
      rho: ρ, share of steps that must raise the loss to keep the step size (L∞, L2).
      eot: draws of a randomised model for each evaluation; None: deterministic.
      large_reps: L1 only: phases of radius 3ε, 2ε and ε.
      reference_quirks: as the reference implementation, see `apgd`.
    """

    loss: Loss
    targeted: bool = False
    steps: int = 100
    restarts: int = 1
    rho: float = 0.75
    eot: int | None = None
    large_reps: bool = False
    reference_quirks: bool = False


class Phase(NamedTuple):
    """Steps inside a ball of one radius.

    Attributes:
      radius: in units of ε.
      windows: evaluations between the checkpoints.
      steps: how many there are.
    """

    radius: float
    windows: list[int]
    steps: int


class Plan(NamedTuple):
    """What happens at each of the E evaluations of a run, as data.

    Attributes:
      first: [E] bool, the point starts a phase (and is not the result of a step).
      window: [E] int, evaluations since the last checkpoint; 0 where there is none.
      hop: [E] bool, the next point starts a phase, from the best point of this one.
      scale: [E] radius of the ball of the next point, in units of ε.
      counts: [E] bool, the point lies in the ball of radius ε, so it may be returned.
      last: [E] bool, the next point is the last of the run.
    """

    first: np.ndarray | jax.Array
    window: np.ndarray | jax.Array
    hop: np.ndarray | jax.Array
    scale: np.ndarray | jax.Array
    counts: np.ndarray | jax.Array
    last: np.ndarray | jax.Array


def make_plan(phases: list[Phase]) -> Plan:
    """The plan of a run that goes through `phases` one after the other.

    >>> make_plan([Phase(1.0, [2, 1], 3)]).window.tolist()
    [0, 0, 2, 1]
    """
    rows = []
    for number, (radius, windows, steps) in enumerate(phases):
        window_at = dict(zip(np.cumsum(windows).tolist(), windows, strict=True))
        is_last_phase = number + 1 == len(phases)
        for i in range(steps + 1):
            hop = i == steps and not is_last_phase
            row = {
                "first": i == 0,
                "window": window_at.get(i, 0),
                "hop": hop,
                "scale": phases[number + 1].radius if hop else radius,
                "counts": is_last_phase,
                "last": is_last_phase and i + 1 == steps,
            }
            rows.append(row)

    def column(name: str, dtype: type) -> np.ndarray:
        return np.asarray([row[name] for row in rows], dtype)

    return Plan(
        first=column("first", bool),
        window=column("window", np.int32),
        hop=column("hop", bool),
        scale=column("scale", np.float32),
        counts=column("counts", bool),
        last=column("last", bool),
    )
