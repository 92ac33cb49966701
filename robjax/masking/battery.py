"""The battery itself: run the probes, compare, report.

Random draws come from the keys of the samples, folded with a number: 0 for the passes,
1 for the look around, 2 for gradient attacks, 3 for Square, 4 for transfer. Averages of
a randomised model take 0 for all attacks, and 1 and 2 where two of them are compared.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from robjax import losses
from robjax.attacks.pgd import pgd
from robjax.attacks.problem import Problem, check_problem
from robjax.attacks.square import square
from robjax.balls import Ball
from robjax.checks import Bounds, check_bounds, check_count, check_labels
from robjax.evaluation.probe import mixed_company
from robjax.masking import probes, thresholds
from robjax.masking.probes import Run
from robjax.masking.report import CHECKS, MaskingReport
from robjax.masking.thresholds import Findings, Met
from robjax.model import LogitsFn, as_logits_fn, count_classes, mean_logits
from robjax.samples import fold_keys, sample_keys
from robjax.traced import TracedCallable

_PASSES = 4
_RESTARTS = 4


def check(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    key: jax.Array,
    ball: Ball,
    bounds: Bounds = (0.0, 1.0),
    surrogate: LogitsFn | None = None,
    eot: int | None = None,
    queries: int = 300,
) -> MaskingReport:
    """Asks whether gradient attacks on this model can be trusted.

    Costs about 195 gradients and 600 forward passes an image (with `eot`, that many
    times `eot`). There are seven compiled programs, which new weights, images, ε and
    keys reuse.

    >>> from robjax.balls import L2
    >>> x = jnp.linspace(0.1, 0.9, 16).reshape(8, 2)
    >>> def hidden(x):  # the gradient is 0, since the way back is cut
    ...     return 10 * jax.lax.stop_gradient(x)
    >>> report = check(hidden, x, jnp.ones(8, int), key=jax.random.key(0), ball=L2(0.2))
    >>> report.masked, report.raised[0]
    (True, 'zero_gradient')

    Args:
      logits_fn: images [B, *S] -> logits [B, K]; any callable (`as_logits_fn`). With
        `eot`, (images, keys [B]) -> logits.
      x: [B, *S] images inside `bounds`; 50 or more make a good sample.
      y: [B] integer labels.
      key: one key, or one for each sample.
      ball: Linf(ε), L2(ε) or L1(ε), ε > 0 a number or [B].
      bounds: lowest and highest pixel value.
      surrogate: a second model, whose adversarial images are tried on the first. Good
        ones are a network trained on the same data, and the same network without its
        defence. None: a linear one, distilled from the logits around each image.
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
    problem = _check_problem(model, x, ball, bounds)
    size = problem.x.shape[0]
    keys = sample_keys(key, size)
    classes = count_classes(model, problem.x, None if eot is None else keys)
    # through the host: labels that a sharded model predicted would compile anew
    y = jnp.asarray(np.asarray(check_labels(y, size, num_classes=classes)))
    if surrogate is not None:
        surrogate = _check_surrogate(surrogate, problem.x, classes)
    if eot is not None:
        problem = problem._replace(logits_fn=_average(model, keys, eot, 0))

    logits, findings = _passes(model, problem, keys, eot)
    if eot is not None:
        findings = findings.joined(_agreement(model, problem.x, y, keys, eot))
    look = jax.device_get(probes.look(problem, y, fold_keys(keys, 1)))
    # the points of `look` are off the borders of the box, where images often sit
    at_image = np.asarray(probes.gradient(problem.logits_fn, problem.x, y))
    precision = probes.precision(problem.logits_fn, problem.x[:1])
    findings = findings.joined(thresholds.outputs(look, at_image, precision))
    findings = findings.joined(thresholds.slopes(look, precision))
    # differences mean nothing where the model does not repeat itself
    findings = findings.only(("shattered", "gradient"), ~findings.flags["random"])

    margin = np.asarray(losses.margin(jnp.asarray(logits), y))
    judged = (margin < 0) & np.isfinite(logits).all(axis=1)
    met = _attack(problem, y, keys, margin, classes, surrogate, queries)
    compared = thresholds.attacks(met, look)
    findings = findings.joined(compared.only(compared.flags, judged))
    notes = thresholds.weak_losses(compared, judged)
    if precision > np.finfo(np.float32).eps:
        notes.append(
            f"the model rounds to {precision:.0e} of a number, and slopes that drown "
            "in that were not judged: check it in float32, too"
        )
    if not judged.any():
        notes.append("no image is classified correctly, so no attacks were compared")
    return MaskingReport(
        flags={name: findings.flags[name] for name in CHECKS if name in findings.flags},
        numbers=findings.numbers,
        judged=judged,
        notes=tuple(notes),
    )


