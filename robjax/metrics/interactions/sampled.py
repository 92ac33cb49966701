"""Mean interactions of games with many players, from sampled pairs and contexts.

For each order m it estimates the mean of I_ij^(m) = E Δv(i, j, S), |S| = m, over the
pairs of a design, and how far it may be off. `robjax.metrics.interactions.design` says
what a block is. Blocks are independent, the interactions inside one are not. So the
unit of every standard error is the block: stderr² = Var(block means) / blocks.

The sets are drawn without regard to the values. Games that are played together, such as
those of an image and its adversarial version, share them, so that what is common to
both cancels in their difference.

Orders 0 and n − 2 have one context only, ∅ or all others. There every set is played
once, however many blocks share it.

Several processes share the parts of all orders (`robjax.runs.processes`), and each
returns all of them.

**Files.** With `run_dir`, every finished part of an order is a file. A run that was
killed skips these; its result is that of a run that was never killed, bit for bit.

    <run_dir>/run.json                    what the run is, and the versions used
    <run_dir>/order-<m>/<number>.npz      interactions of some blocks
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from robjax.checks import check_count, check_flags
from robjax.metrics.interactions.design import (
    Blocks,
    Layout,
    design_pairs,
    draw_ranks,
)
from robjax.metrics.interactions.estimates import BlockMean, block_mean
from robjax.metrics.interactions.exact import check_value_fn, play, without_rounding
from robjax.metrics.interactions.games import ImageGame, ValueFn
from robjax.runs import files, preemption, provenance
from robjax.runs.files import as_path
from robjax.runs.processes import Group, joined
from robjax.samples import fold_keys, is_concrete, sample_keys

# Sets played at a time: their masks take n bytes each, their values 8.
_MASKS_AT_ONCE = 2**14
# About so many nested sets, whose values are part of the description of a run.
_PROBED = 8


class SampledInteractions(NamedTuple):
    """Interactions at R orders, in B blocks of P pairs; float64 on the host.

    Several games at once put their axes first.

    Attributes:
      orders: [R] m.
      pairs: [B, P, 2] players, the same at all orders.
      means: [R, B, P] the mean of Δv over the contexts of the block.
      magnitudes: [R, B, P] the mean of |Δv| over them.
      contexts: [R] how many contexts each block has; 1 at orders 0 and n − 2.
      forwards: [R] sets played.
    """

    orders: np.ndarray
    pairs: np.ndarray
    means: np.ndarray
    magnitudes: np.ndarray
    contexts: np.ndarray
    forwards: np.ndarray

    def __repr__(self) -> str:
        """What was sampled; not the arrays."""
        if not all(map(is_concrete, self)):
            return "SampledInteractions(traced)"
        return (
            f"SampledInteractions({len(self.orders)} orders, {self.pairs.shape[0]} "
            f"blocks of {self.pairs.shape[1]} pairs, {np.sum(self.forwards)} forwards)"
        )

    @property
    def mean(self) -> np.ndarray:
        """[R] the mean interaction over the pairs of the design."""
        return block_mean(self.means.mean(-1)).mean

    @property
    def stderr(self) -> np.ndarray:
        """[R] the standard errors of `mean`."""
        return block_mean(self.means.mean(-1)).stderr

    @property
    def strength(self) -> BlockMean:
        """[R] the mean of |Δv| over pairs and contexts."""
        return block_mean(self.magnitudes.mean(-1))

    @property
    def change(self) -> BlockMean:
        """[R] ΔI^(m) = I^(m)(x) − I^(m)(x_adv), of a pair of games on the first axis.

        Both games saw the same sets, so its standard error is far below that of
        independent runs.

        Raises:
          ValueError: the first axis has no two games.
        """
        games = self.means.shape[:-3]
        if not games or games[0] != 2:
            raise ValueError(
                "change needs two games (x, x_adv) on the first axis, got "
                f"{list(games)}"
            )
        return block_mean((self.means[0] - self.means[1]).mean(-1))

    @property
    def differences(self) -> np.ndarray:
        """[R] how many Δv the means are made of, with repetitions."""
        blocks, pairs, _ = self.pairs.shape
        return self.contexts * blocks * pairs


def usual_orders(n: int) -> list[int]:
    """The orders at which the paper's code samples n players, and order 0.

    >>> usual_orders(256)
    [0, 25, 50, 76, 101, 127, 152, 177, 203, 215, 228, 241, 254]
    """
    n = check_count("n", n, minimum=2)
    shares = (0, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95, 100)
    return sorted({(n - 2) * share // 100 for share in shares})


def sampled(
    value_fn: ValueFn,
    n: int,
    *,
    key: jax.Array,
    orders: Sequence[int] | None = None,
    pairs: str | int | ArrayLike = "all",
    grid: tuple[int, int] | None = None,
    blocks: int = 100,
    contexts: int = 1,
    block_players: int = 12,
    run_dir: files.PathLike | None = None,
    resume: bool = False,
    progress: bool = False,
) -> SampledInteractions:
    """Estimates interactions at chosen orders, with standard errors.

    * For a mean over pairs, many blocks with one context each are best.
    * `disentanglement` asks for several contexts of the same pairs.
    * For a data set, play each image with a key of its own, such as the key folded with
      the image's index. Nothing compiles anew, and images have independent errors.

    A context of a block costs 3 + 2 u + P forwards for P pairs of u players: 93 for all
    pairs of 12 random players, 1445 for the neighbours in a 16×16 grid, which are all
    played in every block. So take fewer blocks there.

    Loops on the host, so it is not for use inside jit.

    >>> def square(masks):  # every Δv is 2
    ...     return masks.sum(1) ** 2
    >>> found = sampled(square, 64, key=jax.random.key(0), orders=[0, 31], blocks=5)
    >>> found.mean.tolist(), found.stderr.tolist()
    ([2.0, 2.0], [0.0, 0.0])
    >>> float(found.forwards[1] / found.differences[1])  # 93 for 66
    1.40...

    Args:
      value_fn: masks, bool [M, n] -> [M], or [*G, M] for several games. M differs from
        call to call; the masks are NumPy arrays.
      n: players, at least 2.
      key: one key, or one for each block.
      orders: m, each from 0 to n − 2; None: `usual_orders`.
      pairs: "all", "adjacent", a radius on the grid, or pairs [E, 2]; see
        `design_pairs`.
      grid: rows and columns of the players, for "adjacent" and a radius; None: a
        square.
      blocks: how many; standard errors need a good number of them.
      contexts: for each block and order.
      block_players: where the design has all pairs, a block has so many random players
        and all pairs of them. A design with fewer is played whole in every block.
      run_dir: folder of the run; None: nothing is kept.
      resume: go on with the run in `run_dir`, if there is one.
      progress: show a bar.

    Returns:
      SampledInteractions.

    Raises:
      ValueError: an argument is malformed; the message names it. `run_dir` holds a run
        and `resume` is False, or it holds another run.
      RuntimeError: another process has failed.
      Preempted: SIGTERM came; every part that was done is in `run_dir`.
    """
    check_flags(resume=resume, progress=progress)
    check_value_fn(value_fn)
    n = check_count("n", n, minimum=2)
    blocks = check_count("blocks", blocks)
    contexts = check_count("contexts", contexts)
    orders = _check_orders(orders, n)
    edges = design_pairs(pairs, n, grid)
    block_players = check_count("block_players", block_players, minimum=2)
    if run_dir is not None:
        as_path(run_dir, "run_dir")
    keys = sample_keys(key, blocks)
    # contexts draw from the keys folded with orders, which are below n
    drawn = Blocks.draw(fold_keys(keys, n), edges, n, min(block_players, n))
    plan = _Plan(value_fn, n, keys, drawn, contexts)
    about = functools.partial(_description, plan)
    with (
        joined("interactions", lambda: {**about(), "orders": orders}) as group,
        preemption.watch(run_dir) as notice,
    ):
        folder = provenance.open_run(
            run_dir, about, parts="order-*/*.npz", resume=resume, group=group
        )
        parts = _play_orders(plan, orders, folder, group, notice, progress=progress)
    return SampledInteractions(
        orders=np.asarray(orders),
        pairs=drawn.pairs,
        means=np.stack([part.means for part in parts], axis=-3),
        magnitudes=np.stack([part.magnitudes for part in parts], axis=-3),
        contexts=np.asarray([plan.contexts_of(order) for order in orders]),
        forwards=np.asarray([part.forwards for part in parts]),
    )


def _check_orders(orders: Sequence[int] | None, n: int) -> list[int]:
    if orders is None:
        return usual_orders(n)
    try:
        every = list(orders)
    except TypeError:
        raise ValueError(f"orders must be a list of orders, got {orders!r}") from None
    checked = [check_count("orders", order, minimum=0) for order in every]
    if not checked or max(checked) > n - 2 or len(set(checked)) < len(checked):
        raise ValueError(
            f"orders must be distinct numbers from 0 to n − 2 = {n - 2}, got {orders!r}"
        )
    return checked


class _Plan(NamedTuple):
    """What is played.

    Attributes:
      value_fn, n: as in `sampled`.
      keys: [B] of the blocks.
      blocks: their pairs.
      contexts: T, for each block and order.
    """

    value_fn: ValueFn
    n: int
    keys: jax.Array
    blocks: Blocks
    contexts: int

    def contexts_of(self, order: int) -> int:
        """How many contexts each block has; orders 0 and n − 2 know one only."""
        return 1 if order in (0, self.n - 2) else self.contexts

    def spans(self, order: int) -> list[slice]:
        """Cuts the blocks into parts, each of which is played and kept as one."""
        count = len(self.keys)
        if order in (0, self.n - 2):
            return [slice(0, count)]
        size = max(1, _MASKS_AT_ONCE // (self.blocks.forwards * self.contexts))
        starts = range(0, count, size)
        return [slice(start, start + size) for start in starts]


class _Part(NamedTuple):
    """Interactions of some blocks at one order.

    Attributes:
      means: [*G, B, P] of Δv over contexts.
      magnitudes: [*G, B, P] of |Δv|.
      forwards: sets played.
    """

    means: np.ndarray
    magnitudes: np.ndarray
    forwards: int | np.ndarray


def _play_orders(
    plan: _Plan,
    orders: Sequence[int],
    folder: pathlib.Path | None,
    group: Group,
    notice: preemption.Notice,
    *,
    progress: bool,
) -> list[_Part]:
    """All blocks at each order; what `folder` has is not played again."""
    jobs = [
        (order, number, span)
        for order in orders
        for number, span in enumerate(plan.spans(order))
    ]
    blocks = np.arange(len(plan.keys))
    total = sum(len(blocks[span]) for _, _, span in group.mine(jobs))
    hidden = not progress or group.index > 0
    with tqdm(total=total, disable=hidden, unit="block") as bar:

        def play_part(job: tuple[int, int, slice]) -> _Part:
            order, number, span = job
            bar.set_postfix_str(f"order {order}")
            path = folder and folder / f"order-{order:04d}" / f"{number:06d}.npz"
            done = path and files.load_part(path, _Part._fields)
            if done:
                part = _Part(**{name: done[name] for name in _Part._fields})
            else:
                part = _play_span(plan, order, span)
                if path:
                    path.parent.mkdir(exist_ok=True)
                    files.save_npz(path, part._asdict())
            bar.update(part.means.shape[-2])
            return part

        parts = group.map(play_part, jobs, each_turn=notice.leave)
    by_order = {order: [] for order in orders}
    for (order, _, _), part in zip(jobs, parts, strict=True):
        by_order[order].append(part)
    return [_joined(parts) for parts in by_order.values()]


def _joined(parts: list[_Part]) -> _Part:
    """Parts of one order as one."""
    return _Part(
        means=np.concatenate([part.means for part in parts], axis=-2),
        magnitudes=np.concatenate([part.magnitudes for part in parts], axis=-2),
        forwards=sum(int(part.forwards) for part in parts),
    )


def _play_span(plan: _Plan, order: int, span: slice) -> _Part:
    """Plays some blocks at one order, so many contexts at a time as memory allows."""
    blocks = plan.blocks.some(span)
    if order in (0, plan.n - 2):
        return _play_once(plan, order, blocks)
    keys = fold_keys(plan.keys[span], order)
    ranks = draw_ranks(keys, n=plan.n, contexts=plan.contexts)
    forwards = len(keys) * blocks.forwards
    at_once = max(1, _MASKS_AT_ONCE // forwards)
    sums: Any = 0
    absolute: Any = 0
    for start in range(0, plan.contexts, at_once):
        layout = Layout.of(blocks, ranks[:, start : start + at_once], order)
        differences = _differences(plan.value_fn, layout)
        sums = sums + differences.sum(-2)
        absolute = absolute + np.abs(differences).sum(-2)
    return _Part(
        means=sums / plan.contexts,
        magnitudes=absolute / plan.contexts,
        forwards=forwards * plan.contexts,
    )


def _play_once(plan: _Plan, order: int, blocks: Blocks) -> _Part:
    """Where there is one context, all blocks' pairs as one block, each pair once."""
    pairs = blocks.pairs
    distinct, where = np.unique(pairs.reshape(-1, 2), axis=0, return_inverse=True)
    anyhow = np.arange(plan.n)[None, None]
    layout = Layout.of(Blocks.of(distinct), anyhow, order).pruned()
    found = _differences(plan.value_fn, layout)[..., 0, 0, where.reshape(-1)]
    found = found.reshape(*found.shape[:-1], *pairs.shape[:-1])
    return _Part(found, np.abs(found), forwards=layout.masks.shape[2])


