"""What to write instead, where a model was given that is none.

    refusal       why something cannot be called as a model
    explain       why calling it failed

`explain` does not guess from the error alone. It tries what people usually mean, and
recommends what works. This takes a few traces, in the bad case only; nothing compiles.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robjax.checks import check_logits

Shaped = jax.Array | jax.ShapeDtypeStruct
"""An array, or what has its shape and dtype."""

_BLACK_BOX = (
    "for a model that is not written in JAX there is robjax.attacks.square_queries"
)
_TRAIN_MODE = "the model runs in train mode"
# What exceptions of JAX and other packages say -> what it means.
_MEANINGS = {
    "InvalidRngError": f"{_TRAIN_MODE}, where dropout draws: bind train=False",
    "ModifyScopeVariableError": f"{_TRAIN_MODE}, where it updates statistics: bind "
    "train=False",
    "TraceContextError": f"{_TRAIN_MODE}, where it changes itself: call .eval() on the "
    "NNX module first",
    "running in non-deterministic mode": f"{_TRAIN_MODE}, where dropout draws: give "
    "eqx.nn.inference_mode(model)",
    "TracerArrayConversionError": "it makes NumPy arrays of its images, which cannot "
    f"be differentiated: write it with jax.numpy; {_BLACK_BOX}",
    "TracerBoolConversionError": "it branches on computed values: write it "
    "with jnp.where or jax.lax.cond",
    "TracerIntegerConversionError": "it uses computed values as Python numbers: "
    f"write it with jax.numpy; {_BLACK_BOX}",
    "ConcretizationTypeError": "it uses computed values as Python numbers: write "
    f"it with jax.numpy; {_BLACK_BOX}",
}
_IMAGES = ("x", "image", "images", "inputs")
_EVAL_MODE = (
    ("train", False),
    ("training", False),
    ("is_training", False),
    ("deterministic", True),
    ("inference", True),
    ("use_running_average", True),
)


def refusal(value: Any) -> str | None:
    """Says what to give as a model in place of a value that is none.

    >>> refusal(dict) is None, refusal(lambda x: x) is None
    (False, True)
    >>> refusal({"params": {}}).partition(": ")[2]
    'weights are no model; give jax.tree_util.Partial(model.apply, variables)'

    Args:
      value: anything.

    Returns:
      The end of a sentence that begins with the name of the argument; None if the value
      may be a model.
    """
    kind = type(value).__name__
    families = {base.__module__.partition(".")[0] for base in type(value).__mro__}
    if isinstance(value, type):
        return (
            "must be a function from images to logits, got the class "
            f"{value.__name__}: make an instance of it, with its weights"
        )
    if "torch" in families:
        return (
            f"must be a function of JAX, got {kind} of PyTorch: give "
            "robjax.models.bridges.from_torch(module.eval(), x[:1])"
        )
    owner = getattr(value, "__self__", None)
    if _lacks_weights(value):
        return (
            f"must have weights, got the flax.linen module {kind} without weights: "
            "give jax.tree_util.Partial(model.apply, variables) or "
            "model.bind(variables)"
        )
    if _lacks_weights(owner):
        name = getattr(value, "__name__", "apply")
        return (
            f"must have weights, got {type(owner).__name__}.{name} without variables: "
            "give jax.tree_util.Partial(model.apply, variables)"
        )
    if callable(value):
        return None
    if hasattr(value, "apply") and hasattr(value, "init"):
        how = ": give jax.tree_util.Partial(model.apply, params, None), as for Haiku"
    elif hasattr(value, "apply_fn"):
        how = (
            ": give jax.tree_util.Partial(state.apply_fn, {'params': state.params}), "
            "and batch_stats with them"
        )
    elif hasattr(value, "predict") or hasattr(value, "decision_function"):
        how = (
            ": write its scores with jax.numpy, those of a linear model are x @ "
            f"model.coef_.T + model.intercept_; {_BLACK_BOX}"
        )
    elif isinstance(value, dict) or hasattr(value, "weights"):
        how = (
            ": weights are no model; give jax.tree_util.Partial(model.apply, variables)"
        )
    else:
        how = ""
    return f"must be a callable from images to logits, got {kind}{how}"


def _lacks_weights(value: Any) -> bool:
    """Whether a value is a flax.linen module that nothing was bound to."""
    linen = sys.modules.get("flax.linen")
    return linen is not None and isinstance(value, linen.Module) and not value.scope


class _Attempt(NamedTuple):
    """Something that may have been meant.

    Attributes:
      advice: what to write.
      call: the model, its images, and keys or not -> logits.
      batch_size: rows of these logits; None: as many as there are images.
    """

    advice: str
    call: Callable[..., Any]
    batch_size: int | None = None


def explain(
    model: Callable[..., Any], inputs: tuple[Shaped, ...], error: Exception
) -> ValueError:
    """Says why a model cannot be called, and what to write instead.

    >>> def one_image(x):
    ...     return jnp.ones((3, 64)) @ x.ravel()
    >>> images = jax.ShapeDtypeStruct((5, 8, 8, 1), jnp.float32)
    >>> try:
    ...     jax.eval_shape(one_image, images)
    ... except TypeError as error:
    ...     said = str(explain(one_image, (images,), error))
    >>> said.partition("; the error")[0]
    'logits_fn takes single images [8, 8, 1]: give jax.vmap(logits_fn)'

    Args:
      model: as the user gave it.
      inputs: images [B, *S], or what has their shape and dtype; and keys [B] if there
        are some.
      error: what calling the model with them raised.

    Returns:
      What to raise. Its cause, which Python shows above it, is `error` if that is all
      there is to know.
    """
    x = inputs[0]
    said = f"{type(error).__name__}: {first_line(error)}"
    for attempt in _attempts(x, has_keys=len(inputs) > 1):
        if _works(attempt, model, inputs):
            return _because(f"logits_fn {attempt.advice}; the error was {said}", None)
    meanings = [meaning for phrase, meaning in _MEANINGS.items() if phrase in said]
    why = _unbound(model, inputs) or next(iter(meanings), None)
    what = f"logits_fn cannot be called with images {list(x.shape)} of {x.dtype}"
    if why is None:
        return _because(f"{what}; the error was {said}", error)
    return _because(f"{what}: {why}; the error was {said}", None)


def _because(message: str, cause: Exception | None) -> ValueError:
    error = ValueError(message)
    error.__cause__ = cause  # None: Python shows no other error before this one
    return error


def first_line(error: Exception) -> str:
    r"""The first line of what an error says.

    >>> first_line(ValueError("one\ntwo"))
    'one'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else ""


