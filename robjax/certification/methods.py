"""The four methods: from a recorded network to bounds of its logit differences."""

from collections.abc import Callable, Iterable
from typing import Literal, get_args

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
        found = _optimised(bound, wanted, _slopes(graph, bounds, lines), steps)
    else:
        found = jax.vmap(lambda row: bound(row, {}))(wanted)
    return jnp.where(_known(bounds, output), found, -jnp.inf)


def _known(bounds: Bounds, output: int) -> jax.Array:
    """Whether nothing in the network can be NaN, and all logits are finite.

    Ends that are not NaN do not tell: ∞ − ∞ lies in [−∞, ∞]. But such results have an
    unbounded rounding. Infinities that arithmetic does not make, of masks, are no harm.
    """
    ends = [jnp.any(jnp.isnan(end)) for i in bounds.intervals for end in i]
    finite = [*bounds.intervals[output], *(r for r in bounds.rounding if r is not None)]
    return ~jnp.any(jnp.stack(ends + [jnp.any(~jnp.isfinite(a)) for a in finite]))


def _slopes(graph: Graph, bounds: Bounds, lines: Iterable[int]) -> Slopes:
    """The slopes of the relaxed nodes that have some to choose, as CROWN has them."""
    found = {}
    for index in lines:
        node = graph.nodes[index]
        if node.free and node.rule.start is not None:
            found[index] = node.rule.start(node.equation, *bounds.operands(node))
    return found


def _optimised(
    bound: Callable[[jax.Array, Slopes], jax.Array],
    wanted: jax.Array,
    start: Slopes,
    steps: int,
) -> jax.Array:
    """The best bounds of the rows [K, …], each over its own slopes, by Adam."""
    schedule = optax.exponential_decay(_LEARNING_RATE, 1, _DECAY)
    adam = optax.adam(schedule)

    def loss(slopes: Slopes) -> tuple[jax.Array, jax.Array]:
        values = jax.vmap(bound)(wanted, slopes)
        return -jnp.sum(values), values

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        slopes, state, best = carry
        gradient, values = jax.grad(loss, has_aux=True)(slopes)
        change, state = adam.update(jax.tree.map(finite_or_zero, gradient), state)
        moved = jax.tree.map(lambda s, c: jnp.clip(s + c, 0, 1), slopes, change)
        return (moved, state, jnp.fmax(best, values)), None

    slopes = jax.tree.map(lambda s: jnp.stack([s] * len(wanted)), start)
    none = jnp.full(len(wanted), -jnp.inf, wanted.dtype)
    first = slopes, adam.init(slopes), none
    (_, _, best), _ = lax.scan(step, first, None, length=steps + 1)
    return best
