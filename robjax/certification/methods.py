"""The four methods: from a recorded network to bounds of its logit differences."""

from collections.abc import Callable, Iterable
from typing import Literal, TypeVar, get_args

import jax
import jax.numpy as jnp
import optax
from jax import lax

from robjax.certification.graph import Graph
from robjax.certification.linear import Bounds, lower_bound, propagate, relax
from robjax.certification.regions import Region
from robjax.numerics import finite_or_zero

Method = Literal["ibp", "crown_ibp", "crown", "alpha_crown"]
METHODS: tuple[Method, ...] = get_args(Method)

Slopes = dict[int, jax.Array]
"""Node -> where its lower line lies, in [0, 1]; see `Rule.start`."""
Free = TypeVar("Free")

_LEARNING_RATE = 0.1  # of the slopes, as in the authors' code, and its decay
_DECAY = 0.98


def differences(
    graph: Graph,
    region: Region,
    label: jax.Array,
    *,
    method: Method,
    steps: int,
    rows: int,
) -> jax.Array:
    """Lower bounds of z_y − z_i of one image, [K]; that of i = y is 0 up to rounding.

    Args:
      graph: made by `record` from a batch of one image, to logits [1, K].
      region: where the image is.
      label: y.
      method: see `robjax.certification.certify`.
      steps: of Adam on the slopes.
      rows: how many rows walk back together.
    """
    output = graph.output
    if not isinstance(output, int):
        constant = jnp.asarray(output)[0]
        return constant[label] - constant
    logits = graph.nodes[output].type
    ones = jnp.eye(logits.shape[1], dtype=logits.dtype)
    wanted = (ones[label][None] - ones)[:, None]
    tighten = method in ("crown", "alpha_crown")
    bounds = propagate(graph, region, rows=rows, tighten=tighten)
    lines = {} if method == "ibp" else relax(graph, bounds)

    def bound(row: jax.Array, free: Slopes) -> jax.Array:
        chosen = {**lines, **relax(graph, bounds, free)}
        return lower_bound(graph, bounds, chosen, region, row, output)

    if method == "alpha_crown":
        start = each_row(first_slopes(graph, bounds, lines), len(wanted))
        found, _ = optimised(
            lambda slopes: jax.vmap(bound)(wanted, slopes), start, steps, to_unit
        )
    else:
        found = jax.vmap(lambda row: bound(row, {}))(wanted)
    return jnp.where(known(bounds, output), found, -jnp.inf)


def known(bounds: Bounds, output: int) -> jax.Array:
    """Whether nothing in the network can be NaN, and all logits are finite.

    Ends that are not NaN do not tell: ∞ − ∞ lies in [−∞, ∞]. But such results have an
    unbounded rounding. Infinities that arithmetic does not make, of masks, are no harm.
    """
    ends = [jnp.any(jnp.isnan(end)) for i in bounds.intervals for end in i]
    finite = [*bounds.intervals[output], *(r for r in bounds.rounding if r is not None)]
    return ~jnp.any(jnp.stack(ends + [jnp.any(~jnp.isfinite(a)) for a in finite]))


def first_slopes(graph: Graph, bounds: Bounds, lines: Iterable[int]) -> Slopes:
    """The slopes of the relaxed nodes that have some to choose, as CROWN has them."""
    found = {}
    for index in lines:
        node = graph.nodes[index]
        if node.free and node.rule.start is not None:
            found[index] = node.rule.start(node.equation, *bounds.operands(node))
    return found


def each_row(tree: Free, rows: int) -> Free:
    """The same arrays for every row, [rows, …]."""
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * rows), tree)


def to_unit(slopes: Slopes) -> Slopes:
    """Slopes cut to [0, 1]."""
    return jax.tree.map(lambda slope: jnp.clip(slope, 0, 1), slopes)


def optimised(
    bound: Callable[[Free], jax.Array],
    start: Free,
    steps: int,
    project: Callable[[Free], Free],
) -> tuple[jax.Array, Free]:
    """The best bounds of R rows, each over what is free in it, by Adam.

    Args:
      bound: arrays [R, …] -> bounds [R]; any values that `project` returns will do.
      start: a pytree of arrays [R, …], such as slopes.
      steps: of Adam.
      project: keeps them in their range.

    Returns:
      The bounds, and where they were found.
    """
    adam = optax.adam(optax.exponential_decay(_LEARNING_RATE, 1, _DECAY))

    def loss(free: Free) -> tuple[jax.Array, jax.Array]:
        values = bound(free)
        return -jnp.sum(values), values

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        free, state, best, at = carry
        gradient, values = jax.grad(loss, has_aux=True)(free)
        change, state = adam.update(jax.tree.map(finite_or_zero, gradient), state)
        better = values > best

        def keep(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        at = jax.tree.map(keep, free, at)
        moved = project(jax.tree.map(jnp.add, free, change))
        return (moved, state, jnp.fmax(best, values), at), None

    shape = jax.eval_shape(bound, start)
    none = jnp.full(shape.shape, -jnp.inf, shape.dtype)
    first = start, adam.init(start), none, start
    (_, _, best, at), _ = lax.scan(step, first, None, length=steps + 1)
    return best, at
