"""A network as a list of equations: those whose values depend on the image.

`record` traces a function of one image and walks its jaxpr. What does not depend on the
image, such as weights, is computed on the way. Calls (`jit`, `custom_jvp`,
`custom_vjp`, remat) are entered, and loops (`scan`) are written out.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from robjax.certification.intervals import Equation, converted, exact, summation
from robjax.certification.rules import FUNCTIONS, RULES, Rule
from robjax.checks import is_half

Value = int | jax.Array
"""A node, by its number, or a constant."""

_CALLS = {
    "checkpoint",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "jit",
    "pjit",
    "remat",
    "remat2",
}
_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_IDENTITIES = {"copy", "copy_p", "optimization_barrier", "stop_gradient"}
_WRAPPING = {"abs", "neg"}  # exact, but not of the least integer
_APART = {
    *("add", "convert_element_type", "div", "mul", "neg", "reshape", "squeeze", "sub"),
    *("broadcast_in_dim", "transpose"),
}
"""Of one operand and as many values, these keep each value apart from the others."""
_EXACT = (lax.Precision.HIGHEST, lax.Precision.HIGHEST)


class Node(NamedTuple):
    """An equation whose result depends on the image.

    Attributes:
      equation: itself.
      rule: what is known of it.
      operands: nodes before it, by their numbers, and constants.
      type: shape and dtype of the result.
      affine: whether it is affine in the nodes among its operands.
    """

    equation: Equation
    rule: Rule
    operands: tuple[Value, ...]
    type: jax.ShapeDtypeStruct
    affine: bool

    @property
    def inputs(self) -> tuple[int, ...]:
        """The nodes among the operands."""
        return tuple(value for value in self.operands if isinstance(value, int))

    @property
    def free(self) -> bool:
        """Whether its relaxation has slopes to be chosen."""
        return self.rule.start is not None and len(self.inputs) == 1

    def among(self, values: Sequence[Any]) -> list[Any]:
        """The operands, with the nodes among them replaced by `values` in order."""
        given = iter(values)
        return [next(given) if _is_node(o) else o for o in self.operands]

    def of_inputs(self, *values: jax.Array) -> jax.Array:
        """The result, as a function of the nodes among the operands."""
        return self.equation(*self.among(values))


class Graph(NamedTuple):
    """The equations of a function in order; node 0 is the image.

    Attributes:
      nodes: all of them; the first has no operands.
      output: the node that the function returns, or a constant.
    """

    nodes: list[Node]
    output: Value

    def relaxed_inputs(self) -> set[int]:
        """The nodes that go into an equation that is not affine in them."""
        return {i for node in self.nodes if not node.affine for i in node.inputs}

    def affine_in_image(self) -> list[bool]:
        """For each node whether it is an affine function of the image."""
        found = [True]
        for node in self.nodes[1:]:
            found.append(node.affine and all(found[i] for i in node.inputs))
        return found

    def attained(self) -> list[bool]:
        """For each node whether its interval is exact where the image fills its box.

        So it is as long as each value is a pixel, scaled or shifted, and after the
        first sum of such pixels.
        """
        apart, found = [True], [True]  # apart: values that share no pixel
        for node in self.nodes[1:]:
            (first, *more), size = node.inputs, node.type.size
            known = node.affine and not more and found[first]
            mixes = node.rule.rounding is summation
            found.append(known and (apart[first] or not mixes))
            same = self.nodes[first].type.size == size and node.equation.name in _APART
            apart.append(known and apart[first] and same)
        return found


def record(
    function: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    rules: Mapping[str, Rule] = RULES,
) -> Graph:
    """Lists the equations of a function that depend on its argument.

    >>> graph = record(lambda x: jnp.maximum(2 * x + jnp.exp(1.0), 0), jnp.ones(3))
    >>> [node.equation.name for node in graph.nodes]
    ['image', 'mul', 'add', 'max']

    Args:
      function: of one array.
      image: an example of its argument, which may be traced.
      rules: name of a primitive -> rule.

    Raises:
      ValueError: an equation has no rule, or computes in half precision or with
        integers.
    """
    closed = jax.make_jaxpr(function)(image)
    kind = jax.ShapeDtypeStruct(image.shape, image.dtype)
    start = Node(Equation("image", lambda: image, {}), RULES["reshape"], (), kind, True)
    recorder = _Recorder([start], rules)
    (output,) = recorder.walk(closed.jaxpr, closed.consts, [0])
    return Graph(recorder.nodes, output)


class _Recorder(NamedTuple):
    nodes: list[Node]
    rules: Mapping[str, Rule]

    def walk(
        self, jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Value]
    ) -> list[Value]:
        """Goes through a jaxpr; returns its results, nodes or constants."""
        values: dict[core.Var, Value] = dict(zip(jaxpr.constvars, consts, strict=True))
        values.update(zip(jaxpr.invars, args, strict=True))

        def read(atom: core.Var | core.Literal) -> Value:
            constant = isinstance(atom, core.Literal)
            return jnp.asarray(atom.val) if constant else values[atom]

        for equation in jaxpr.eqns:
            inputs = [read(atom) for atom in equation.invars]
            with equation.ctx.manager:
                outputs = self._results(equation, inputs)
            values.update(zip(equation.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _results(self, equation: core.JaxprEqn, inputs: list[Value]) -> Sequence[Value]:
        name = equation.primitive.name
        if not any(map(_is_node, inputs)):
            outputs = _bind(equation, *inputs)
            return outputs if equation.primitive.multiple_results else [outputs]
        if name in _IDENTITIES:
            return inputs
        if name == "ne" and _same_node(inputs):
            # how `logaddexp` looks for NaN, which no bound survives anyway
            result: Any = equation.outvars[0].aval
            return [jnp.zeros(result.shape, bool)]
        if name in _CALLS and name not in self.rules:
            return self._enter(equation, inputs)
        if name == "scan" and name not in self.rules:
            return self._unroll(equation, inputs)
        if name not in self.rules:
            raise ValueError(
                f"logits_fn uses the primitive {name!r}, which no rule bounds: give "
                f"rules={{**certification.RULES, {name!r}: certification.Rule(…)}}"
            )
        return [
            self._add(*_picked(equation, inputs, number), self.rules, variable.aval)
            for number, variable in enumerate(equation.outvars)
        ]

    def _add(
        self,
        equation: Equation,
        operands: Sequence[Value],
        rules: Mapping[str, Rule],
        aval: Any,
    ) -> int:
        if jnp.issubdtype(aval.dtype, jnp.floating) and is_half(aval.dtype):
            raise ValueError(
                f"logits_fn must compute in float32 or float64, got {aval.dtype} from "
                f"{equation.name!r}: its rounding is too coarse to be bounded"
            )
        kind = jax.ShapeDtypeStruct(aval.shape, aval.dtype)
        rule = rules[equation.name]
        whole = rule.rounding is exact or rule.bound is converted
        wraps = not whole or equation.name in _WRAPPING
        if jnp.issubdtype(aval.dtype, jnp.integer) and wraps:
            raise ValueError(
                "logits_fn must not compute with integers made of the image, which may "
                f"overflow, as {equation.name!r} does"
            )
        nodes = [self.nodes[o].type for o in operands if _is_node(o)]
        affine = rule.affine(tuple(map(_is_node, operands))) and all(
            jnp.issubdtype(value.dtype, jnp.floating) for value in (kind, *nodes)
        )
        self.nodes.append(Node(equation, rule, tuple(operands), kind, affine))
        return len(self.nodes) - 1

    def _enter(self, equation: core.JaxprEqn, inputs: list[Value]) -> Sequence[Value]:
        """Goes through the body of a call, unless the function has a rule itself."""
        params = equation.params
        body = next(params[key] for key in _BODIES if key in params)
        name = params.get("name")
        if name in FUNCTIONS and _same(body, FUNCTIONS[name].function, equation):
            known = FUNCTIONS[name]
            call = Equation(name, known.function, {})
            rules = {name: known.rule}
            return [self._add(call, inputs, rules, equation.outvars[0].aval)]
        if isinstance(body, core.ClosedJaxpr):
            return self.walk(body.jaxpr, body.consts, inputs)
        return self.walk(body, (), inputs)

    def _unroll(self, equation: core.JaxprEqn, inputs: list[Value]) -> Sequence[Value]:
        """Writes out a scan over constants that collects nothing."""
        params = equation.params
        if "ft_in" in params:  # since JAX 0.11
            consts, carries, _ = map(len, params["ft_in"].unpack())
        else:
            consts, carries = params["num_consts"], params["num_carry"]
        fixed, carry = inputs[:consts], inputs[consts : consts + carries]
        rows = inputs[consts + carries :]
        if any(map(_is_node, rows)) or len(equation.outvars) > carries:
            raise ValueError(
                "logits_fn has a scan over values of the image, or one that collects "
                "them, which no rule bounds: write the loop out"
            )
        steps = range(params["length"])
        body = params["jaxpr"]
        for step in reversed(steps) if params["reverse"] else steps:
            now = [jnp.asarray(row)[step] for row in rows]
            carry = self.walk(body.jaxpr, body.consts, [*fixed, *carry, *now])
        return carry


def _is_node(value: object) -> bool:
    return isinstance(value, int)


def _same_node(values: Sequence[Value]) -> bool:
    return all(map(_is_node, values)) and len(set(values)) == 1


def _bind(equation: core.JaxprEqn, *values: Any) -> Any:
    primitive = equation.primitive
    params = dict(equation.params)
    if "precision" in params:
        params["precision"] = _EXACT
    return primitive.bind(*values, **primitive.get_bind_params(params))


def _picked(
    equation: core.JaxprEqn, inputs: list[Value], number: int
) -> tuple[Equation, list[Value]]:
    """One result of an equation, as an equation of its own, and its operands."""
    name = equation.primitive.name
    if name == "mul" and _same_node(inputs):
        return Equation("square", jnp.square, {}), inputs[:1]
    function = functools.partial(_bind, equation)
    if equation.primitive.multiple_results:
        return Equation(name, lambda *v: function(*v)[number], equation.params), inputs
    return Equation(name, function, equation.params), inputs


def _same(body: Any, function: Callable[..., Any], equation: core.JaxprEqn) -> bool:
    """Whether the body of a call is that of a function; a name alone proves nothing."""
    avals: list[Any] = [atom.aval for atom in equation.invars]
    types = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in avals
    ]
    for constant in equation.invars[1:]:
        known = isinstance(constant, core.Literal) and 0 <= np.min(constant.val) <= 1
        if not known:
            return False
    try:
        traced = jax.make_jaxpr(function)(*types)
    except TypeError:
        return False
    first = traced.jaxpr.eqns[0].params.get("jaxpr") if traced.jaxpr.eqns else None
    return str(first) == str(body) or str(traced) == str(body)
