"""Reasons to distrust an evaluation, each with what it means and what to do.

They are about

* the model: logits or gradients that are not finite, gradients that vanish, outputs
  that are constant, random, probabilities, or differ with the rest of the batch;
* the setting: bounds that the images do not fill, a radius that cannot be meant;
* an attack: what it returned is outside, or not what it says;
* attacks together: one without gradients fooled more than 0.2 % of the samples that no
  attack with gradients fooled.

Random outputs, probabilities and the last are warnings of AutoAttack's own code.
`doubts` gives those of the model and the setting without any attack. `robjax.masking`
looks deeper.
"""

from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np
from jax.typing import ArrayLike

from robjax.balls import L0, L1, L2, Ball, Linf
from robjax.boxes import check_box, has_arrays
from robjax.checks import Bounds
from robjax.evaluation import probe
from robjax.evaluation.arguments import check_ball
from robjax.evaluation.attack import Attack, BoundAttack, uses_gradients
from robjax.evaluation.batches import Task
from robjax.evaluation.verdicts import Verdicts, attack_all
from robjax.model import LogitsFn

# Share of samples whose verdict reassociated floating-point sums may flip.
_BORDERLINE = 1e-3
# Change of a margin, as a share of the spread of the logits. The same program on the
# same images repeats itself to 1e-6.
_SAME = 1e-4
# The same among other neighbours, where low precision may round otherwise.
_SAME_ELSEWHERE = 1e-2
# Share of samples that only attacks without gradients fooled.
_GRADIENT_FREE = 2e-3
# Share of the bounds that the images span.
_SPANNED = 0.05
# A radius as a share of the box. Published ones are above 1e-3; 8/255 where the bounds
# are (0, 255) is 1.2e-4.
_SMALL_RADIUS = 2.5e-4

# Why the verdicts of an attack may not be those of the evaluation.
_CAUSES = (
    "See that the logits change neither from pass to pass nor with the batch, that "
    "dtype= is not too low, and that `success` is that of the images returned"
)
_MORE_EOT = (
    "That is another mean over draws: raise eot, in the evaluation and in the attack, "
    "until the two agree"
)


