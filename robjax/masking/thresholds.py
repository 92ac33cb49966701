"""From measurements to flags: every threshold of the battery, with its reason.

Attacks are compared by their *progress*. That is how far an attack went from the clean
margin to the decision boundary, as a share of the whole way, and 1 once it fooled the
model. What happens beyond the boundary says nothing about robustness, so it does not
count.

The *spread* of the logits of a sample is the highest less the lowest of them. Changes
of the logits are given as shares of it.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from robjax.masking.probes import Look

# AutoAttack's tolerance for "in [0, 1] and sums to 1".
PROBABILITY = 1e-5
# A float32 softmax that differs from 1/K by 1 % at most: the cross-entropy climbs
# towards all wrong classes alike, and its change drowns in the rounding of log K.
FLAT_SPREAD = 0.01
# e^−gap is 0 in the arithmetic of the logits (float32: gap > 87): the cross-entropy as
# usually written has the gradient 0, not just an inaccurate one.
SATURATED_GAP = {dtype: -np.log(np.finfo(dtype).tiny) for dtype in ("f4", "f8")}
# A smaller change of the logits, as a share of their spread, is none. The same program
# on the same images repeats itself to rounding (1e-6), and a step of 1e-6 moves honest
# logits by 1e-4 of their spread at most.
SAME = 1e-3
# The same for images in another batch, which GPUs may compute in another way (TF32).
SAME_IN_BATCH = 1e-2
# Gradient and difference along the gradient may differ by a factor of 3 at 0.1 % of ε,
# where only kinks separate them, and of 10 at ε/4, where curvature does too. The sign
# counts at 0.1 % of ε only: in networks of 10 layers and more, steps of ε/4 through the
# kinks go down on up to a quarter of the images, and attacks succeed all the same.
RATIO_SMALL = 3.0
RATIO_COARSE = 10.0
# In random directions the gradient must explain 3/4 of the square of the differences,
# so the rest may be √(1/4) long. A gradient that misses half the paths explains 1/2.
RESIDUAL = 0.5
# A difference counts if it is this many roundings of the largest logit.
ROUNDINGS = 16
# One attack is "better" than another if it makes a quarter more progress, and 5 points
# more. Finite steps and random starts do less than that.
BETTER = 1.25
POINTS_BETTER = 0.05
# The best of four restarts goes half as far again as the typical one.
RESTARTS_BETTER = 1.5
# An attack "does nothing" with a fifth of the progress of another. Of the same 519 runs
# the cross-entropy did nothing from four starts on 4.5 % of the images at most where
# another loss fooled the model; from one start and short of fooling it was 19 %.
NOTHING = 0.2
# DLR divides the margin by z_(1) − z_(3). Where its gradient is this much shorter than
# the margin's gradient divided by the same number, the two parts of it cancel.
CANCELLED = 1e-3
# Where the margin is less than a tenth of z_(1) − z_(3), the third logit outweighs it.
# Near the boundary that is so in honest networks, too, but there DLR still leads to it:
# of 519 honest runs (MLPs of 1 to 12 layers) none had more than 2.1 % of its images
# both so and led away. That DLR leads away is no sign by itself: with margins of any
# size it does so on up to 40 % of the images of deep or narrow networks, whose logits
# shrink together towards the boundary, which a ratio of them does not show.
SWAMPED = 0.1
# Gradients of two averages of the same size: below 1/2, noise outweighs the signal.
AGREEMENT = 0.5
# Kinks and local maxima flag this share of the samples of an honest model, in checks
# that compare attacks or slopes. Three standard errors come on top.
CHANCE = 0.02


class Findings(NamedTuple):
    """What checks found, sample by sample.

    Attributes:
      flags: check -> bool [B], true where the check suspects the model.
      numbers: check, or "check/detail" -> [B], what was measured.
    """

    flags: dict[str, np.ndarray]
    numbers: dict[str, np.ndarray]

    def joined(self, other: "Findings") -> "Findings":
        """Both together."""
        return Findings(self.flags | other.flags, self.numbers | other.numbers)

    def only(self, checks: Iterable[str], where: np.ndarray) -> "Findings":
        """Takes back the flags of some checks outside the samples `where` [B]."""
        kept = {name: self.flags[name] & where for name in checks}
        return self._replace(flags=self.flags | kept)


class Met(NamedTuple):
    """The largest margin max_{i≠y} z_i − z_y that each attack met.

    Attributes:
      clean: [B] of the image itself.
      restarts: [R, B] of PGD on the cross-entropy from R random starts.
      margin: [B] of PGD on the margin.
      quarter: [B] of PGD on the margin in a ball of radius ε/4.
      one_step: [B] of one gradient step of length ε from the image.
      whole: [B] of PGD that may give each pixel any value.
      transfer: [B] of an attack on a surrogate.
      dlr: [B] of PGD on DLR; None for two classes, where there is no DLR.
      square: [B] of Square.
    """

    clean: np.ndarray
    restarts: np.ndarray
    margin: np.ndarray
    quarter: np.ndarray
    one_step: np.ndarray
    whole: np.ndarray
    transfer: np.ndarray
    square: np.ndarray
    dlr: np.ndarray | None = None


def tolerated(samples: int) -> float:
    """How many of `samples` chance may flag: the mean and three standard errors.

    >>> round(tolerated(100), 2)
    6.24
    """
    return CHANCE * samples + 3 * float(np.sqrt(CHANCE * samples))


def progress(margin: ArrayLike, clean: np.ndarray) -> np.ndarray:
    """The share of the way to the boundary that an attack went, at most 1.

    >>> progress(np.array([-1.0, 3.0, -2.0]), clean=np.full(3, -2.0)).tolist()
    [0.5, 1.0, 0.0]

    Args:
      margin: [..., B] that the attack met.
      clean: [B] margin of the image; where it is not below 0, progress is 0.
    """
    way = np.where(clean < 0, -clean, np.inf)
    return np.where(clean < 0, np.minimum((np.asarray(margin) - clean) / way, 1), 0)


def outputs(look: Look, at_image: np.ndarray, precision: float) -> Findings:
    """Checks of the outputs: finite, no probabilities, not saturated, not flat.

    >>> z = np.array([[[0.2, 0.8], [0.0, 5.0]]])  # one point, two samples
    >>> nothing = dict.fromkeys(Look._fields)
    >>> look = Look(**nothing | {"logits": z, "finite": np.ones((1, 2), bool)})
    >>> found = outputs(look, at_image=np.zeros((2, 3)), precision=1e-7)
    >>> found.flags["probabilities"].tolist()
    [True, False]

    Args:
      look: what was seen from points near the images.
      at_image: [B, *S] gradients of the margin at the images themselves.
      precision: relative rounding of the model, see `probes.precision`.
    """
    z = np.asarray(look.logits)
    # in half precision the sum is that of rounded probabilities
    sure = max(PROBABILITY, precision)
    known = np.isfinite(at_image.reshape(1, len(at_image), -1)).all(axis=2)
    finite = np.concatenate([np.asarray(look.finite), known])
    spread = np.ptp(z, axis=2).max(axis=0)
    rising = np.sort(z[0], axis=1)
    gap = rising[:, -1] - rising[:, -2]
    off_one = np.abs(z.sum(axis=2) - 1)
    beyond = np.maximum(-z, z - 1).max(axis=2)
    off_simplex = np.maximum(off_one, beyond).max(axis=0)
    limit = SATURATED_GAP["f8" if z.dtype == np.float64 else "f4"]
    flags = {
        "finite": ~finite.all(axis=0),
        "probabilities": off_simplex <= sure,
        "saturated": gap > limit,
        "flat": spread < FLAT_SPREAD,
    }
    numbers = {
        "finite": finite.mean(axis=0),
        "probabilities": off_simplex,
        "saturated": gap,
        "flat": spread,
    }
    return Findings(flags, numbers)


def repeats(passes: np.ndarray, elsewhere: np.ndarray) -> Findings:
    """Checks that the logits of an image are the same in every pass and batch.

    >>> passes = np.array([[[0.0, 1.0]], [[0.0, 1.1]]])
    >>> found = repeats(passes, elsewhere=passes[:1])
    >>> found.flags["random"].tolist(), found.numbers["random"].round(3).tolist()
    ([True], [0.1])

    Args:
      passes: [R, B, K] logits of R passes over one batch.
      elsewhere: [E, B, K] logits of the same images in other batches.
    """
    spread = _logit_spread(passes[0])
    random = np.abs(passes - passes[0]).max(axis=(0, 2)) / spread
    batch = np.abs(elsewhere - passes[0]).max(axis=(0, 2)) / spread
    # a model that never repeats itself shows nothing by differing elsewhere
    alone = (batch > SAME_IN_BATCH) & ~(random > SAME)
    flags = {"random": random > SAME, "batch": alone}
    return Findings(flags, {"random": random, "batch": batch})


def agreement(one: np.ndarray, other: np.ndarray) -> Findings:
    """Checks that two gradients [B, *S] of the same images point the same way.

    >>> right = np.array([[1.0, 0.0]])
    >>> agreement(right, other=np.array([[0.0, 1.0]])).flags["eot"].tolist()
    [True]
    """
    a = one.reshape(len(one), -1)
    b = other.reshape(len(other), -1)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(axis=1) / np.where(lengths > 0, lengths, 1)
    return Findings({"eot": cosine < AGREEMENT}, {"eot": cosine})


def slopes(look: Look, precision: float) -> Findings:
    """Checks that the gradient is the slope that differences of the margin show.

    >>> change = np.ones((4, 11, 1))  # 4 points, 11 steps, one sample
    >>> nothing = dict.fromkeys(Look._fields)
    >>> look = Look(**nothing | {
    ...     "logits": np.array(4 * [[[0.0, 1.0]]]), "zero": np.zeros((4, 1), bool),
    ...     "predicted": 9 * change, "measured": change, "jump": 0 * change,
    ... })
    >>> found = slopes(look, precision=1e-7)
    >>> found.flags["gradient"].tolist(), found.numbers["gradient"].round(2).tolist()
    ([True], [0.89])

    Args:
      look: what was seen from points near the images.
      precision: relative rounding of the model, see `probes.precision`.
    """
    z = np.asarray(look.logits)
    zero = np.asarray(look.zero)
    predicted = np.asarray(look.predicted)
    measured = np.asarray(look.measured)
    rounding = ROUNDINGS * precision * np.abs(z).max(axis=2)  # [P, B]
    coarse = _ratio(np.abs(predicted[:, 0]), np.abs(measured[:, 0]), rounding)
    small = _ratio(predicted[:, 1], measured[:, 1], rounding)
    residual = _residual(predicted[:, 3:], measured[:, 3:], rounding)
    spread = np.stack([_logit_spread(each) for each in z])
    jump = np.median(np.asarray(look.jump)[:, 2] / spread, axis=0)
    flags = {
        "zero_gradient": zero.any(axis=0),
        "shattered": jump > SAME,
        "gradient": _beyond(small, RATIO_SMALL)
        | _beyond(coarse, RATIO_COARSE)
        | (residual > RESIDUAL),
    }
    numbers = {
        "zero_gradient": zero.mean(axis=0),
        "shattered": jump,
        "gradient": residual,
        "gradient/ratio at 0.001 ε": small,
        "gradient/|ratio| at 0.25 ε": coarse,
    }
    return Findings(flags, numbers)


def attacks(met: Met, look: Look) -> Findings:
    """Checks that attacks which ought to be stronger are stronger.

    A loss that does nothing where another works is no masking: deep, narrow and hardly
    confident networks have such images for every loss, without a defence. It is a flag
    if the loss is the default and another one fools the model, so that the verdict
    changes, and if DLR fails by its denominator. Else `weak_losses` names it.

    >>> nothing = np.array([-2.0])  # the margin of the clean image
    >>> met = Met(clean=nothing, restarts=np.stack(4 * [nothing]), margin=nothing,
    ...     quarter=nothing, one_step=nothing, whole=nothing, transfer=np.array([1.0]),
    ...     square=nothing)
    >>> one = np.ones((4, 1))
    >>> look = Look(**dict.fromkeys(Look._fields))
    >>> look = look._replace(dlr=one, dlr_rise=one, dlr_share=one)
    >>> found = attacks(met, look)
    >>> [name for name, flag in found.flags.items() if flag]
    ['growth', 'full_box', 'transfer']
    """
    clean = met.clean
    restarts = progress(met.restarts, clean)
    luckiest = restarts.max(axis=0)
    others = {"margin": progress(met.margin, clean)}
    if met.dlr is not None:
        others["dlr"] = progress(met.dlr, clean)
    by_loss = {"cross-entropy": restarts[0]} | others
    other = np.max(list(others.values()), axis=0)
    worst_loss = np.min(list(by_loss.values()), axis=0)
    # where another loss does it, the cross-entropy is to blame and not the surface
    typical = np.maximum(np.median(restarts, axis=0), other)
    many_steps = np.maximum(restarts[0], other)
    white = np.maximum(luckiest, other)
    one_step = progress(met.one_step, clean)
    whole = progress(met.whole, clean)
    growth = met.margin - met.quarter
    dlr_length = _median_known(look.dlr)
    led_away = (np.asarray(look.dlr_rise) <= 0) & (np.asarray(look.dlr_share) < SWAMPED)
    default_fails = (luckiest < NOTHING) & (other == 1)
    flags = {
        # where the smaller ball is enough, there is nothing left to grow
        "growth": (growth <= 0) & (met.quarter < 0),
        "steps": _better(one_step, many_steps),
        "restarts": _better(luckiest, typical, RESTARTS_BETTER),
        "losses": default_fails
        | (dlr_length < CANCELLED)
        | (led_away.mean(axis=0) >= 0.5),
        "full_box": whole < 1,
    }
    numbers = {
        "growth": growth,
        "steps": one_step - many_steps,
        "restarts": luckiest - typical,
        "losses": worst_loss / np.where(white > 0, white, 1),
        "full_box": whole,
        "losses/gradient of dlr": dlr_length,
        "losses/dlr led away": led_away.mean(axis=0),
        "white-box": white,
    }
    numbers |= {f"losses/{name}": each for name, each in by_loss.items()}
    for name, margin in (("square", met.square), ("transfer", met.transfer)):
        black = progress(margin, clean)
        flags[name] = _better(black, white)
        numbers[name] = black - white
        numbers[f"{name}/progress"] = black
    return Findings(flags, numbers)


def weak_losses(found: Findings, judged: np.ndarray) -> list[str]:
    """A sentence on each loss that does nothing where another works, beyond chance.

    >>> numbers = {"losses/dlr": np.zeros(50), "white-box": np.ones(50)}
    >>> weak_losses(Findings({}, numbers), judged=np.ones(50, bool))[0][:57]
    'dlr alone does nothing on 50 of 50 images where another l'

    Args:
      found: what `attacks` found.
      judged: [B] bool, the images that were attacked.
    """
    asked = int(judged.sum())
    white = found.numbers["white-box"]
    sentences = []
    for name in ("cross-entropy", "margin", "dlr"):
        alone = found.numbers.get(f"losses/{name}", white)
        weak = (alone < NOTHING * white) & (white > POINTS_BETTER) & judged
        if weak.sum() > tolerated(asked):
            sentences.append(
                f"{name} alone does nothing on {weak.sum()} of {asked} images where "
                "another loss works: report attacks with several losses"
            )
    return sentences


def _better(one: np.ndarray, other: np.ndarray, factor: float = BETTER) -> np.ndarray:
    return one > factor * np.maximum(other, 0) + POINTS_BETTER


def _logit_spread(z: np.ndarray) -> np.ndarray:
    """Highest less lowest of the logits [B, K]; 1 where they are equal."""
    spread = np.ptp(z, axis=1)
    return np.where(spread > 0, spread, 1)


def _length(v: np.ndarray) -> np.ndarray:
    """Over the directions of [P, J, B]."""
    return np.sqrt((v**2).sum(axis=1))


def _residual(
    predicted: np.ndarray, measured: np.ndarray, rounding: np.ndarray
) -> np.ndarray:
    """The part of the slopes [P, J, B] that the gradient misses, median over points."""
    off = np.maximum(np.abs(measured - predicted) - rounding[:, None], 0)
    longer = np.maximum(_length(predicted), _length(measured))
    return np.median(_length(off) / np.where(longer > 0, longer, 1), axis=0)


def _ratio(
    predicted: np.ndarray, measured: np.ndarray, rounding: np.ndarray
) -> np.ndarray:
    """Median over the points of measured / predicted, [B]; NaN where rounding rules."""
    visible = np.maximum(np.abs(predicted), np.abs(measured)) > rounding
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(visible, measured / predicted, np.nan)
    return _median_known(ratio)


def _median_known(values: ArrayLike) -> np.ndarray:
    """Median [B] of the entries of [P, B] that are not NaN; NaN if all are."""
    none = np.isnan(values).all(axis=0)
    return np.where(none, np.nan, np.nanmedian(np.where(none, 0, values), axis=0))


def _beyond(ratio: np.ndarray, factor: float) -> np.ndarray:
    """Whether a ratio is known and outside [1/factor, factor]."""
    return (ratio < 1 / factor) | (ratio > factor)
