"""Branch and bound: halves what is not proven, until it is proven or broken.

An image is proven if every difference z_y − z_i is positive on all domains that the
halves of its region make up (`domains.py`). It is broken if an image of its ball ∩ box
is misclassified: the images where the linear bounds are least are tried. For networks
of few ReLUs or few pixels, enough domains decide every image.

    Bunel et al., JMLR 2020, arXiv 1909.06588; Wang et al., NeurIPS 2021, 2103.06624
"""

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from robjax import lowering
from robjax.balls import Ball
from robjax.certification import domains as domains_
from robjax.certification.certificates import (
    Problem,
    least_differences,
    picked,
    rows_at_once,
    wrong,
)
from robjax.certification.domains import Bounded, Domain
from robjax.certification.graph import record
from robjax.certification.regions import region
from robjax.certification.rules import RULES, Rule
from robjax.checks import Bounds, check_count
from robjax.model import LogitsFn
from robjax.samples import is_concrete
from robjax.traced import TracedCallable

_FIRST = ("ibp", "crown_ibp", "crown")


class Branched(NamedTuple):
    """What branch and bound found of B images.

    Attributes:
      margin: [B] lower bound of z_y − max_{i≠y} z_i over ball ∩ box; −inf where none is
        known.
      proven: [B] bool, margin > 0: no image of ball ∩ box has another class.
      broken: [B] bool, `x_adv` has another class.
      x_adv: [B, *S] images of ball ∩ box; x itself where it is not broken.
      domains: [B] int, how many were bounded.
    """

    margin: np.ndarray
    proven: np.ndarray
    broken: np.ndarray
    x_adv: np.ndarray
    domains: np.ndarray

    @property
    def robust(self) -> np.ndarray:
        """[B] bool, not broken, as `evaluation.bracket` reads it."""
        return ~self.broken

    @property
    def open(self) -> np.ndarray:
        """[B] bool, neither proven nor broken."""
        return ~(self.proven | self.broken)

    def __repr__(self) -> str:
        if not is_concrete(self.proven):
            return "Branched(traced)"
        proven, broken, still = map(
            np.count_nonzero, (self.proven, self.broken, self.open)
        )
        return (
            f"Branched({len(self.proven)} images: {proven} proven, {broken} broken, "
            f"{still} open, {np.sum(self.domains)} domains)"
        )


class _Part(NamedTuple):
    """A domain that is not bounded yet, of the difference z_y − z_other."""

    image: int
    other: int
    lower: float
    domain: Domain


def branch_and_bound(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    ball: Ball,
    bounds: Bounds = (0.0, 1.0),
    domains: int = 1000,
    steps: int = 20,
    batch_size: int = 64,
    rules: Mapping[str, Rule] = RULES,
) -> Branched:
    """Proves or breaks images that linear bounds leave open, as far as the budget goes.

    `certify` with CROWN comes first. Which images an attack breaks is cheaper to find
    out before, by the attack.

    Here z_0 − z_1 = 0.6 − clip(2 v − 1, 0, 0.5) ≥ 0.1, but linear bounds say −0.15:

    >>> import jax.numpy as jnp
    >>> from robjax.balls import Linf
    >>> def network(v):
    ...     steps = jax.nn.relu(2 * v - jnp.array([[1.5, 1.0]]))
    ...     return jnp.array([[0.6, 0.0]]) + steps
    >>> branch_and_bound(network, jnp.array([[0.5]]), jnp.array([0]), ball=Linf(0.5))
    Branched(1 images: 1 proven, 0 broken, 0 open, 3 domains)

    Args:
      logits_fn, x, y, ball, bounds, rules: as in `certify`.
      domains: at most, for each image; those of all classes together.
      steps: of Adam on slopes and multipliers, for each domain.
      batch_size: images or domains at a time.

    Raises:
      ValueError: as in `certify`.
    """
    problem = Problem.make(logits_fn, x, y, ball, bounds, rules)
    check_count("domains", domains, minimum=0)
    check_count("steps", steps, minimum=0)
    size = check_count("batch_size", batch_size)
    least, _ = least_differences(problem, _FIRST, everywhere=False, batch_size=size)
    return _search(problem, least, domains=domains, steps=steps, batch_size=size)


