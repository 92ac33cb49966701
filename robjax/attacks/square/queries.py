"""Square on models that JAX cannot trace: an API, a PyTorch network, a device.

The search is that of `square`, with the same draws, but the host runs it. JAX proposes
images and takes in margins. In between, any Python function says what it makes of the
images. It is shown only samples that are not solved yet.

As these become fewer, the search moves to smaller arrays. Their size is a power of two,
and it changes only when a quarter or less is needed, so that few sizes are compiled.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from robjax.arrays import check_array
from robjax.attacks.problem import check_problem
from robjax.attacks.result import AttackResult, Best
from robjax.attacks.square import search
from robjax.attacks.square.search import SearchSpace, SearchState
from robjax.balls import L1, L2, Ball, Linf
from robjax.checks import Bounds, check_count, check_labels, check_logits
from robjax.samples import sample_keys

Predict = Callable[[np.ndarray], Any]
"""Images [b, *S] -> scores [b, K], as anything that `np.asarray` takes."""

Ask = Callable[[np.ndarray, int | None], np.ndarray]
"""Images [b, H, W, C] and K, or None if K is not known yet -> scores [b, K]."""

_SHRINK = 4  # arrays are made smaller when this many times fewer rows are needed

_propose = jax.jit(search.propose)
_update = jax.jit(search.update)
_best = jax.jit(search.result)
_result = jax.jit(Best.result)


def square_queries(
    predict: Predict,
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
    """Runs the Square attack (`square`) on any function from images to scores.

    >>> from robjax.balls import Linf
    >>> x = np.array([[0.5, 0.6]], np.float32)
    >>> y = np.array([1])
    >>> key = jax.random.key(0)
    >>> result = square_queries(lambda x: x, x, y, key=key, ball=Linf(0.1), queries=100)
    >>> result.success.tolist()
    [True]

    Args:
      predict: images [b, *S], 1 ≤ b ≤ B -> scores [b, K]; NumPy in, float32 or better,
        and out what `np.asarray` takes, but no tuple. Logits, log-probabilities or
        probabilities: the largest is the class, and the search raises
        max_{i≠y} z_i − z_y.
      x, y, key, ball, bounds, p_init: as in `square`.
      queries: proposals for each restart. No sample is shown more than
        1 + restarts × (queries + 1) times, nor again once it is solved.
      restarts: independent searches.
      batch_size: most images for one call of `predict`; None: all unsolved ones.

    Returns:
      AttackResult as of `square` with the same key. `queries` says how many images of
      each sample `predict` was shown. An image with a score of NaN or +∞ counts as
      fooled.

    Raises:
      ValueError: an argument is malformed, or so are the scores of `predict`. They must
        be floating [b, K], with the same K ≥ 2 above all labels. Each image must have
        one above −∞, and some clean image must have neither NaN nor +∞.

    Warns:
      UserWarning: images count as fooled because of NaN or +∞; or ε is larger than the
        distance of any two images.
    """
    if not callable(predict):
        raise ValueError(f"predict must be a function of images, got {predict!r}")
    # predict is not for tracing: another function stands in for it
    images = cast(jax.Array, x)
    kinds = (Linf, L2, L1)
    problem = check_problem(jnp.asarray, images, ball, bounds, kinds, warn_if_wide=True)
    _, x, ball, bounds = problem
    labels = np.asarray(check_labels(y, x.shape[0]))
    search.check_search(queries, restarts, p_init)
    if batch_size is not None:
        check_count("batch_size", batch_size)
    keys = sample_keys(key, x.shape[0])
    space = search.search_space(x, keys, ball, bounds, queries=queries, p_init=p_init)
    ask = functools.partial(_ask, predict, x.shape[1:], batch_size)
    best, lost = _run(ask, space, labels, restarts)
    if lost:
        warnings.warn(
            f"{lost} of {len(labels)} images count as fooled because predict returned "
            "NaN or +inf for them: find the operation that overflows, without which "
            "the model may be more robust",
            stacklevel=2,
        )
    result = _result(jax.tree.map(jnp.asarray, best), space.x, ball)
    return result._replace(x_adv=result.x_adv.reshape(x.shape))


def success_rate(first_success: jax.Array, budgets: Sequence[int]) -> jax.Array:
    """The share of samples fooled within each number of images shown.

    The clean image counts as one.

    >>> success_rate(jnp.array([0, 4, 9, -1]), [1, 5, 10]).tolist()
    [0.25, 0.5, 0.75]

    Args:
      first_success: [B] of the result of `square` or `square_queries`.
      budgets: [Q] numbers of images.

    Returns:
      [Q] shares.

    Raises:
      ValueError: either holds no whole numbers, or a budget is negative.
    """
    first = check_array("first_success", first_success, "[B]", kinds=(jnp.integer,))
    budgets = check_array("budgets", budgets, "[Q]", kinds=(jnp.integer,), low=0)
    first = jnp.asarray(first)[None]
    return jnp.mean((first >= 0) & (first < jnp.asarray(budgets)[:, None]), axis=1)


def _run(
    ask: Ask, space: SearchSpace, y: np.ndarray, restarts: int
) -> tuple[Best, int]:
    """The whole search, with labels y [B].

    Returns:
      Its result, on the host, and how many images got a score of NaN or +∞.
    """
    scores = ask(np.asarray(space.x), None)
    lost = int(_unknown(scores).sum())
    if lost == len(y):
        raise ValueError(
            "predict must return scores whose largest is finite, got "
            f"{scores[0].max()} for the first of {lost} clean images and none finite "
            "for the others: check its weights, and that it scales the images as in "
            "training"
        )
    classes = scores.shape[1]
    check_labels(y, len(y), num_classes=classes)
    loss, wrong = _judge(scores, y)
    state = _update(search.begin(space, loss.dtype), space, space.x, loss, wrong)
    done = jax.tree.map(np.array, state.best)
    index = np.arange(len(y))  # which sample is in each row of the arrays
    rows = np.flatnonzero(~wrong)  # those that are not solved yet
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
        lost += int(_unknown(scores).sum())
        verdict = _judge(scores, y[index[rows]])
        loss, wrong = (_scatter(value, rows, len(space.x)) for value in verdict)
        state = _update(state, space, images, loss, wrong)
        rows = rows[~wrong[rows]]
    _store(done, state, index)
    return done, lost


def _scatter(values: np.ndarray, rows: np.ndarray, size: int) -> np.ndarray:
    """Puts values into these rows of an array [size]; the others are not used."""
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
        jax.tree.map, lambda leaf: leaf[kept] if np.ndim(leaf) else leaf
    )
    return take(space._replace(sides=0))._replace(sides=space.sides), take(state)


def _store(done: Best, state: SearchState, index: np.ndarray) -> None:
    """Writes the first rows of a search to the samples of `index`."""
    for values, new in zip(done, _best(state), strict=True):
        values[index] = np.asarray(new)[: len(index)]


def _judge(scores: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Margin max_{i≠y} z_i − z_y [b], and whether the class is another than y."""
    others = np.where(np.arange(scores.shape[1]) == y[:, None], -np.inf, scores)
    own = np.take_along_axis(scores, y[:, None], axis=1)[:, 0]
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        margin = others.max(axis=1) - own
    margin = margin.astype(jax.dtypes.canonicalize_dtype(scores.dtype))
    return margin, _unknown(scores) | (scores.argmax(axis=1) != y)


