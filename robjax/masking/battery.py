"""The battery itself: run the probes, compare, report."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from robjax import losses
from robjax.attacks.pgd import pgd
from robjax.attacks.problem import Problem, check_problem
from robjax.attacks.square import square
from robjax.balls import Ball, Linf
from robjax.checks import Bounds, check_count, check_labels
from robjax.masking import probes, thresholds
from robjax.masking.probes import Run
from robjax.masking.report import CHECKS, MaskingReport
from robjax.model import as_logits_fn, count_classes, mean_logits
from robjax.samples import fold_keys, sample_keys
from robjax.traced import TracedCallable

_PASSES = 4
_RESTARTS = 4


def check(
    logits_fn: Any,
    x: jax.Array,
    y: jax.Array,
    *,
    key: jax.Array,
    ball: Ball,
    bounds: Bounds = (0.0, 1.0),
    surrogate: Any = None,
    eot: int | None = None,
    queries: int = 300,
) -> MaskingReport:
    """Asks whether gradient attacks on this model can be trusted.

    Costs about 195 gradients and 600 forward passes an image (with `eot`, that many
    times `eot`), and seven compiled programs, which new weights, images, ε and keys
    reuse.

    Args:
      logits_fn: images [B, *S] -> logits [B, K]; any callable (`as_logits_fn`). With
        `eot`, (images, keys [B]) -> logits.
      x: [B, *S] images inside `bounds`; 50 or more make a good sample.
      y: [B] integer labels.
      key: one key, or one for each sample.
      ball: Linf(ε), L2(ε) or L1(ε), ε > 0 a number or [B].
      bounds: lowest and highest pixel value.
      surrogate: a second model whose adversarial images are tried on the first, as a
        network trained on the same data or the same one without its defence; None: a
        linear one, distilled from the logits around each image.
      eot: for a model that declares its noise: draws to average over, static.
      queries: of Square, static.

    Returns:
      MaskingReport; print it. The flags of a sample depend on its own image, label and
      key (and, for a model that mixes its batch, on the batch).

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    if eot is not None:
        check_count("eot", eot)
    check_count("queries", queries)
    model = as_logits_fn(logits_fn)
    problem = _check(model, x, ball, bounds)
    x, size = problem.x, problem.x.shape[0]
    keys = sample_keys(key, size)
    classes = count_classes(model, x, None if eot is None else keys)
    # through the host: labels that a sharded model predicted would compile anew
    y = jnp.asarray(np.asarray(check_labels(y, size, num_classes=classes)))
    if eot is not None:
        problem = problem._replace(logits_fn=_average(model, keys, eot, 0))
    if surrogate is not None:
        surrogate = as_logits_fn(surrogate)
        _check_surrogate(surrogate, x, classes)

    columns = _Columns({}, {})
    clean = _passes(columns, model, problem, keys, eot)
    if eot is not None:
        _agreement(columns, model, problem, y, keys, eot)
    look = jax.device_get(probes.look(problem, y, fold_keys(keys, 1)))
    columns.take(thresholds.outputs(look))
    columns.take(thresholds.slopes(look))
    # differences mean nothing where the model does not repeat itself
    for name in ("shattered", "gradient"):
        columns.flags[name] &= ~columns.flags["random"]
    margin = np.asarray(losses.margin(jnp.asarray(clean), y))
    judged = (margin < 0) & np.isfinite(clean).all(axis=1)
    done, notes = _attack(problem, y, keys, margin, surrogate, queries)
    compared, numbers = thresholds.attacks(done, look)
    columns.take(({name: flag & judged for name, flag in compared.items()}, numbers))
    if not judged.any():
        notes.append("no image is classified correctly, so no attacks were compared")
    flags = {name: columns.flags[name] for name in CHECKS if name in columns.flags}
    return MaskingReport(flags, columns.numbers, judged, tuple(notes))


class _Columns(NamedTuple):
    """Flags and numbers while the checks add to them."""

    flags: dict[str, np.ndarray]
    numbers: dict[str, np.ndarray]

    def take(self, found: tuple[thresholds.Columns, thresholds.Columns]) -> None:
        self.flags.update(found[0])
        self.numbers.update(found[1])