def _attempts(x: Shaped, *, has_keys: bool) -> Iterator[_Attempt]:
    """What may have been meant, the likeliest first."""
    size = list(x.shape[1:])
    if has_keys:
        yield _Attempt(
            "must take (images, keys [B]) when eot is given: a model that draws "
            "nothing needs no eot",
            lambda model, x, keys: model(x),
        )
        return
    yield _Attempt(
        "takes (images, keys [B]), so it is randomised: give eot=n, the number of "
        "draws to average over, or where there is no eot one draw, as in "
        "lambda x: logits_fn(x, jnp.broadcast_to(key, len(x)))",
        lambda model, x: _draw(model, x, jax.random.split(jax.random.key(0), len(x))),
    )
    yield _Attempt(
        "takes one random key for all images, where robjax has a key for each: give "
        "lambda x, keys: jax.vmap(lambda x, key: logits_fn(x[None], key)[0])(x, keys), "
        "and eot=n, the number of draws to average over",
        lambda model, x: _draw(model, x, jax.random.key(0)),
    )
    for name, value in _EVAL_MODE:
        yield _Attempt(
            f"needs {name}={value}: give functools.partial(logits_fn, {name}={value})",
            functools.partial(_with_keywords, {name: value}),
        )
    yield _Attempt(
        "takes a random key before the images, as Haiku's apply does: give "
        "jax.tree_util.Partial(model.apply, params, None)",
        lambda model, x: model(None, x),
    )
    yield _Attempt(
        "takes a random key before the images and returns (logits, state), as Haiku's "
        "apply with state does: give a function that returns "
        "model.apply(params, state, None, x)[0]",
        lambda model, x: model(None, x)[0],
    )
    yield _Attempt(
        f"takes single images {size}: give jax.vmap(logits_fn)",
        lambda model, x: jax.vmap(model)(x),
    )
    yield _Attempt(
        f"takes batches, and x {list(x.shape)} is one image: give x[None], and its "
        "label as an array [1]",
        lambda model, x: model(x[None]),
        batch_size=1,
    )
    if len(size) == 3:
        first = "lambda x: logits_fn(jnp.moveaxis(x, -1, 1))"
        last = "lambda x: logits_fn(jnp.moveaxis(x, 1, -1))"
        yield _Attempt(
            f"takes images with the channels first: give {first}",
            lambda model, x: model(jnp.moveaxis(x, -1, 1)),
        )
        yield _Attempt(
            "takes single images with the channels first: give "
            "lambda x: jax.vmap(logits_fn)(jnp.moveaxis(x, -1, 1))",
            lambda model, x: jax.vmap(model)(jnp.moveaxis(x, -1, 1)),
        )
        yield _Attempt(
            f"takes images with the channels last: give {last}",
            lambda model, x: model(jnp.moveaxis(x, 1, -1)),
        )
    if len(size) > 1:
        yield _Attempt(
            "takes rows of pixels: give lambda x: logits_fn(x.reshape(len(x), -1))",
            lambda model, x: model(x.reshape(len(x), -1)),
        )


def _draw(model: Any, x: jax.Array, key: jax.Array) -> Any:
    """Calls a model with keys; an error if it does not look at them."""
    jaxpr = jax.make_jaxpr(model)(x, key).jaxpr
    if not any(jaxpr.invars[-1] is v for e in jaxpr.eqns for v in e.invars):
        raise TypeError("it draws nothing")
    return model(x, key)


def _with_keywords(keywords: dict[str, bool], model: Any, x: jax.Array) -> Any:
    return model(x, **keywords)


def _works(attempt: _Attempt, model: Any, inputs: tuple[Shaped, ...]) -> bool:
    try:
        logits = jax.eval_shape(functools.partial(attempt.call, model), *inputs)
        check_logits(logits, attempt.batch_size or inputs[0].shape[0])
    except Exception:  # whatever a model raises that was called in a wrong way
        return False
    return True


def _unbound(model: Any, inputs: tuple[Shaped, ...]) -> str | None:
    """Says which arguments a model has that nothing was bound to; None if none."""
    try:
        signature = inspect.signature(model)
    except (TypeError, ValueError):  # it tells nothing of its arguments
        return None
    try:
        signature.bind(*inputs)
    except TypeError:
        names = list(signature.parameters)
        if len(names) < 2:
            return "it takes no images"
        if names[0] in _IMAGES:
            others = ", ".join(f"{name}=…" for name in names[1:])
            how = f"functools.partial(logits_fn, {others})"
        else:
            known = ["None" if name in ("rng", "key") else name for name in names[:-1]]
            how = f"jax.tree_util.Partial(logits_fn, {', '.join(known)})"
        return (
            f"its arguments are ({', '.join(names)}), and none but the images may be "
            f"left: bind the others, as in {how}"
        )
    return None
