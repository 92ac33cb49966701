"""Square: a random search that changes one window of the image at a time.

Andriushchenko et al., ECCV 2020 (arXiv 1912.00049). The L1 form is that of Croce &
Hein, "Mind the box", ICML 2021. Each query changes one square window of the best image
so far, and keeps the change if the margin max_{i≠y} z_i − z_y rises. The side of the
window, √(p H W), falls with the number of queries: p starts at `p_init` and is halved
at fixed query counts.
"""

import functools

import jax
from jax import lax

from robjax import losses, lowering
from robjax.attacks.problem import Problem, check_classes, check_problem
from robjax.attacks.result import AttackResult
from robjax.attacks.square import search
from robjax.attacks.square.search import SearchState
from robjax.balls import L1, L2, Ball, Linf
from robjax.checks import Bounds, check_flags
from robjax.evaluation import gradient_free
from robjax.model import LogitsFn
from robjax.samples import sample_keys


@gradient_free
def square(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    key: jax.Array,
    ball: Ball,
    bounds: Bounds = (0.0, 1.0),
    queries: int = 5000,
    p_init: float = 0.8,
    restarts: int = 1,
    reference_quirks: bool = False,
) -> AttackResult:
    """Raises the margin by random changes of square windows; forward passes only.

    A sample is frozen at its first success, and the loop ends when all are solved.

    What a window is depends on the shape of x:

    * Images [B, H, W, C] or [B, H, W]: a square of pixels, with all their channels.
      Where it does not fit, Linf takes a rectangle, L2 and L1 a smaller square.
    * Anything else is one row of numbers, and a window is an interval of it: vectors
      [B, d] and videos [B, T, H, W, C]. In L2 and L1 also images without room for
      squares, channels included: those of fewer than 3 rows or columns, and those about
      5 times as high as wide. In L2 and L1 every third interval is one number.

    Channels come last. Images [B, C, H, W] are taken for C rows of W pixels with other
    channels: the search runs, but reaches less.

    How much of the largest possible rise of the margin 5000 queries reach on a linear
    model (normal weights; ε = 0.1, 0.1 √d and 0.05 d for d pixels; in L2 and L1 windows
    have 3 × 3 pixels at least):

        images         L∞         L2         L1
        8 × 8 × 1      100 %      71–89 %    67–92 %
        28 × 28 × 1    71–78 %    64–76 %    71–78 %
        12 numbers     100 %      86–98 %    98–100 %
        784 numbers    63–69 %    73–76 %    74–80 %

    >>> import jax.numpy as jnp
    >>> from robjax.balls import Linf
    >>> x = jnp.array([[0.5, 0.6]])
    >>> y = jnp.array([1])
    >>> key = jax.random.key(0)
    >>> result = square(lambda x: x, x, y, key=key, ball=Linf(0.1), queries=100)
    >>> result.success.tolist()
    [True]

    Args:
      logits_fn, y, bounds: as in `pgd`.
      x: [B, *S] of any shape, see above.
      key: one key, or one for each sample.
      ball: Linf(ε), L2(ε) or L1(ε); ε a number or [B].
      queries: proposals for each restart, static; the starting point comes on top.
      p_init: share of the image that the first windows cover, in (0, 1], static.
      restarts: independent searches, static.
      reference_quirks: as the authors' code. It draws one window (and, for Linf, one
        colour) for the whole batch, here with the key of its first sample. It never
        reaches the last row and column. It cuts windows to the shorter side.

    Returns:
      AttackResult. `loss` is the margin. An unsolved sample gets its best image, x
      itself included. `queries` counts forward passes: 1 for x and queries + 1 for each
      restart, fewer where the attack succeeds. `first_success` is the number of the
      pass that did, 0 for x.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    check_flags(reference_quirks=reference_quirks)
    kinds = (Linf, L2, L1)
    problem = check_problem(logits_fn, x, ball, bounds, kinds, warn_if_wide=True)
    y, _ = check_classes(problem, y)
    search.check_search(queries, restarts, p_init)
    return _square(
        problem,
        y,
        sample_keys(key, x.shape[0]),
        queries=queries,
        p_init=float(p_init),
        restarts=restarts,
        reference_quirks=bool(reference_quirks),
    )


@functools.partial(
    jax.jit, static_argnames=("queries", "p_init", "restarts", "reference_quirks")
)
def _square(
    problem: Problem,
    y: jax.Array,
    keys: jax.Array,
    *,
    queries: int,
    p_init: float,
    restarts: int,
    reference_quirks: bool,
) -> AttackResult:
    """The search on problem.x; the other arguments are those of `square`."""
    logits_fn, x_given, ball, bounds = lax.stop_gradient(problem)
    model = lowering.fast(logits_fn)
    space = search.search_space(
        x_given,
        keys,
        ball,
        bounds,
        queries=queries,
        p_init=p_init,
        reference_quirks=reference_quirks,
    )

    def show(state: SearchState, images: jax.Array) -> SearchState:
        logits = model(images.reshape(x_given.shape))
        wrong = losses.misclassified(logits, y)
        return search.update(state, space, images, losses.margin(logits, y), wrong)

    def step(state: SearchState) -> SearchState:
        images = search.propose(state, space, reference_quirks=reference_quirks)
        return show(state, images)

    def unfinished(state: SearchState) -> jax.Array:
        return (state.restart < restarts) & ~state.best.success.all()

    loss_dtype = jax.eval_shape(model, x_given).dtype
    state = show(search.begin(space, loss_dtype), space.x)
    state = lax.while_loop(unfinished, step, state)
    result = search.result(state).result(space.x, ball)
    return result._replace(x_adv=result.x_adv.reshape(x_given.shape))
