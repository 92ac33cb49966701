"""AutoAttack: an ensemble of parameter-free attacks, each on what is still robust.

Croce & Hein, ICML 2020 (L1: ICML 2021). Every attack starts from the clean images that
no attack before it has turned, and what it returns is judged by a fresh forward pass.
The driver runs on the host: it gathers the survivors into batches whose sizes are
powers of two, so that each attack compiles once for each size. A sample's draws depend
on its own key alone, whatever batch it is in.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robjax import inputs, losses
from robjax.attacks import ascent, draws
from robjax.attacks.apgd import apgd, apgd_targeted
from robjax.attacks.fab import fab
from robjax.attacks.square import square
from robjax.balls import L1, Ball, Linf
from robjax.inputs import Bounds

_RAND_EOT = 20


class AutoAttackResult(NamedTuple):
    """What the ensemble did to each of B samples, on the host.

    Attributes:
      x_adv: [B, *S] the fooling images; the clean image where nothing fooled.
      success: [B] bool, whether `x_adv` fools the model.
      loss: [B] margin max_{i≠y} z_i − z_y at `x_adv`; where nothing fooled, the largest
        that any attack reached.
      first_success: [B] int32 as counted by the attack that fooled (0 for a clean
        image that is misclassified), −1 where nothing fooled.
      distance: [B] ‖x_adv − x‖ in the ball's norm.
      queries: [B] int32, images evaluated for this sample: clean, by all attacks, and
        one more for the verdict on each.
      fooled_by: [B] int32 index into `attacks` of the first that fooled, −1 if robust.
      broken: [A, B] bool, what each of `attacks` fooled among the samples it was given.
      attacks: names in the order they ran; the first, "clean", is the clean image.
    """

    x_adv: np.ndarray
    success: np.ndarray
    loss: np.ndarray
    first_success: np.ndarray
    distance: np.ndarray
    queries: np.ndarray
    fooled_by: np.ndarray
    broken: np.ndarray
    attacks: tuple[str, ...]

    @property
    def robust_accuracy(self) -> dict[str, float]:
        """Share of samples still robust after each of `attacks`, in their order."""
        left = np.where(self.fooled_by < 0, len(self.attacks), self.fooled_by)
        return {name: float(np.mean(left > i)) for i, name in enumerate(self.attacks)}


def suite(version: str, ball: Ball) -> dict[str, Callable[..., Any]]:
    """The attacks of a version by name, in order, with their options bound.

    standard, individual: apgd-ce, apgd-t, fab-t, square; for L1 the two Auto-PGDs begin
    with larger radii, and have five restarts and five targets. plus: apgd-ce, apgd-dlr,
    fab, square, apgd-t, fab-t. rand: apgd-ce and apgd-dlr with 20 draws a point.

    Raises:
      ValueError: there is no such version.
    """
    bind, sparse = functools.partial, isinstance(ball, L1)
    square_ = bind(square, queries=5000)
    fab_t = bind(fab, targets=9, early_exit=True)
    if version in ("standard", "individual"):
        restarts, targets = (5, 5) if sparse else (1, 9)
        return {
            "apgd-ce": bind(apgd, restarts=restarts, large_reps=sparse),
            "apgd-t": bind(apgd_targeted, targets=targets, large_reps=sparse),
            "fab-t": fab_t,
            "square": square_,
        }
    if version == "plus":
        return {
            "apgd-ce": bind(apgd, restarts=5),
            "apgd-dlr": bind(apgd, loss=losses.dlr, restarts=5),
            "fab": bind(fab, restarts=5, early_exit=True),
            "square": square_,
            "apgd-t": apgd_targeted,
            "fab-t": fab_t,
        }
    if version == "rand":
        return {
            "apgd-ce": bind(apgd, eot=_RAND_EOT),
            "apgd-dlr": bind(apgd, loss=losses.dlr, eot=_RAND_EOT),
        }
    raise ValueError(
        "version must be 'standard', 'plus', 'rand', 'individual' or 'custom', got "
        f"{version!r}"
    )


def autoattack(
    logits_fn: Any,
    x: jax.Array,
    y: jax.Array,
    *,
    key: jax.Array,
    ball: Ball,
    bounds: Bounds = (0.0, 1.0),
    version: str = "standard",
    attacks: Mapping[str, Callable[..., Any]] | None = None,
    eot: int | None = None,
    batch_size: int = 256,
) -> AutoAttackResult:
    """Runs the attacks of a version, one after the other, on the samples still robust.

    Args:
      logits_fn: images [B, *S] -> logits [B, K]; any callable (`as_logits_fn`). With
        `eot`, or version="rand", (images, keys [B]) -> logits.
      x: [B, *S] images inside `bounds`, any number of them.
      y: [B] integer labels.
      key: one key (sample i draws from ``fold_in(key, i)``), or one for each sample.
      ball: Linf(ε), L2(ε) or L1(ε); ε a number or [B].
      bounds: lowest and highest pixel value.
      version: "standard", "plus", "rand", "custom", or "individual": the attacks of
        standard, each on every sample that is classified correctly.
      attacks: for "custom", name -> attack, as ``{"pgd": partial(pgd, steps=40)}``,
        which is called with (logits_fn, x, y, key=, ball=, bounds=).
      eot: draws over which the verdicts on a randomised model are averaged; 20 for
        "rand". A custom attack has an `eot` of its own.
      batch_size: most images at a time.

    Returns:
      AutoAttackResult. A returned image that is outside the box, or outside the ball by
      more than rounding, counts as not fooling; logits that are not finite as fooling.

    Raises:
      ValueError: an argument is malformed; the message names it.
    """
    if version == "custom" and not attacks:
        raise ValueError(f"attacks must name some for version 'custom', got {attacks}")
    if version != "custom" and attacks is not None:
        raise ValueError(f"attacks must be None for version {version!r}, got {attacks}")
    named = dict(attacks) if attacks else suite(version, ball)
    eot = _RAND_EOT if eot is None and version == "rand" else eot
    job = _Job.check(logits_fn, x, y, key, ball, bounds, eot, batch_size)
    for name, attack in named.items():
        _check_attack(name, attack, job)

    record = _Record.begin(job, ("clean", *named))
    for number, attack in enumerate([None, *named.values()]):
        robust = record.fooled_by < 0
        todo = record.fooled_by != 0 if version == "individual" else robust
        for index, real in _chunks(np.flatnonzero(todo), job.batch_size):
            record.take(job, index, real, number, *_run(job, attack, index, number))
    return record.result(job)


class _Job(NamedTuple):
    """What is attacked; arrays of all B samples, on the host."""

    logits_fn: Any
    model: inputs.LogitsFn
    x: np.ndarray
    y: np.ndarray
    keys: jax.Array
    ball: Ball
    bounds: Bounds
    eot: int | None
    batch_size: int

    @classmethod
    def check(cls, logits_fn, x, y, key, ball, bounds, eot, batch_size) -> "_Job":
        if eot is not None:
            inputs.check_count("eot", eot)
        inputs.check_count("batch_size", batch_size)
        problem = ascent.check(draws.as_model(logits_fn, eot), x, ball, bounds)
        model, bounds = problem.logits_fn, problem.bounds
        # verdicts are given in float32 or better, whatever the images come in
        x = problem.x.astype(jnp.promote_types(problem.x.dtype, jnp.float32))
        keys = inputs.sample_keys(key, x.shape[0])
        classes = draws.count_classes(model, x, keys, eot)
        y = np.asarray(inputs.check_labels(y, x.shape[0], num_classes=classes))
        # one adapter for all attacks, so that they share what is compiled
        adapted = logits_fn if eot is not None else model
        x = np.asarray(x)
        return cls(adapted, model, x, y, keys, ball, bounds, eot, batch_size)

    def ball_of(self, index: np.ndarray) -> Ball:
        return jax.tree.map(
            lambda eps: np.asarray(eps)[index] if np.ndim(eps) else eps, self.ball
        )


def _check_attack(name: str, attack: Any, job: _Job) -> None:
    """Traces an attack (nothing compiles), so that a bad option is said at once."""
    if not callable(attack):
        raise ValueError(f"attacks[{name!r}] must be callable, got {attack!r}")
    index = next(_chunks(np.arange(len(job.x)), job.batch_size))[0]
    jax.eval_shape(
        lambda x, y, key: attack(
            job.logits_fn, x, y, key=key, ball=job.ball_of(index), bounds=job.bounds
        ),
        *(job.x[index], job.y[index], job.keys[index]),
    )


def _chunks(index: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Splits an index into (chunk, how many of it are real).

    The size of a chunk is `batch_size`, or for the last the power of two that suffices;
    copies of its first sample fill it up.
    """
    for start in range(0, len(index), batch_size):
        chunk = index[start : start + batch_size]
        size = min(batch_size, 1 << (len(chunk) - 1).bit_length())
        yield (
            np.pad(chunk, (0, size - len(chunk)), constant_values=chunk[0]),
            len(chunk),
        )


