"""Square on models that JAX cannot trace: an API, a PyTorch network, a device.

The same search as `square`, with the same draws, run from the host: JAX proposes images
and takes in margins; in between any Python function says what it makes of the images.
It is shown only samples that are not solved yet. As they become fewer, the search moves
to smaller arrays, a quarter of the size or less and a power of two, so that few sizes
are compiled.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robjax.attacks.problem import check_problem
from robjax.attacks.result import AttackResult, Best
from robjax.attacks.square import search
from robjax.attacks.square.proposals import window_sides
from robjax.attacks.square.search import SearchSpace, SearchState
from robjax.balls import Ball
from robjax.checks import Bounds, check_count, check_labels
from robjax.samples import sample_keys

Ask = Callable[[np.ndarray, int | None], np.ndarray]
"""Images [b, H, W, C] and K, or None if K is not known yet -> scores [b, K]."""

_SHRINK = 4

_propose = jax.jit(search.propose)
_update = jax.jit(search.update)
_best = jax.jit(search.result)
_result = jax.jit(Best.result)


def square_queries(
    predict: Callable[[np.ndarray], Any],
    x: jax.Array | np.ndarray,
    y: jax.Array | np.ndarray,
    *,
    key: jax.Array,
    ball: Ball,
    bounds: Bounds = (0.0, 1.0),
    queries: int = 5000,
    p_init: float = 0.8,
    restarts: int = 1,
    batch_size: int | None = None,
) -> AttackResult:
    """The Square attack (`square`) on any function from images to scores.

    Args:
      predict: images [b, *S], 1 ≤ b ≤ B -> scores [b, K]; NumPy in, and out what
        `np.asarray` takes. Logits, log-probabilities or probabilities: the largest is
        the class, and the search raises max_{i≠y} z_i − z_y.
      x, y, key, ball, bounds, p_init: as in `square`.
      queries: proposals for each restart. No sample is shown more than
        1 + restarts × (queries + 1) times, nor again once it is solved.
      restarts: independent searches.
      batch_size: most images for one call of `predict`; None: all unsolved ones.

    Returns:
      AttackResult as of `square` with the same key. `queries` says how many images of
      each sample `predict` was shown.

    Raises:
      ValueError: an argument is malformed, or what `predict` returns is not floating
        [b, K], with the same K ≥ 2 above all labels, or has NaN, +∞ or an image without
        a finite score in it.
    """
    if not callable(predict):
        raise ValueError(f"predict must be a function of images, got {predict!r}")
    # predict is not for tracing: another function stands in for it
    _, x, ball, bounds = check_problem(np.asarray, x, ball, bounds)
    labels = np.asarray(check_labels(y, x.shape[0]))
    search.check_search(ball, x, queries, restarts, p_init)
    if batch_size is not None:
        check_count("batch_size", batch_size)
    images = search.as_image(x)
    sides = jnp.asarray(window_sides(ball, images.shape, queries, p_init, False))
    keys = sample_keys(key, x.shape[0])
    ask = functools.partial(_ask, predict, x.shape[1:], batch_size)
    best = _run(ask, SearchSpace(images, keys, ball, bounds, sides), labels, restarts)
    result = _result(jax.tree.map(jnp.asarray, best), images, ball)
    return result._replace(x_adv=result.x_adv.reshape(x.shape))


def success_rate(first_success: jax.Array, budgets: Sequence[int]) -> jax.Array:
    """Share of samples fooled within each number of images shown, x counting as one.

    Args:
      first_success: [B] of the result of `square` or `square_queries`.
      budgets: [Q] numbers of images.

    Returns:
      [Q] shares.
    """
    first = jnp.asarray(first_success)[None]
    return jnp.mean((first >= 0) & (first < jnp.asarray(budgets)[:, None]), axis=1)


def _run(ask: Ask, space: SearchSpace, y: np.ndarray, restarts: int) -> Best:
    """The whole search; the result is on the host."""
    scores = ask(np.asarray(space.x), None)
    classes = scores.shape[1]
    check_labels(y, len(y), num_classes=classes)
    loss, wrong = _judge(scores, y)
    state = _update(search.begin(space, loss.dtype), space, space.x, loss, wrong)
    done = jax.tree.map(np.array, state.best)
    # which sample is in each row of the arrays, and the rows that are not solved yet
    index = np.arange(len(y))
    rows = np.flatnonzero(~wrong)
    for _ in range(restarts * (len(space.sides) + 1)):
        if _SHRINK * len(rows) <= len(space.x):
            _store(done, state, index)
            if not len(rows):
                break
            space, state = _compact(space, state, rows)
            index = index[rows]
            rows = np.arange(len(rows))
        images = _propose(state, space)
        scores = ask(np.asarray(images)[rows], classes)
        verdict = _judge(scores, y[index[rows]])
        loss, wrong = (_scatter(value, rows, len(space.x)) for value in verdict)
        state = _update(state, space, images, loss, wrong)
        rows = rows[~wrong[rows]]
    _store(done, state, index)
    return done


def _scatter(values: np.ndarray, rows: np.ndarray, size: int) -> np.ndarray:
    """Puts values into these rows of an array [size]; what the others say is unused."""
    scattered = np.zeros(size, values.dtype)
    scattered[rows] = values
    return scattered


def _compact(
    space: SearchSpace, state: SearchState, rows: np.ndarray
) -> tuple[SearchSpace, SearchState]:
    """Moves rows to the front of arrays whose size is a power of two."""
    size = 1 << (len(rows) - 1).bit_length()
    kept = np.pad(rows, (0, size - len(rows)), constant_values=rows[0])
    take = functools.partial(
        jax.tree.map, lambda leaf: leaf[kept] if leaf.ndim else leaf
    )
    ball = take(space.ball)
    space = space._replace(x=space.x[kept], keys=space.keys[kept], ball=ball)
    return space, take(state)


def _store(done: Best, state: SearchState, index: np.ndarray) -> None:
    """Writes the first rows of a search to the samples of `index`."""
    for values, new in zip(done, _best(state), strict=True):
        values[index] = np.asarray(new)[: len(index)]


def _judge(scores: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Margin max_{i≠y} z_i − z_y [b], and whether the class is another than y."""
    others = np.where(np.arange(scores.shape[1]) == y[:, None], -np.inf, scores)
    margin = others.max(axis=1) - np.take_along_axis(scores, y[:, None], axis=1)[:, 0]
    margin = margin.astype(jax.dtypes.canonicalize_dtype(scores.dtype))
    unknown = ~(scores < np.inf).all(axis=1)  # as in losses.misclassified
    return margin, unknown | (scores.argmax(axis=1) != y)


