"""Certificates: lower bounds of the margin that no attack in the ball can break.

    margin = min over v ∈ ball ∩ box, i ≠ y of z_y(v) − z_i(v)

    method         bounds inside the network      bound of the margin
    ibp            intervals                      intervals
    crown_ibp      intervals                      linear
    crown          linear                         linear
    alpha_crown    linear                         linear, slopes of ReLUs optimised

For each difference `certify` takes the best of a method and those above it, so that
none is looser. The differences z_y − z_i go through the last affine layers as they are,
also for intervals.

    ibp          Gowal et al., arXiv 1810.12715
    crown_ibp    Zhang et al., ICLR 2020, arXiv 1906.06316
    crown        Zhang et al., NeurIPS 2018, arXiv 1811.00866
    alpha_crown  Xu et al., ICLR 2021, arXiv 2011.13824; here only the slopes of the
                 last walk back are optimised, for each difference its own

**What is guaranteed.** A proven image keeps its class at every image of the ball ∩ box,
for the network as it is computed in floating point, in any order of its sums, with
roundings as `intervals.py` states them. Products must be of full precision (on GPUs and
TPUs ``jax.default_matmul_precision("float32")``). Not bounded: products that underflow
in float32 on the way back, which takes weights near 1e-38 and values near 1e30.
"""

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from robjax import lowering
from robjax.balls import L1, L2, Ball, Linf
from robjax.boxes import check_box, has_arrays
from robjax.certification.graph import Graph, record
from robjax.certification.methods import METHODS, Method, differences
from robjax.certification.regions import region
from robjax.certification.rules import RULES, Rule
from robjax.checks import (
    Bounds,
    check_count,
    check_labels,
    check_number,
)
from robjax.losses import misclassified
from robjax.model import LogitsFn, as_logits_fn, count_classes
from robjax.numerics import map_batched
from robjax.samples import is_concrete
from robjax.traced import TracedCallable

Rows = TypeVar("Rows")

_ENTRIES = 2**24  # of all rows that walk back together, which bounds the memory
_CACHED = 2**20  # on a CPU, where they should stay in its caches


class Certificate(NamedTuple):
    """Lower bounds of the margins of B images.

    Attributes:
      margin: [B] lower bound of z_y − max_{i≠y} z_i over ball ∩ box; −inf where none is
        known.
      proven: [B] bool, margin > 0: no image of ball ∩ box has another class.
      method: that gave the margins; with several methods, [B] names.
    """

    margin: np.ndarray
    proven: np.ndarray
    method: str | np.ndarray

    def __repr__(self) -> str:
        if not is_concrete(self.proven):
            return "Certificate(traced)"
        share = 100 * float(np.mean(self.proven))
        names = ", ".join(np.unique(self.method).tolist())
        return f"Certificate({share:.2f} % of {len(self.proven)} proven, {names})"


def certify(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    ball: Ball,
    bounds: Bounds = (0.0, 1.0),
    method: Method | Sequence[Method] | Literal["auto"] = "auto",
    steps: int = 20,
    batch_size: int = 64,
    rules: Mapping[str, Rule] = RULES,
) -> Certificate:
    """Bounds from below how far the logit of the label stays above the others.

    For a linear model every method is exact. Here z_0 − z_1 = 2 v_0 − 2 v_1:

    >>> x = jnp.array([[0.75, 0.25]])
    >>> found = certify(lambda v: 2 * v, x, jnp.array([0]), ball=Linf(0.125))
    >>> found.margin.round(3).tolist(), found
    ([0.5], Certificate(100.00 % of 1 proven, ibp))

    Args:
      logits_fn: images [B, *S] -> logits [B, K]; any callable (`as_logits_fn`) that
        treats every image alone.
      x: [B, *S] images inside `bounds`.
      y: [B] integer labels.
      ball: Linf, L2 or L1; ε is a number or [B].
      bounds: lowest and highest pixel value: two numbers, or two arrays [*S] or [B, *S]
        as `attacks.limits` makes them of masks or of an ε for each pixel.
      method: see the module docstring. Several are tried in turn, each only on the
        images that are classified correctly and not proven yet; "auto": all four.
      steps: of Adam on the slopes of alpha_crown.
      batch_size: images at a time.
      rules: name of a primitive -> its rule.

    Returns:
      Certificate. With several methods, images that are misclassified keep the margin
      of the first.

    Raises:
      ValueError: an argument is malformed, or `logits_fn` uses a primitive without a
        rule; the message names it.
    """
    problem = Problem.make(logits_fn, x, y, ball, bounds, rules)
    names, everywhere = _check_methods(method)
    least, by = least_differences(
        problem,
        names,
        everywhere=everywhere,
        steps=check_count("steps", steps, minimum=0),
        batch_size=check_count("batch_size", batch_size),
    )
    margin = least.min(axis=1)
    return Certificate(margin, margin > 0, names[-1] if everywhere else by)