def _check(model, x, ball, bounds) -> Problem:
    problem = check_problem(model, x, ball, bounds)
    if np.any(np.asarray(problem.ball.eps) <= 0):
        raise ValueError(f"ball.eps must be above 0, got {ball.eps}")
    # differences need float32 or better
    dtype = jnp.promote_types(problem.x.dtype, jnp.float32)
    return problem._replace(
        x=problem.x.astype(dtype),
        ball=jax.tree.map(lambda eps: eps.astype(dtype), problem.ball),
    )


def _check_surrogate(surrogate: TracedCallable, x: jax.Array, classes: int) -> None:
    if (found := count_classes(surrogate, x)) != classes:
        raise ValueError(
            f"surrogate must have the {classes} classes of logits_fn, got {found}"
        )


def _mean(model, keys, eot, x):
    return mean_logits(model, x, keys, eot)


def _average(model, keys, eot: int, number: int) -> TracedCallable:
    """The model averaged over `eot` draws that do not change: images -> logits."""
    return as_logits_fn(Partial(_mean, model, fold_keys(keys, number), eot))


def _passes(columns: _Columns, model, problem: Problem, keys, eot) -> np.ndarray:
    """Repeats the batch, and mixes it with its negatives; the logits [B, K]."""
    x, (low, high) = problem.x, problem.bounds
    keys = fold_keys(keys, 0)
    passes = [probes.logits(model, x, keys, eot) for _ in range(_PASSES)]
    # each image in another place, among other neighbours
    mixed = jnp.concatenate([(low + high) - x, x])[::-1]
    doubled = jnp.concatenate([keys, keys])[::-1]
    elsewhere = probes.logits(model, mixed, doubled, eot)[: len(x)][::-1]
    passes, elsewhere = jax.device_get((jnp.stack(passes), elsewhere))
    columns.take(thresholds.repeats(passes, elsewhere))
    return passes[0]


def _agreement(columns: _Columns, model, problem: Problem, y, keys, eot: int) -> None:
    """Whether two averages over `eot` draws have gradients that point the same way."""
    one, other = (
        np.asarray(probes.gradient(_average(model, keys, eot, n), problem.x, y))
        for n in (1, 2)
    )
    columns.take(thresholds.agreement(one, other))


def _attack(
    problem: Problem,
    y: jax.Array,
    keys: jax.Array,
    clean: np.ndarray,
    surrogate: Any,
    queries: int,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Largest margin [B] that each attack met, and what was left out."""
    model, x, ball, bounds = problem
    notes = []
    several = count_classes(model, x) > 2
    runs = [Run(probes.LOG_ODDS, seed=seed) for seed in range(_RESTARTS)]
    runs += [
        Run(probes.MARGIN),
        Run(probes.LOG_ODDS, radius=0.25),
        Run(probes.LOG_ODDS, seed=-1, steps=1),
        Run(probes.LOG_ODDS, radius=0, seed=_RESTARTS),
        Run(probes.MARGIN, radius=0, seed=_RESTARTS + 1),
    ]
    runs += [Run(probes.DLR)] if several else []
    met = np.asarray(probes.climb(problem, y, fold_keys(keys, 2), probes.plan(runs)))
    names = ("margin", "quarter", "one step")
    done = dict(zip(names, met[_RESTARTS:], strict=False))
    done |= {"clean": clean, "restarts": met[:_RESTARTS]}
    done["whole"] = met[_RESTARTS + 3 : _RESTARTS + 5].max(axis=0)
    if several:
        done["dlr"] = met[-1]
    common: dict[str, Any] = {"ball": ball, "bounds": bounds}
    if isinstance(ball, Linf) or (x.ndim in (3, 4) and min(x.shape[1:3]) >= 3):
        found = square(model, x, y, key=fold_keys(keys, 3), queries=queries, **common)
        done["square"] = np.asarray(found.loss)
    else:
        notes.append("square was left out: outside Linf it needs 3 × 3 pixels")
    if surrogate is None:
        found = probes.linear_transfer(problem, y, fold_keys(keys, 4))
        done["transfer"] = np.asarray(found)
    else:
        found = pgd(
            surrogate, x, y, key=fold_keys(keys, 4), loss=losses.margin, **common
        )
        moved = probes.logits(model, found.x_adv, keys, None)
        done["transfer"] = np.asarray(losses.margin(moved, y))
    return done, notes