def _ask(
    predict: Callable[[np.ndarray], Any],
    shape: tuple[int, ...],
    batch_size: int | None,
    images: np.ndarray,
    classes: int | None,
) -> np.ndarray:
    """Scores [b, K] of images [b, H, W, C], which `predict` sees as [·, *shape]."""
    images, parts = images.reshape(-1, *shape), []
    for start in range(0, len(images), batch_size or len(images)):
        # a copy, so that predict may write to it
        shown = np.array(images[start : start + (batch_size or len(images))])
        scores = np.asarray(predict(shown))
        parts.append(_check_scores(scores, len(shown), classes))
        classes = scores.shape[1]
    return np.concatenate(parts)


def _check_scores(scores: np.ndarray, count: int, classes: int | None) -> np.ndarray:
    size = scores.shape[-1] if scores.ndim == 2 and len(scores) == count else 0
    if size < 2 or size != (classes or size):
        raise ValueError(
            f"predict must return scores [{count}, {classes or 'K ≥ 2'}] for {count} "
            f"images, got shape {scores.shape}"
        )
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise ValueError(f"predict must return floating scores, got {scores.dtype}")
    scores = scores.astype(jnp.promote_types(scores.dtype, np.float32))
    largest = scores.max(axis=1)  # NaN where one of them is
    if not np.isfinite(largest).all():
        raise ValueError(
            "predict must return scores whose largest is finite, got "
            f"{largest[~np.isfinite(largest)][0]}"
        )
    return scores