class Problem(NamedTuple):
    """A network and the regions of B images; checked by `make`.

    Attributes:
      model: made by `as_logits_fn`.
      x: [B, *S] images.
      y: [B] labels.
      eps: [B] radii.
      kind: Linf, L2 or L1.
      bounds: lowest and highest pixel value, two numbers or two arrays [B, *S].
      classes: K.
      rules: of primitives, as pairs.
    """

    model: TracedCallable
    x: jax.Array
    y: jax.Array
    eps: jax.Array
    kind: type[Ball]
    bounds: Bounds
    classes: int
    rules: tuple[tuple[str, Rule], ...]

    @classmethod
    def make(
        cls,
        logits_fn: LogitsFn,
        x: jax.Array,
        y: jax.Array,
        ball: Ball,
        bounds: Bounds,
        rules: Mapping[str, Rule],
    ) -> "Problem":
        """Checks the arguments, which are those of `certify`.

        Raises:
          ValueError: an argument is malformed; the message names it.
        """
        if not isinstance(rules, Mapping):
            raise ValueError(
                "rules must be a mapping from primitives to rules, as RULES, got "
                f"{rules!r}"
            )
        model = as_logits_fn(logits_fn)
        x, bounds = check_box(x, bounds)
        classes = count_classes(model, x[:1])
        y = check_labels(y, len(x), num_classes=classes)
        kind = _check_ball(ball, len(x))
        eps = jnp.broadcast_to(jnp.asarray(ball.eps, x.dtype), (len(x),))
        return cls(model, x, y, eps, kind, bounds, classes, tuple(rules.items()))

    def rows(self) -> tuple[np.ndarray, ...]:
        """Images, labels, radii and, of arrays, bounds: on the host, to be picked."""
        boxes = self.bounds if has_arrays(self.bounds) else ()
        return jax.tree.map(np.asarray, (self.x, self.y, self.eps, boxes))

    @property
    def static(self) -> dict[str, Any]:
        """What compiled functions take as it is; `bounds` is () where it is arrays."""
        bounds = () if has_arrays(self.bounds) else self.bounds
        return {"kind": self.kind, "bounds": bounds, "rules": self.rules}