def _check_problem(
    model: TracedCallable, x: jax.Array, ball: Ball, bounds: Bounds
) -> Problem:
    """What is attacked, in float32 or better, with ε > 0."""
    problem = check_problem(model, x, ball, check_bounds(bounds))
    if np.any(np.asarray(problem.ball.eps) <= 0):
        raise ValueError(f"ball.eps must be above 0, got {ball.eps}")
    # lower precision drowns differences
    dtype = jnp.promote_types(problem.x.dtype, jnp.float32)
    return problem._replace(
        x=problem.x.astype(dtype),
        ball=jax.tree.map(lambda eps: eps.astype(dtype), problem.ball),
    )


def _check_surrogate(surrogate: LogitsFn, x: jax.Array, classes: int) -> TracedCallable:
    try:
        surrogate = as_logits_fn(surrogate)
        found = count_classes(surrogate, x)
    except ValueError as error:
        raise ValueError(f"surrogate is a model, whose {error}") from error
    if found != classes:
        raise ValueError(
            f"surrogate must have the {classes} classes of logits_fn, got {found}"
        )
    return surrogate


def _mean(model: TracedCallable, keys: jax.Array, eot: int, x: jax.Array) -> jax.Array:
    return mean_logits(model, x, keys, eot)


def _average(
    model: TracedCallable, keys: jax.Array, eot: int, number: int
) -> TracedCallable:
    """The model averaged over `eot` draws that do not change: images -> logits."""
    return as_logits_fn(Partial(_mean, model, fold_keys(keys, number), eot))


def _passes(
    model: TracedCallable, problem: Problem, keys: jax.Array, eot: int | None
) -> tuple[np.ndarray, Findings]:
    """Logits [B, K], and whether repetition or another batch changes them."""
    x = problem.x
    keys = fold_keys(keys, 0)
    passes = [probes.logits(model, x, keys, eot) for _ in range(_PASSES)]
    # each image in another place, among strangers; and two images alone
    mixed = mixed_company(jnp.repeat(x, 2, axis=0), problem.bounds)
    doubled = jnp.repeat(keys, 2)[::-1]
    elsewhere = probes.logits(model, mixed, doubled, eot)[1::2][::-1]
    few = probes.logits(model, x[:2], keys[:2], eot)
    apart = jnp.concatenate([few, passes[0][2:]])
    passed = (jnp.stack(passes), jnp.stack([elsewhere, apart]))
    stacked, elsewhere = jax.device_get(passed)
    return stacked[0], thresholds.repeats(stacked, elsewhere)


def _agreement(
    model: TracedCallable, x: jax.Array, y: jax.Array, keys: jax.Array, eot: int
) -> Findings:
    """Whether two averages over `eot` draws have gradients that point the same way."""
    one, other = (
        np.asarray(probes.gradient(_average(model, keys, eot, number), x, y))
        for number in (1, 2)
    )
    return thresholds.agreement(one, other)


def _attack(
    problem: Problem,
    y: jax.Array,
    keys: jax.Array,
    clean: np.ndarray,
    classes: int,
    surrogate: TracedCallable | None,
    queries: int,
) -> Met:
    """The largest margin that each attack met."""
    runs = [Run(probes.LOG_ODDS, seed=seed) for seed in range(_RESTARTS)]
    runs += [
        Run(probes.MARGIN),
        Run(probes.MARGIN, radius=0.25),
        Run(probes.LOG_ODDS, seed=-1, steps=1),
        Run(probes.LOG_ODDS, radius=0, seed=_RESTARTS),
        Run(probes.MARGIN, radius=0, seed=_RESTARTS + 1),
    ]
    if classes > 2:
        runs.append(Run(probes.DLR))
    met = np.asarray(probes.climb(problem, y, fold_keys(keys, 2), probes.plan(runs)))
    margin, quarter, one_step, whole, whole_by_margin, *dlr = met[_RESTARTS:]
    return Met(
        clean=clean,
        restarts=met[:_RESTARTS],
        margin=margin,
        quarter=quarter,
        one_step=one_step,
        whole=np.maximum(whole, whole_by_margin),
        dlr=dlr[0] if dlr else None,
        square=_square(problem, y, fold_keys(keys, 3), queries),
        transfer=_transfer(problem, y, keys, surrogate),
    )


def _square(
    problem: Problem, y: jax.Array, keys: jax.Array, queries: int
) -> np.ndarray:
    """Largest margin [B] that Square met."""
    found = square(
        problem.logits_fn,
        problem.x,
        y,
        key=keys,
        ball=problem.ball,
        bounds=problem.bounds,
        queries=queries,
    )
    return np.asarray(found.loss)


def _transfer(
    problem: Problem, y: jax.Array, keys: jax.Array, surrogate: TracedCallable | None
) -> np.ndarray:
    """Margin [B] of the model at the images that an attack on a surrogate found."""
    if surrogate is None:
        return np.asarray(probes.linear_transfer(problem, y, fold_keys(keys, 4)))
    found = pgd(
        surrogate,
        problem.x,
        y,
        key=fold_keys(keys, 4),
        ball=problem.ball,
        bounds=problem.bounds,
        loss=losses.margin,
    )
    logits = probes.logits(problem.logits_fn, found.x_adv, keys, None)
    return np.asarray(losses.margin(logits, y))