def _run(job: _Job, attack: Any, index: np.ndarray, number: int):
    """One attack on one chunk: its result (None: the clean images) and the verdict."""
    x, y, keys = job.x[index], job.y[index], draws.fold(job.keys[index], number)
    if attack is None:
        result, x_adv = None, x
    else:
        result = attack(
            *(job.logits_fn, x, y),
            key=draws.fold(keys, 0),
            ball=job.ball_of(index),
            bounds=job.bounds,
        )
        x_adv = result.x_adv.astype(x.dtype)
    verdict = _judge(job.model, x_adv, y, draws.fold(keys, 1), eot=job.eot)
    return jax.device_get((result, verdict))


@functools.partial(jax.jit, static_argnames="eot")
def _judge(model, x, y, keys, eot):
    """Whether x [B, *S] fools the model, and its margin [B]."""
    logits = draws.mean_logits(model, x, keys, eot)
    finite = jnp.all(jnp.isfinite(logits), axis=1)
    fooled = ~finite | (jnp.argmax(logits, axis=1) != y)
    return fooled, jnp.where(finite, losses.margin(logits, y), jnp.inf)


class _Record(NamedTuple):
    """The fields of AutoAttackResult while the attacks fill them in."""

    x_adv: np.ndarray
    loss: np.ndarray
    first_success: np.ndarray
    queries: np.ndarray
    fooled_by: np.ndarray
    broken: np.ndarray
    attacks: tuple[str, ...]

    @classmethod
    def begin(cls, job: _Job, names: tuple[str, ...]) -> "_Record":
        count = len(job.x)
        return cls(
            job.x.copy(),
            np.full(count, -np.inf, job.x.dtype),
            np.full(count, -1, np.int32),
            np.zeros(count, np.int32),
            np.full(count, -1, np.int32),
            np.zeros((len(names), count), bool),
            names,
        )

    def take(self, job: _Job, index, real: int, number: int, result, verdict) -> None:
        """Takes in what attack `number` did to the first `real` samples of `index`."""
        index = index[:real]
        fooled, margin = (value[:real] for value in verdict)
        self.queries[index] += job.eot or 1
        x_adv, first = job.x[index], np.zeros(real, np.int32)
        if result is not None:
            x_adv = result.x_adv[:real].astype(job.x.dtype)
            first = result.first_success[:real]
            self.queries[index] += result.queries[:real]
            allowed = _inside(x_adv, job.x[index], job.ball_of(index), job.bounds)
            fooled, margin = fooled & allowed, np.where(allowed, margin, -np.inf)
        self.broken[number, index] = fooled
        new = fooled & (self.fooled_by[index] < 0)
        won = index[new]
        self.x_adv[won], self.fooled_by[won] = x_adv[new], number
        self.loss[won], self.first_success[won] = margin[new], first[new]
        open_ = self.fooled_by[index] < 0
        left = index[open_]
        self.loss[left] = np.maximum(self.loss[left], margin[open_])

    def result(self, job: _Job) -> AutoAttackResult:
        return AutoAttackResult(
            self.x_adv,
            self.fooled_by >= 0,
            self.loss,
            self.first_success,
            _norm(self.x_adv, job.x, job.ball).astype(job.x.dtype),
            self.queries,
            self.fooled_by,
            self.broken,
            self.attacks,
        )


def _norm(x_adv: np.ndarray, x: np.ndarray, ball: Ball) -> np.ndarray:
    """‖x_adv − x‖ [B] in float64, which a verdict on a boundary needs."""
    delta = np.abs(x_adv.astype(np.float64) - x).reshape(len(x), -1)
    if isinstance(ball, Linf):
        return delta.max(axis=1)
    return (
        delta.sum(axis=1) if isinstance(ball, L1) else np.sqrt((delta**2).sum(axis=1))
    )


def _inside(x_adv, x, ball: Ball, bounds: Bounds) -> np.ndarray:
    """Whether images are in the box (exactly) and in the ball (up to rounding)."""
    eps = np.asarray(ball.eps, np.float64)
    if isinstance(ball, Linf):
        slack = 1e-7 * max(1.0, *map(abs, bounds))
    else:
        slack = 1e-6 * eps + 1e-7
    flat = x_adv.reshape(len(x), -1)
    in_box = ((flat >= bounds[0]) & (flat <= bounds[1])).all(axis=1)  # NaN fails too
    return in_box & (_norm(x_adv, x, ball) <= eps + slack)