def _unknown(scores: np.ndarray) -> np.ndarray:
    """Which of b images have a score of NaN or +∞, as in `losses.misclassified`."""
    return ~np.all(scores < np.inf, axis=1)


def _ask(
    predict: Predict,
    shape: tuple[int, ...],
    batch_size: int | None,
    images: np.ndarray,
    classes: int | None,
) -> np.ndarray:
    """Scores [b, K] of images [b, H, W, C], which `predict` sees as [·, *shape]."""
    images = images.reshape(-1, *shape)
    count = batch_size or len(images)
    parts = []
    for first in range(0, len(images), count):
        # a copy, so that predict may write to it
        shown = np.array(images[first : first + count])
        try:
            returned = predict(shown)
        except Exception as error:
            if classes is not None or isinstance(error, OSError):
                raise  # it took images before, or lost a connection
            raise ValueError(
                "predict must take NumPy images as x has them, here "
                f"{list(shown.shape)} of {shown.dtype}, as in lambda x: "
                "model(torch.from_numpy(x).movedim(-1, 1)).detach() of PyTorch; the "
                f"error was {type(error).__name__}: {error}"
            ) from error
        scores = _check_scores(returned, len(shown), classes)
        parts.append(scores)
        classes = scores.shape[1]
    return np.concatenate(parts)


def _check_scores(returned: Any, count: int, classes: int | None) -> np.ndarray:
    """Scores [count, K] in at least float32; ValueError if they are malformed."""
    if isinstance(returned, dict | tuple):
        outputs = dict(returned) if isinstance(returned, dict) else returned
        check_logits(outputs, count, name="predict")  # it says which to return
    try:
        scores = np.asarray(returned)
    except Exception as error:
        kind = type(returned).__name__
        raise ValueError(
            f"predict must return what np.asarray takes, got {kind}: {error}"
        ) from error
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        got = type(returned).__name__ if scores.dtype == object else scores.dtype
        raise ValueError(
            f"predict must return floating scores, got {got}: return the score of "
            "every class, not the class itself"
        )
    size = scores.shape[-1] if scores.ndim == 2 and len(scores) == count else 0
    if size < 2 or size != (classes or size):
        single = scores.shape in ((count,), (count, 1))
        binary = "; one score z of two classes is [0, z]" if single else ""
        raise ValueError(
            f"predict must return scores [{count}, {classes or 'K ≥ 2'}] for {count} "
            f"images, got shape {scores.shape}{binary}"
        )
    scores = scores.astype(jnp.promote_types(scores.dtype, np.float32))
    if (scores == -np.inf).all(axis=1).any():
        raise ValueError(
            "predict must return scores whose largest is finite, got -inf for every "
            "class of an image"
        )
    return scores
