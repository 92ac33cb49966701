"""The checkpoints of a run, as data, and the options that a run compiles for.

A plan is a table with one row for each evaluation. The compiled loop reads it row by
row. So all restarts and targets share one loop.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robjax.losses import Loss


class Options(NamedTuple):
    """The options that a run compiles for; every field is static.

    Attributes:
      loss: (logits, labels) -> [B] to be maximised.
      targeted: runs aim at classes, and report the margin instead of the loss.
      longer: (T, N), then as many runs of N steps follow; None: none do.
      steps: N, steps of each run.
      restarts: runs from independent starts, for each target.
      rho: ρ, share of steps that must raise the loss to keep the step size (L∞, L2).
      eot: draws of a randomised model for each evaluation; None: deterministic.
      large_reps: L1 only: phases of radius 3ε, 2ε and ε.
      reference_quirks: do as the reference implementation does, see `apgd`.
    """

    loss: Loss
    targeted: bool = False
    longer: tuple[int, int] | None = None
    steps: int = 100
    restarts: int = 1
    rho: float = 0.75
    eot: int | None = None
    large_reps: bool = False
    reference_quirks: bool = False


class Phase(NamedTuple):
    """A part of a run: steps inside a ball of one radius.

    Attributes:
      radius: of the ball, in units of ε.
      windows: evaluations from each checkpoint to the next, the first from the start.
      steps: how many steps there are.
    """

    radius: float
    windows: list[int]
    steps: int


class Plan(NamedTuple):
    """What happens at each of the E evaluations of a run.

    Attributes:
      first: [E] bool, the point starts a phase (and is not the result of a step).
      window: [E] int32, evaluations since the last checkpoint, if this is a checkpoint;
        else 0.
      hop: [E] bool, the next point starts a phase, from the best point of this one.
      scale: [E] float32, radius of the ball of the next point, in units of ε.
      counts: [E] bool, the point lies in the ball of radius ε, so it may be returned.
      last: [E] bool, the next point is the last of the run.
    """

    first: jax.Array
    window: jax.Array
    hop: jax.Array
    scale: jax.Array
    counts: jax.Array
    last: jax.Array


def make_plan(phases: list[Phase]) -> Plan:
    """Writes down the plan of a run that goes through `phases` one after the other.

    >>> make_plan([Phase(1.0, [2, 1], 3)]).window.tolist()
    [0, 0, 2, 1]
    """
    evaluations = [phase.steps + 1 for phase in phases]
    number = np.repeat(np.arange(len(phases)), evaluations)
    is_last_phase = number == len(phases) - 1
    step = np.concatenate([np.arange(count) for count in evaluations])
    last_step = np.asarray([phase.steps for phase in phases])[number]
    hop = (step == last_step) & ~is_last_phase
    radii = np.asarray([phase.radius for phase in phases], np.float32)
    return Plan(
        first=jnp.asarray(step == 0),
        window=jnp.asarray(np.concatenate([_windows(phase) for phase in phases])),
        hop=jnp.asarray(hop),
        scale=jnp.asarray(radii[number + hop]),
        counts=jnp.asarray(is_last_phase),
        last=jnp.asarray(is_last_phase & (step + 1 == last_step)),
    )


def _windows(phase: Phase) -> np.ndarray:
    """The column `window` of a phase."""
    column = np.zeros(phase.steps + 1, np.int32)
    column[np.cumsum(phase.windows)] = phase.windows
    return column