def _search(
    problem: Problem, least: np.ndarray, *, domains: int, steps: int, batch_size: int
) -> Branched:
    """The loop on the host: in every round a batch of domains, the worst first."""
    rows = problem.rows()
    x_adv = np.array(rows[0])
    count = np.zeros(len(x_adv), int)
    small = min(batch_size, len(x_adv))
    broken = np.array(wrong(problem.model, problem.x, problem.y, small))
    undecided = np.flatnonzero(~broken & ~(least.min(axis=1) > 0))
    waiting = _first_parts(problem, undecided, least, small)
    # of each difference, the least bound of the domains that need no halving
    done = np.where(_asked(waiting, least), np.inf, least)
    while some := _affordable(waiting, domains - count, batch_size):
        parts = [waiting.pop(place) for place in reversed(some)]
        found, points, fooled = _bounded(problem, parts, steps, batch_size)
        for number, (image, other, lower, _) in enumerate(parts):
            lower = max(lower, float(found.lower[number]))
            count[image] += 1
            if fooled[number]:
                broken[image] = True
                x_adv[image] = points[number]
            elif lower > 0:
                done[image, other] = min(done[image, other], lower)
            else:
                for half in found.halves:
                    half = jax.tree.map(operator.itemgetter(number), half)
                    waiting.append(_Part(image, other, lower, half))
        waiting = [part for part in waiting if not broken[part.image]]
    for image, other, lower, _ in waiting:
        done[image, other] = min(done[image, other], lower)
    done = np.where(broken[:, None], least, np.maximum(least, done))
    margin = done.min(axis=1)
    return Branched(margin, margin > 0, broken, x_adv, count)


def _asked(parts: Sequence[_Part], like: np.ndarray) -> np.ndarray:
    """[B, K] bool, whether a difference has domains."""
    asked = np.zeros(like.shape, bool)
    for part in parts:
        asked[part.image, part.other] = True
    return asked


def _affordable(
    waiting: Sequence[_Part], left: np.ndarray, batch_size: int
) -> list[int]:
    """Places of the worst domains whose images have some of their budget left."""
    left, some = left.copy(), []
    for place in np.argsort([part.lower for part in waiting], kind="stable"):
        image = waiting[place].image
        if left[image] > 0 and len(some) < batch_size:
            left[image] -= 1
            some.append(int(place))
    return sorted(some)


def _first_parts(
    problem: Problem, undecided: np.ndarray, least: np.ndarray, size: int
) -> list[_Part]:
    """The whole region of each image, for each of its differences that is open."""
    rows = problem.rows()
    parts = []
    for start in range(0, len(undecided), size):
        some = undecided[start : start + size]
        x, _, eps, box = picked(rows, some, size)
        found = _whole(problem.model, x, eps, box, **problem.static)
        domains, usable = jax.device_get(found)
        for number in np.flatnonzero(usable[: len(some)]):
            image = int(some[number])
            domain = jax.tree.map(operator.itemgetter(number), domains)
            for other in np.flatnonzero(~(least[image] > 0)):
                lower = float(least[image, other])
                parts.append(_Part(image, int(other), lower, domain))
    return parts


def _bounded(
    problem: Problem, parts: Sequence[_Part], steps: int, size: int
) -> tuple[Bounded, np.ndarray, np.ndarray]:
    """What is known of some domains, the images tried, and which are misclassified."""
    images = [part.image for part in parts]
    x, y, eps, box = picked(problem.rows(), images, size)
    others = np.resize([part.other for part in parts], size)
    padded = [parts[place % len(parts)].domain for place in range(size)]
    domain = jax.tree.map(lambda *leaves: np.stack(leaves), *padded)
    found = _bound(
        problem.model, x, y, eps, box, others, domain, steps=steps, **problem.static
    )
    points = problem.kind(eps).project(found.point, x, box or problem.bounds)
    fooled = wrong(problem.model, points, y, size)
    return jax.device_get((found, points, fooled))


@functools.partial(jax.jit, static_argnames=("kind", "bounds", "rules"))
def _whole(
    model: TracedCallable,
    x: jax.Array,
    eps: jax.Array,
    box: Bounds | tuple[()],
    *,
    kind: type[Ball],
    bounds: Bounds | tuple[()],
    rules: tuple[tuple[str, Rule], ...],
) -> tuple[Domain, jax.Array]:
    """The compiled part of `_first_parts`."""

    def one(image: jax.Array, radius: jax.Array, own: Bounds | tuple[()]):
        graph = record(model, image[None], dict(rules))
        around = region(image[None], radius, kind, _of_one(own) or bounds)
        return domains_.whole(graph, around, rows_at_once(graph, len(x)))

    return lowering.fast(jax.vmap(one))(x, eps, box)


@functools.partial(jax.jit, static_argnames=("kind", "bounds", "rules", "steps"))
def _bound(
    model: TracedCallable,
    x: jax.Array,
    y: jax.Array,
    eps: jax.Array,
    box: Bounds | tuple[()],
    other: jax.Array,
    domain: Domain,
    *,
    kind: type[Ball],
    bounds: Bounds | tuple[()],
    rules: tuple[tuple[str, Rule], ...],
    steps: int,
) -> Bounded:
    """The compiled part of `_bounded`."""

    def one(image, label, radius, own, against, part):
        graph = record(model, image[None], dict(rules))
        around = region(image[None], radius, kind, _of_one(own) or bounds)
        return domains_.bound(graph, around, part, label, against, steps)

    found = lowering.fast(jax.vmap(one))(x, y, eps, box, other, domain)
    return found._replace(point=found.point[:, 0])


def _of_one(box: Bounds | tuple[()]) -> Bounds | tuple[()]:
    return (box[0][None], box[1][None]) if box else ()