def doubts(
    logits_fn: LogitsFn,
    x: jax.Array | np.ndarray,
    y: ArrayLike | Sequence[int],
    *,
    key: jax.Array | None = None,
    ball: Ball | L0 | None = None,
    bounds: Bounds = (0.0, 1.0),
    eot: int | None = None,
) -> tuple[str, ...]:
    """Lists reasons to distrust any attack on this model, without attacking it.

    It is cheap: a forward pass over the images, two more over a batch of them, and the
    gradients of at most 512. Ask it before you call an attack yourself: `pgd` and its
    kin say nothing of all this.

    **The number to report** is not that of one attack. It is that of
    ``evaluate(logits_fn, data, attacks.suite("standard", ball), key=key,
    cascade=True)``, or of `attacks.autoattack`, which judge what the attacks return by
    a fresh forward pass. They put the same sentences into their `warnings`.

    >>> x = np.array([[0.1, 0.4], [0.9, 0.3]], np.float32)
    >>> doubts(lambda x: 10 * x, x, np.array([1, 0]))
    ()
    >>> (found,) = doubts(lambda x: (20 * x).round(), x, np.array([1, 0]))
    >>> found.partition(",")[0]
    '2 of 2 images have an input gradient of exactly 0'

    Args:
      logits_fn: images [B, *S] -> logits [B, K], or (images, keys [B]) -> logits with
        `eot`; any callable (`as_logits_fn`).
      x: [B, *S] images inside `bounds`.
      y: [B] integer labels.
      key: one key, or one for each sample, for a randomised model; None: that of seed
        0.
      ball: the threat model whose radius is looked at; None: none is.
      bounds: as in `evaluate`.
      eot: draws over which a randomised model is averaged; None: deterministic.

    Returns:
      One sentence for each doubt; empty if there are none.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    x, bounds = check_box(x, bounds)
    images = np.asarray(x)
    task = Task.make(
        logits_fn,
        images,
        y,
        key=jax.random.key(0) if key is None else key,
        bounds=bounds,
        eot=eot,
    )
    if ball is not None:
        check_ball("ball", ball, len(images))
    clean = attack_all(task, None, np.arange(len(images)))
    return tuple(of_task(task, clean, gradients=True, balls=[ball]))


def find_warnings(
    task: Task, attacks: Mapping[str, Attack], verdicts: Mapping[str, Verdicts]
) -> tuple[str, ...]:
    """Lists reasons to distrust an evaluation, one sentence each.

    >>> task = Task.make(
    ...     lambda x: x, np.array([[0.25, 0.75], [0.5, 0.5]], np.float32), [1, 0],
    ...     key=jax.random.key(0), bounds=(0.0, 1.0), devices=jax.local_devices()[:1],
    ... )
    >>> clean = attack_all(task, None, np.arange(2))
    >>> find_warnings(task, {}, {"clean": clean})[0].partition(",")[0]
    'the outputs are probabilities'

    Args:
      task: what was attacked.
      attacks: by name.
      verdicts: by name; those on "clean" and on every attack.
    """
    found = of_task(
        task,
        verdicts["clean"],
        gradients=any(map(uses_gradients, attacks.values())),
        balls=[BoundAttack(attack, task.bounds).ball for attack in attacks.values()],
    )
    for name in attacks:
        found += _of_an_attack(name, verdicts[name], task)
    return tuple(found + _of_gradient_free(attacks, verdicts))


def of_task(
    task: Task,
    clean: Verdicts,
    *,
    gradients: bool,
    balls: Iterable[Ball | L0 | None],
) -> list[str]:
    """Lists reasons to distrust any attack on a task: its model, bounds and radii.

    >>> task = Task.make(
    ...     lambda x: x, np.array([[0.5, 1.0]], np.float32), [1],
    ...     key=jax.random.key(0), bounds=(0.0, 255.0),
    ... )
    >>> clean = attack_all(task, None, np.arange(1))
    >>> (found,) = of_task(task, clean, gradients=True, balls=[])
    >>> found.partition(":")[0]
    'the images lie between 0.5 and 1 and span 0.2 % of bounds=(0.0, 255.0)'

    Args:
      task: what is attacked.
      clean: the verdicts on its clean images.
      gradients: whether the gradients of the model matter.
      balls: threat models, or None for the box alone.
    """
    found = _of_logits(task, clean)
    if gradients:
        found += _of_slopes(task, np.flatnonzero(~clean.fooled))
    if has_arrays(task.bounds):  # a box for each pixel says what is meant
        return found
    low, high = _extremes(task)
    unfilled = of_bounds(low, high, task.bounds)
    found += unfilled
    for ball in balls:
        if ball is None:
            continue
        doubted = of_radius(ball, task, fits=not unfilled)
        if not (doubted or unfilled) and _covers(ball, high - low, task):
            doubted = [
                f"{type(ball).__name__}({float(np.max(ball.eps)):.4g}) lets any image "
                f"become any other, as all lie between {low:.3g} and {high:.3g}: scale "
                "the images, or give the radius in their unit"
            ]
        found += [text for text in doubted if text not in found]  # attacks share balls
    return found


def _covers(ball: Ball | L0, span: float, task: Task) -> bool:
    """Whether the ball of an image holds all images whose pixels span so much."""
    count = task.images[0].size
    farthest = {Linf: span, L2: float(np.sqrt(count)) * span, L1: count * span}
    return type(ball) in farthest and float(np.max(ball.eps)) >= farthest[type(ball)]


def of_bounds(low: float, high: float, bounds: Bounds) -> list[str]:
    """The doubt about bounds that images from `low` to `high` do not fill, if any.

    >>> len(of_bounds(0.0, 1.0, (0.0, 255.0))), of_bounds(0.0, 1.0, (0.0, 1.0))
    (1, [])
    """
    width = bounds[1] - bounds[0]
    if high - low >= _SPANNED * width:
        return []
    return [
        f"the images lie between {low:.3g} and {high:.3g} and span "
        f"{100 * (high - low) / width:.2g} % of bounds={bounds}: attacks may give "
        "pixels values that no image has; give the range of the images as bounds, or "
        "scale the images"
    ]


def _of_logits(task: Task, clean: Verdicts) -> list[str]:
    found = []
    labels = task.labels
    known = clean.predicted[clean.predicted >= 0]
    if lost := len(labels) - len(known):
        found.append(
            f"{lost} of {len(labels)} images have logits that are not finite and count "
            "as misclassified: look for NaN among the weights, and for operations that "
            "overflow"
        )
    if len(known) > 1 and np.ptp(known) == 0 and np.ptp(labels) > 0:
        found.append(
            f"every image is classified as {known[0]}, so robust accuracy is at most "
            "the share of that class: check the weights, and that the images are "
            "scaled as in training"
        )
    repeats = probe.repeats(task, clean.margin)
    moved = np.mean(repeats.elsewhere > _SAME_ELSEWHERE)
    if (repeats.again > _SAME).any():
        found.append(
            "the same images give other logits in a second pass, so chance decides "
            "verdicts: give the model as logits_fn(images, keys), with eot, or switch "
            "its noise off"
        )
    elif moved:  # without a second pass that differs: noise would move them, too
        found.append(
            "the logits of an image depend on its neighbours, its place or the size of "
            f"the batch ({moved:.0%} of the images looked at), so every number depends "
            "on the batch size: switch batch norm to inference mode, and draw noise "
            "for each image from its own key"
        )
    if repeats.simplex.all():
        found.append(
            "the outputs are probabilities, whose gradients vanish with confidence: "
            "give the logits, which go into the softmax"
        )
    return found


def _of_slopes(task: Task, correct: np.ndarray) -> list[str]:
    """Doubts about the input gradients at the samples `correct`."""
    if not len(correct):
        return []
    try:
        slopes = probe.slopes(task, correct)
    except Exception as error:  # the model's own; verdicts must not be lost to it
        reason = str(error).partition("\n")[0]
        return [
            f"the model cannot be differentiated ({type(error).__name__}: {reason}), "
            "so only attacks without gradients say anything: use attacks.square, and "
            "mark such attacks of your own with evaluation.gradient_free"
        ]
    found = []
    looked_at = f"{len(slopes.zero)} images"
    if broken := np.count_nonzero(slopes.broken):
        found.append(
            f"{broken} of {looked_at} have an input gradient that is not finite, whose "
            "NaN or infinite components attacks take for 0: find the operation that "
            "has no slope there (a norm or root at 0, a division, an overflow)"
        )
    if zero := np.count_nonzero(slopes.zero):
        found.append(
            f"{zero} of {looked_at} have an input gradient of exactly 0, so gradients "
            "lead no attack there and robust accuracy comes out too high: give "
            "rounding, sign, arg max and stop_gradient the derivative of a stand-in "
            "(BPDA: compose.bpda), scale down what saturates, and use attacks.square; "
            "robjax.masking looks deeper"
        )
    return found


def _extremes(task: Task) -> tuple[float, float]:
    """Lowest and highest pixel of all images, in the units of the bounds."""
    scale = 1 if task.scale is None else task.scale
    return float(task.images.min() / scale), float(task.images.max() / scale)


def of_radius(ball: Ball | L0, task: Task, *, fits: bool) -> list[str]:
    """The doubt about a radius, if any.

    >>> task = Task.make(
    ...     lambda x: x, np.array([[0.5, 1.0]], np.float32), [1],
    ...     key=jax.random.key(0), bounds=(0.0, 1.0),
    ... )
    >>> of_radius(Linf(0.1), task, fits=True), len(of_radius(Linf(8), task, fits=True))
    ([], 1)

    Args:
      ball: the threat model.
      task: what is attacked.
      fits: the bounds are those of the images; else a small radius is not doubted.
    """
    width = task.bounds[1] - task.bounds[0]
    count = task.images[0].size
    eps = float(np.asarray(ball.eps).max())
    shown = f"{type(ball).__name__}({eps:.4g})"
    if isinstance(ball, L0):
        least = 1.0
        most = float(count)
        advice = "ε is the number of values that may change"
    else:
        side = 1.0 if isinstance(ball, Linf) else float(np.sqrt(count))
        least = _SMALL_RADIUS * side * width if fits else 0.0
        # from there the middle of the box lies in the ball of every image
        most = (count if isinstance(ball, L1) else side) * width / 2
        advice = (
            "ε is in the unit of the pixels, where 8 of 255 levels are "
            f"{8 * width / 255:.3g}"
        )
    if eps >= most:
        return [
            f"{shown} lets all images within bounds={task.bounds} become the same one, "
            f"so no model that tells classes apart is robust: {advice}"
        ]
    if eps < least:
        return [
            f"{shown} lets images hardly move within bounds={task.bounds}, so robust "
            f"accuracy hardly differs from accuracy: {advice}"
        ]
    return []


def _of_an_attack(name: str, verdicts: Verdicts, task: Task) -> list[str]:
    found = []
    if bad := np.count_nonzero(verdicts.outside):
        found.append(
            f"{name}: {bad} images returned outside the ball or the bounds count as "
            "not fooled: let the attack end with ball.project(x_adv, x, bounds)"
        )
    if lost := np.count_nonzero(verdicts.tried & (verdicts.predicted < 0)):
        found.append(
            f"{name}: {lost} attacked images give logits that are not finite and count "
            "as fooled: find the operation that overflows, without which the model may "
            "be more robust"
        )
    wrong = verdicts.tried & ~verdicts.outside
    wrong &= verdicts.claimed != (verdicts.predicted != task.labels)
    if (lied := np.count_nonzero(wrong)) > _BORDERLINE * len(task.labels):
        found.append(
            f"{name}: {lied} verdicts differ from the attack's own `success`; those of "
            f"a fresh forward pass count. {_CAUSES if task.eot is None else _MORE_EOT}"
        )
    return found


def _of_gradient_free(
    attacks: Mapping[str, Attack], verdicts: Mapping[str, Verdicts]
) -> list[str]:
    without = [name for name, attack in attacks.items() if not uses_gradients(attack)]
    others = [verdicts[name].fooled for name in attacks if name not in without]
    if not without or not others:
        return []
    alone = np.any([verdicts[name].fooled for name in without], axis=0)
    alone &= ~np.any(others, axis=0)
    if alone.mean() <= _GRADIENT_FREE:
        return []
    return [
        f"{', '.join(without)}: fooled {alone.sum()} images that no other attack did, "
        "without gradients, so these may be masked: report the worst case of all "
        "attacks, and ask robjax.masking.check where gradients fail"
    ]
