"""What a model is: any function from images to logits.

    logits_fn(images [B, *S]) -> logits [B, K]
    logits_fn(images [B, *S], keys [B]) -> logits [B, K]       a randomised model

`as_logits_fn` makes a model of any framework such a function, with traced weights. The
other functions answer what can be asked of any model:

    count_classes   how many classes it has
    rounded_to      the same model at another precision
    mean_logits     its logits, of a randomised model their mean
    loss_gradient   the gradient of a loss for its images

`from_labels` makes a model of a Python function that gives labels. `robjax.compose`
makes one of several models, and steps that attacks can differentiate.

**Randomised models.** With ``eot=n`` (expectation over transformations, Athalye et
al., ICML 2018) everything known about a point is a mean over n fresh draws. With
``eot=None`` the model is deterministic and gets no keys.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from robjax import advice, lowering
from robjax.arrays import check_floating
from robjax.checks import check_count, check_logits
from robjax.samples import fold_keys
from robjax.traced import TracedCallable, traced

LogitsFn = Callable[..., jax.Array]
"""Images [B, *S], and keys [B] if the model is randomised -> logits [B, K]."""

_Evaluated = tuple[jax.Array, tuple[jax.Array, jax.Array]]
"""Gradient [B, *S], (loss [B], logits [B, K])."""


def as_logits_fn(logits_fn: LogitsFn) -> TracedCallable:
    """Makes a model of any framework a function of images whose weights are traced.

    New weights in the same structure do not compile anew, nor does the same function
    written again with other weights in its closure. What `logits_fn` may be:

    * ``jax.tree_util.Partial(model.apply, variables)`` of flax linen or Haiku, or the
      same with `functools.partial`;
    * an Equinox module, or ``jax.vmap`` of one that takes single images;
    * an NNX module after ``.eval()``;
    * a bound linen module;
    * a plain function.

    >>> import jax, jax.numpy as jnp
    >>> def linear(weights, x):
    ...     return x @ weights
    >>> logits_fn = as_logits_fn(jax.tree_util.Partial(linear, jnp.ones((4, 3))))
    >>> logits_fn(jnp.ones((2, 4))).shape
    (2, 3)

    Args:
      logits_fn: one of these; images [B, *S], and keys [B] if it is randomised, to
        logits [B, K].

    Raises:
      ValueError: `logits_fn` is not callable, a class, a module of PyTorch, a linen
        module without weights or an NNX module in train mode, or it holds an unhashable
        leaf that is no array. The message says what to give instead.
    """
    if isinstance(logits_fn, TracedCallable):
        return logits_fn
    refused = advice.refusal(logits_fn)
    if refused is not None:
        raise ValueError(f"logits_fn {refused}")
    return traced(_unbound(logits_fn), name="logits_fn")


def _unbound(model: Any) -> Any:
    """A bound linen module as its method `apply` and its variables."""
    linen = sys.modules.get("flax.linen")
    if linen is None or not isinstance(model, linen.Module):
        return model
    module, variables = model.unbind()
    return Partial(module.apply, variables)


def from_labels(predict: Callable[[Any], Any], num_classes: int) -> LogitsFn:
    """Makes a model of a Python function that gives labels, such as scikit-learn's.

    Its logits are 1 for the label and −1 for every other class, and their gradient is
    0. So it is for attacks that ask for labels alone: `attacks.hop_skip_jump` and
    `attacks.boundary_attack`, also in `evaluate`.

    Compiled code calls back to the host for every batch. That costs two copies of the
    images and about 0.1 ms, on top of the time of `predict`. A trace calls it once for
    an image of zeros, to see what it returns.

    >>> import jax.numpy as jnp
    >>> def brighter_half(images):
    ...     return (images[:, 1] > images[:, 0]).astype(int)
    >>> from_labels(brighter_half, 2)(jnp.array([[0.25, 0.75], [0.5, 0.0]])).tolist()
    [[-1.0, 1.0], [1.0, -1.0]]

    Args:
      predict: NumPy images [b, *S] -> integer labels [b] from 0 to K − 1, the same
        label for the same image. It must not call JAX.
      num_classes: K ≥ 2.

    Raises:
      ValueError: `predict` is not callable, or `num_classes` no whole number of at
        least 2. The model raises one if labels are malformed.
    """
    if not callable(predict):
        raise ValueError(f"predict must be a function of images, got {predict!r}")
    check_count("num_classes", num_classes, minimum=2)
    return Partial(_one_hot_of, predict, int(num_classes))


def _one_hot_of(
    predict: Callable[[Any], Any], num_classes: int, x: jax.Array
) -> jax.Array:
    def ask(images: jax.Array | np.ndarray) -> np.ndarray:
        shown = np.array(images)  # a copy, so that predict may write to it
        labels = np.asarray(predict(shown))
        name = "the labels of predict"
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"{name} must be integers, got {labels.dtype}: number the classes "
                "from 0, and give predict, not predict_proba"
            )
        if labels.shape != shown.shape[:1]:
            raise ValueError(
                f"{name} must have shape {shown.shape[:1]}, one for each image, got "
                f"{labels.shape}"
            )
        if labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(
                f"{name} must lie between 0 and {num_classes - 1}, got values from "
                f"{labels.min()} to {labels.max()}"
            )
        return labels.astype(np.int32)

    ask(np.zeros((1, *x.shape[1:]), x.dtype))
    shape = jax.ShapeDtypeStruct(x.shape[:1], jnp.int32)
    constant = lax.stop_gradient(x)
    labels = jax.pure_callback(ask, shape, constant, vmap_method="sequential")
    return 2 * jax.nn.one_hot(labels, num_classes, dtype=x.dtype) - 1


class _Rounded(NamedTuple):
    """Calls a model with images of another dtype."""

    dtype: jnp.dtype

    def __call__(
        self, model: TracedCallable, images: jax.Array, *keys: jax.Array
    ) -> jax.Array:
        return model(images.astype(self.dtype), *keys).astype(images.dtype)


def rounded_to(dtype: jax.typing.DTypeLike, logits_fn: LogitsFn) -> TracedCallable:
    """The model with its weights and images rounded to another precision.

    The model computes in that precision, unless it asks for another one itself. Logits
    come back in the dtype of the images, and so do gradients.

    >>> import jax.numpy as jnp
    >>> half = rounded_to(jnp.bfloat16, lambda x: 10 * x)
    >>> half(jnp.full((1, 2), 0.123)).tolist()
    [[1.234375, 1.234375]]

    Args:
      dtype: a floating-point type.
      logits_fn: any model.

    Raises:
      ValueError: `dtype` is not a floating-point type.
    """
    check_floating("dtype", dtype)

    def cast(leaf: jax.Array) -> jax.Array:
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if floating else leaf

    model = jax.tree.map(cast, as_logits_fn(logits_fn))
    return as_logits_fn(Partial(_Rounded(jnp.dtype(dtype)), model))


@jax.jit
def _call(logits_fn: TracedCallable, *inputs: jax.Array) -> Any:
    return logits_fn(*inputs)


def count_classes(
    logits_fn: TracedCallable,
    x: jax.Array | jax.ShapeDtypeStruct,
    keys: jax.Array | None = None,
) -> int:
    """The number of classes K of a model.

    It traces the model once for each shape of images, and compiles nothing. Should a
    function in the model need the values of the weights in its closure, they become
    constants (`TracedCallable.close`).

    >>> import jax.numpy as jnp
    >>> count_classes(as_logits_fn(lambda x: x[:, :3]), jnp.ones((2, 4)))
    3

    Args:
      logits_fn: made by `as_logits_fn`.
      x: [B, *S] images, or their shape and dtype.
      keys: [B] for a randomised model, else None.

    Raises:
      ValueError: the outputs are not logits, or calling the model failed. The message
        says what to write instead, as far as `robjax.advice` finds out.
    """
    inputs = (x,) if keys is None else (x, keys)
    try:
        logits = _call.eval_shape(logits_fn, *inputs)
    except Exception as error:
        if logits_fn.close():
            return count_classes(logits_fn, x, keys)
        raise advice.explain(logits_fn.original(), inputs, error)  # noqa: B904
    return check_logits(logits, x.shape[0]).shape[1]


def mean_logits(
    logits_fn: LogitsFn, x: jax.Array, keys: jax.Array, eot: int | None
) -> jax.Array:
    """The logits of a model, of a randomised model their mean over draws.

    >>> import jax, jax.numpy as jnp
    >>> from robjax.samples import sample_keys
    >>> keys = sample_keys(jax.random.key(0), 2)
    >>> mean_logits(lambda x, keys: x[:, :3], jnp.ones((2, 4)), keys, eot=5).shape
    (2, 3)

    Args:
      logits_fn: images -> logits, or (images, keys) -> logits with `eot`.
      x: [B, *S] images.
      keys: [B]; draw i uses them folded with i.
      eot: draws of a randomised model; None: deterministic.

    Returns:
      [B, K].
    """
    if eot is None:
        return logits_fn(x)
    passes = lax.map(lambda i: logits_fn(x, fold_keys(keys, i)), jnp.arange(eot))
    return jnp.mean(passes, axis=0)


def loss_gradient(
    logits_fn: LogitsFn,
    loss: Callable[[jax.Array], jax.Array],
    *,
    eot: int | None,
    last_draw_only: bool = False,
) -> Callable[[jax.Array, jax.Array], _Evaluated]:
    """The input gradient of a loss, for a randomised model its mean over draws.

    Components of the gradient that are not finite become 0.

    >>> import jax, jax.numpy as jnp
    >>> from robjax.samples import sample_keys
    >>> gradient = loss_gradient(lambda x: x, lambda z: z[:, 0] ** 2, eot=None)
    >>> g, (value, logits) = gradient(
    ...     jnp.array([[3.0, 1.0]]), sample_keys(jax.random.key(0), 1)
    ... )
    >>> g.tolist(), value.tolist()
    ([[6.0, 0.0]], [9.0])

    Args:
      logits_fn: images -> logits, or (images, keys) -> logits with `eot`.
      loss: logits [B, K] -> [B].
      eot: draws of a randomised model for each point; None: deterministic.
      last_draw_only: take loss and logits, not the gradient, from the last draw alone,
        as AutoAttack's code does.

    Returns:
      (x, keys) -> gradient [B, *S], (loss [B], logits [B, K]). All three are means over
      the same draws.
    """

    def total(
        v: jax.Array, keys: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        logits = logits_fn(v) if eot is None else logits_fn(v, keys)
        value = loss(logits)
        return jnp.sum(value), (value, logits)

    gradient = lowering.fast(jax.grad(total, has_aux=True))

    def mean(v: jax.Array, keys: jax.Array, count: int) -> _Evaluated:
        def draw(
            i: jax.Array, carry: tuple[_Evaluated, _Evaluated]
        ) -> tuple[_Evaluated, _Evaluated]:
            sums, _ = carry
            now = gradient(v, fold_keys(keys, i))
            return jax.tree.map(jnp.add, sums, now), now

        zero = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(gradient, v, keys),
        )
        sums, last = lax.fori_loop(0, count, draw, (zero, zero))
        g, outputs = jax.tree.map(lambda leaf: leaf / count, sums)
        if last_draw_only:
            _, outputs = last
        return g, outputs

    def evaluate(v: jax.Array, keys: jax.Array) -> _Evaluated:
        g, outputs = gradient(v, keys) if eot is None else mean(v, keys, eot)
        return jnp.where(jnp.isfinite(g), g, 0), outputs

    return evaluate
