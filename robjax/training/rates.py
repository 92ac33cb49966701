"""The learning rate of any optimizer: the number that its updates are multiplied by.

An optimizer of optax is a pair of functions that say nothing of their learning rate.
But its updates end with a product, −rate · direction, and the rate depends on the
optimizer's own state alone, not on the gradient. So it is read off the program that
`jax.make_jaxpr` makes of an update.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.extend import core

_SAME_VALUE = {"convert_element_type", "broadcast_in_dim", "reshape", "copy", "neg"}


RateFn = Callable[[Any, Any], float | None]
"""(state of the optimizer, weights) -> the rate of the next update, or None."""


def rate_reader(optimizer: optax.GradientTransformation) -> RateFn:
    """Returns a function that tells the learning rate of an optimizer's next update.

    Where parts of the weights have rates of their own it is the largest. It is None
    where no update ends with a product of a number and a rest.

    >>> schedule = optax.linear_schedule(1, 0, 4)
    >>> optimizer = optax.chain(optax.clip(1.0), optax.adam(schedule))
    >>> weights = {"w": jnp.ones(2)}
    >>> rate_reader(optimizer)(optimizer.init(weights), weights)
    1.0

    Args:
      optimizer: of optax.
    """

    @jax.jit
    def largest(state: Any, params: Any) -> jax.Array | None:
        update = jax.make_jaxpr(lambda s, g, p: optimizer.update(g, s, p)[0])
        closed = update(state, params, params)
        count = len(jax.tree.leaves(state))
        factors = _last_factors(closed.jaxpr, count)
        names = closed.jaxpr.debug_info.with_unknown_names()
        jaxpr = closed.jaxpr.replace(outvars=factors, debug_info=names)
        compute = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, closed.consts))
        # the gradient does not matter: XLA drops it, and what depends on it
        found = compute(*jax.tree.leaves((state, params, params)))
        rates = [jnp.max(jnp.abs(value)).astype(jnp.float32) for value in found]
        return jnp.max(jnp.stack(rates)) if rates else None

    def rate(state: Any, params: Any) -> float | None:
        found = largest(state, params)
        return None if found is None else float(found)

    return rate


def _last_factors(jaxpr: core.Jaxpr, known_inputs: int) -> list[Any]:
    """Of each output that is a number times a rest that is not known, the number.

    Args:
      jaxpr: a program.
      known_inputs: how many of its first inputs are known.
    """
    made_by = {out: eqn for eqn in jaxpr.eqns for out in eqn.outvars}
    known = {*jaxpr.constvars, *jaxpr.invars[:known_inputs]}

    def is_known(atom: Any) -> bool:
        return isinstance(atom, core.Literal) or atom in known

    for eqn in jaxpr.eqns:
        if all(map(is_known, eqn.invars)):
            known.update(eqn.outvars)

    def factor(atom: Any) -> Any:
        eqn = None if is_known(atom) else made_by.get(atom)
        if eqn is None:
            return None
        if eqn.primitive.name in _SAME_VALUE:
            return factor(eqn.invars[0])
        if eqn.primitive.name != "mul":
            return None
        inputs: list[Any] = eqn.invars
        return next((v for v in inputs if is_known(v) and v.aval.size == 1), None)

    return [found for found in map(factor, jaxpr.outvars) if found is not None]
