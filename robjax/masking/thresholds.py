"""From measurements to flags: every threshold of the battery, with its reason.

Attacks are compared by *progress*: the share of the way from the clean margin to the
decision boundary that an attack went, 1 once it fooled the model. What happens beyond
the boundary says nothing about robustness, so it does not count.
"""

from typing import Any

import numpy as np

from robjax.masking.probes import Look

Columns = dict[str, np.ndarray]

# AutoAttack's tolerance for "in [0, 1] and sums to 1".
PROBABILITY = 1e-5
# A float32 softmax that differs from 1/K by 1 % at most: the cross-entropy climbs
# towards all wrong classes alike, and its change drowns in the rounding of log K.
FLAT_SPREAD = 0.01
# e^−gap is 0 in the arithmetic of the logits (float32: gap > 87): the cross-entropy as
# usually written has the gradient 0, not just an inaccurate one.
SATURATED_GAP = {dtype: -np.log(np.finfo(dtype).tiny) for dtype in ("f4", "f8")}
# Of the spread of the logits. The same program on the same images repeats itself to
# rounding (1e-6); a step of 1e-6 moves honest logits by 1e-4 of their spread at most.
SAME = 1e-3
# The same for images in another batch, which GPUs may compute in another way (TF32).
SAME_IN_BATCH = 1e-2
# Gradient and difference along the gradient: a factor of 3 at 0.1 % of ε, where only
# kinks separate them; a factor of 10 at a quarter of ε, where curvature does too.
RATIO_SMALL, RATIO_COARSE = 3.0, 10.0
# In random directions the gradient must explain 3/4 of the square of the differences,
# so the rest may be √(1/4) long. A gradient that misses half the paths explains 1/2.
RESIDUAL = 0.5
# A difference counts if it is this many roundings of the largest logit.
ROUNDINGS = 16
# "Better" between two attacks: a quarter more progress and 5 points more, beyond what
# finite steps and random starts do.
BETTER, POINTS_BETTER = 1.25, 0.05
# The best of four restarts goes half as far again as the typical one.
RESTARTS_BETTER = 1.5
# An attack "does nothing" with a fifth of the progress of another.
NOTHING = 0.2
# DLR divides the margin by a spread of logits. Where its gradient is this much shorter
# than the margin's gradient divided by that number, the two parts of it cancel.
CANCELLED = 1e-3
# Gradients of two averages of the same size: below 1/2, noise outweighs the signal.
AGREEMENT = 0.5
# Share of samples that an honest model may have flagged by a check that compares
# attacks or slopes (kinks, local maxima); three standard errors come on top.
CHANCE = 0.02


def tolerated(samples: int) -> float:
    """Flags that chance explains among `samples`: mean and 3 standard errors."""
    return CHANCE * samples + 3 * np.sqrt(CHANCE * samples)


def progress(margin: Any, clean: np.ndarray) -> np.ndarray:
    """Share of the way to the boundary, at most 1; margins [..., B], clean [B] < 0."""
    way = np.where(clean < 0, -clean, np.inf)
    return np.where(clean < 0, np.minimum((np.asarray(margin) - clean) / way, 1), 0)


def outputs(look: Look) -> tuple[Columns, Columns]:
    """Checks that read the logits [P, B, K] alone."""
    z = np.asarray(look.logits)
    spread = np.ptp(z, axis=2).max(axis=0)
    top = np.sort(z[0], axis=1)
    gap = top[:, -1] - top[:, -2]
    off_one = np.abs(z.sum(axis=2) - 1)
    beyond = np.maximum(-z, z - 1).max(axis=2)
    off_simplex = np.maximum(off_one, beyond).max(axis=0)
    limit = SATURATED_GAP["f8" if z.dtype == np.float64 else "f4"]
    flags = {
        "finite": ~look.finite.all(axis=0),
        "probabilities": off_simplex <= PROBABILITY,
        "saturated": gap > limit,
        "flat": spread < FLAT_SPREAD,
    }
    numbers = {
        "finite": look.finite.mean(axis=0),
        "probabilities": off_simplex,
        "saturated": gap,
        "flat": spread,
    }
    return flags, numbers


def repeats(passes: np.ndarray, elsewhere: np.ndarray):
    """Passes over the same batch [R, B, K], and one [B, K] in another batch."""
    spread = _spread(passes[0])
    random = np.abs(passes - passes[0]).max(axis=(0, 2)) / spread
    batch = np.abs(elsewhere - passes[0]).max(axis=1) / spread
    # a model that never repeats itself shows nothing by differing elsewhere
    flags = {"random": random > SAME, "batch": (batch > SAME_IN_BATCH)}
    flags["batch"] &= ~flags["random"]
    return flags, {"random": random, "batch": batch}