def _differences(value_fn: ValueFn, layout: Layout) -> np.ndarray:
    """Plays a layout: Δv [*G, B, T, P]."""
    *shape, n = layout.masks.shape
    values = play(value_fn, layout.masks.reshape(-1, n))
    found = layout.differences(values.reshape(*values.shape[:-1], *shape))
    return without_rounding(found, values)


def _description(plan: _Plan) -> dict[str, Any]:
    """What decides the result of a run, so that two runs can be compared."""
    game = {"game": plan.value_fn}
    if isinstance(plan.value_fn, ImageGame):  # devices and batches change no value
        game = {
            f"game's {field.name}": getattr(plan.value_fn, field.name)
            for field in dataclasses.fields(plan.value_fn)
            if field.name not in ("mesh", "batch_size")
        }
    few = np.tri(plan.n + 1, plan.n, -1, bool)[:: max(1, plan.n // _PROBED)]
    return {
        **{name: provenance.identify(value) for name, value in game.items()},
        # they tell games apart where the description of their code cannot
        "game_values": play(plan.value_fn, few).T,
        "players": plan.n,
        "key": provenance.checksum(plan.keys),
        "pairs": provenance.describe(plan.blocks.pairs),
        "blocks": len(plan.keys),
        "contexts": plan.contexts,
        "masks_at_once": _MASKS_AT_ONCE,  # decides what a file holds
    }