def least_differences(
    problem: Problem,
    names: Sequence[Method],
    *,
    everywhere: bool,
    batch_size: int,
    steps: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """The best bounds of z_y − z_i by several methods in turn.

    Args:
      problem: made by `Problem.make`.
      names: of the methods.
      everywhere: use all of them on all images; else on those that are classified
        correctly and not proven yet.
      batch_size: images at a time.
      steps: of alpha_crown.

    Returns:
      [B, K] bounds, ∞ at i = y; [B] the method that gave the margin.
    """
    run = functools.partial(
        _differences,
        problem.model,
        **problem.static,
    )
    x, y = problem.x, problem.y
    rows = problem.rows()
    size = min(batch_size, len(x))
    least = np.full((len(x), problem.classes), -np.inf, x.dtype)
    by = np.full(len(x), names[0], dtype=f"<U{max(map(len, METHODS))}")
    left = np.arange(len(x))
    right = everywhere or ~np.asarray(wrong(problem.model, x, y, size))
    for name in names:
        own = steps if name == "alpha_crown" else 0  # of the others one program will do
        for start in range(0, len(left), size):
            some = left[start : start + size]
            found = run(*picked(rows, some, size), method=name, steps=own)
            better = np.maximum(least[some], np.asarray(found)[: len(some)])
            gained = better.min(axis=1) > least[some].min(axis=1)
            by[some] = np.where(gained, name, by[some])
            least[some] = better
        if not everywhere:
            left = np.flatnonzero(right & ~(least.min(axis=1) > 0))
    return least, by


def picked(rows: Rows, index: ArrayLike, size: int) -> Rows:
    """Some rows of arrays: always as many, lest every number of them compile anew."""
    padded = np.resize(index, size)
    return jax.tree.map(operator.itemgetter(padded), rows)


def _check_ball(ball: Ball, count: int) -> type[Ball]:
    if type(ball) not in (Linf, L2, L1):
        raise ValueError(f"ball must be Linf(eps), L2(eps) or L1(eps), got {ball!r}")
    check_number("ball.eps", ball.eps, minimum=0, batch_size=count)
    return type(ball)


def _check_methods(method: Any) -> tuple[tuple[Method, ...], bool]:
    """The methods to be tried in turn, and whether on all images or only where needed.

    One method alone comes with those that it must not be looser than.
    """
    if isinstance(method, str) and method in METHODS:
        return METHODS[: METHODS.index(method) + 1], True
    names: Any = METHODS if method == "auto" else method
    known = isinstance(names, tuple | list) and len(names) > 0
    if not known or any(name not in METHODS for name in names):
        raise ValueError(
            f"method must be 'auto', one of {METHODS} or several of them, got "
            f"{method!r}"
        )
    return (*names,), False


@functools.partial(jax.jit, static_argnums=3)
def wrong(
    model: TracedCallable, x: jax.Array, y: jax.Array, batch_size: int
) -> jax.Array:
    """Whether images are misclassified, [B]."""

    def batch(rows: tuple[jax.Array, jax.Array]) -> jax.Array:
        return misclassified(lowering.exact(model)(rows[0]), rows[1])

    return map_batched(batch, (x, y), batch_size)


@functools.partial(
    jax.jit,
    static_argnames=("kind", "bounds", "method", "steps", "rules"),
)
def _differences(
    model: TracedCallable,
    x: jax.Array,
    y: jax.Array,
    eps: jax.Array,
    box: Bounds | tuple[()],
    *,
    kind: type[Ball],
    bounds: Bounds,
    method: Method,
    steps: int,
    rules: tuple[tuple[str, Rule], ...],
) -> jax.Array:
    """The compiled part: bounds of z_y − z_i, [B, K]; inf at i = y."""
    bound = functools.partial(
        lower_differences, kind=kind, method=method, steps=steps, rules=dict(rules)
    )
    found = lowering.fast(
        lambda x, y, eps, box: bound(model, x, y, eps, bounds=box or bounds)
    )(x, y, eps, box)
    own = jnp.arange(found.shape[1])[None] == y[:, None]
    return jnp.where(own, jnp.inf, found)


def lower_differences(
    model: TracedCallable,
    x: jax.Array,
    y: jax.Array,
    eps: jax.Array,
    *,
    kind: type[Ball],
    bounds: Bounds,
    method: Method,
    steps: int = 0,
    rules: Mapping[str, Rule] = RULES,
) -> jax.Array:
    """Lower bounds of z_y − z_i over ball ∩ box, [B, K]; 0 or a little less at i = y.

    The part of `certify` that is traced, and that gradients go through.

    >>> model = as_logits_fn(lambda v: 2 * v)
    >>> found = lower_differences(
    ...     model, jnp.array([[0.75, 0.25]]), jnp.array([0]), jnp.array([0.125]),
    ...     kind=Linf, bounds=(0.0, 1.0), method="ibp",
    ... )
    >>> float(found[0, 1].round(3))
    0.5

    Args:
      model: made by `as_logits_fn`.
      x: [B, *S] images inside `bounds`.
      y: [B] integer labels.
      eps: [B] radii.
      kind: Linf, L2 or L1.
      bounds, method, steps, rules: as in `certify`.
    """
    boxed = has_arrays(bounds)

    def one(
        image: jax.Array, label: jax.Array, radius: jax.Array, box: Bounds | tuple[()]
    ) -> jax.Array:
        graph = record(model, image[None], rules)
        own = (box[0][None], box[1][None]) if box else bounds
        return differences(
            graph,
            region(image[None], radius, kind, own),
            label,
            method=method,
            steps=steps,
            rows=rows_at_once(graph, len(x)),
        )

    found = jax.vmap(one)(x, y, eps, bounds if boxed else ())
    return jnp.where(jnp.isnan(found), -jnp.inf, found)


def rows_at_once(graph: Graph, batch_size: int) -> int:
    """How many rows walk back together."""
    largest = max(math.prod(node.type.shape) for node in graph.nodes)
    entries = _CACHED if jax.default_backend() == "cpu" else _ENTRIES
    return max(1, entries // (largest * batch_size))