def agreement(one: np.ndarray, other: np.ndarray) -> tuple[Columns, Columns]:
    """Compares two gradients [B, *S] of the same points."""
    a, b = (g.reshape(len(g), -1) for g in (one, other))
    length = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(axis=1) / np.where(length > 0, length, 1)
    return {"eot": cosine < AGREEMENT}, {"eot": cosine}


def slopes(look: Look) -> tuple[Columns, Columns]:
    """Checks that compare the gradient with differences."""
    z = np.asarray(look.logits)
    rounding = ROUNDINGS * np.finfo(z.dtype).eps * np.abs(z).max(axis=2)  # [P, B]
    predicted, measured = np.asarray(look.predicted), np.asarray(look.measured)
    coarse, small = (_ratio(predicted[:, j], measured[:, j], rounding) for j in (0, 1))
    p, m, floor = predicted[:, 3:], measured[:, 3:], rounding[:, None]
    off = np.maximum(np.abs(m - p) - floor, 0)
    long = np.maximum(_length(p), _length(m))
    residual = np.median(_length(off) / np.where(long > 0, long, 1), axis=0)
    jump = np.median(look.jump[:, 2] / np.stack([_spread(each) for each in z]), axis=0)
    flags = {
        "zero_gradient": look.zero.any(axis=0),
        "shattered": jump > SAME,
        "gradient": _beyond(small, RATIO_SMALL)
        | _beyond(coarse, RATIO_COARSE)
        | (residual > RESIDUAL),
    }
    numbers = {
        "zero_gradient": look.zero.mean(axis=0),
        "shattered": jump,
        "gradient": residual,
        "gradient/ratio at 0.001 ε": small,
        "gradient/ratio at 0.25 ε": coarse,
    }
    return flags, numbers


def attacks(done: dict[str, np.ndarray], look: Look) -> tuple[Columns, Columns]:
    """Checks that compare attacks; margins [B], of the restarts [R, B].

    done: "clean", "restarts", "margin", "quarter", "one step", "whole", and where they
    ran "dlr", "square", "transfer".
    """
    clean = done["clean"]
    restarts = progress(done["restarts"], clean)
    typical, luckiest = np.median(restarts, axis=0), restarts.max(axis=0)
    by_loss = {"cross-entropy": restarts[0], "margin": progress(done["margin"], clean)}
    if "dlr" in done:
        by_loss["dlr"] = progress(done["dlr"], clean)
    white = np.maximum(luckiest, np.max(list(by_loss.values()), axis=0))
    best, worst = white, np.min(list(by_loss.values()), axis=0)
    one_step = progress(done["one step"], clean)
    whole = progress(done["whole"], clean)
    growth = done["restarts"][0] - done["quarter"]
    flags = {
        "growth": growth <= 0,
        "steps": _better(one_step, restarts[0]),
        "restarts": _better(luckiest, typical, RESTARTS_BETTER),
        "losses": ((worst < NOTHING * best) & (best > POINTS_BETTER))
        | (_middle(look.dlr) < CANCELLED),
        "full_box": whole < 1,
    }
    numbers = {
        "growth": growth,
        "steps": one_step - restarts[0],
        "restarts": luckiest - typical,
        "losses": worst / np.where(best > 0, best, 1),
        "full_box": whole,
        "losses/gradient of dlr": _middle(look.dlr),
        "white-box": white,
    }
    numbers |= {f"losses/{name}": each for name, each in by_loss.items()}
    for name in ("square", "transfer"):
        if name in done:
            black = progress(done[name], clean)
            flags[name] = _better(black, white)
            numbers[name] = black - white
            numbers[f"{name}/progress"] = black
    return flags, numbers


def _better(one: np.ndarray, other: np.ndarray, factor: float = BETTER) -> np.ndarray:
    return one > factor * np.maximum(other, 0) + POINTS_BETTER


def _spread(z: np.ndarray) -> np.ndarray:
    spread = np.ptp(z, axis=1)
    return np.where(spread > 0, spread, 1)


def _length(v: np.ndarray) -> np.ndarray:
    """Over the directions of [P, J, B]."""
    return np.sqrt((v**2).sum(axis=1))


def _ratio(predicted, measured, rounding) -> np.ndarray:
    """Median over the points of measured / predicted, [B]; NaN where rounding rules."""
    visible = np.maximum(np.abs(predicted), np.abs(measured)) > rounding
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(visible, measured / predicted, np.nan)
    return _middle(ratio)


def _middle(values: Any) -> np.ndarray:
    """Median [B] of the entries of [P, B] that are not NaN; NaN if all are."""
    none = np.isnan(values).all(axis=0)
    return np.where(none, np.nan, np.nanmedian(np.where(none, 0, values), axis=0))


def _beyond(ratio: np.ndarray, factor: float) -> np.ndarray:
    return (ratio < 1 / factor) | (ratio > factor)
