"""Defences that hide the gradient, and how often `robjax.masking` notices.

    python -m benchmarks.masked            # networks on digits
    python -m benchmarks.masked mnist-madry
    python -m benchmarks.masked honest     # many undefended shapes on digits

Each defence wraps a network; KINDS says which checks ought to notice it. Prints, for
each network, what the battery raises on it as it is and behind each defence. The sweep
over honest networks prints what is raised, which ought to be nothing.
"""

import collections
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.tree_util import Partial

from benchmarks import trained
from robjax import data, losses, masking, models, training
from robjax.balls import L1, L2, Ball, Linf
from robjax.training import FitConfig, objectives

Images = Callable[[jax.Array], jax.Array]


class Kind(NamedTuple):
    """A defence: what it does to images and to logits, and who should notice."""

    caught_by: tuple[str, ...]
    before: Images = lambda x: x
    after: Images = lambda z: z


def _levels(count: int) -> Images:
    return lambda x: jnp.round(x * count) / count


def _host_noise(x):
    def draw(v):
        return np.random.default_rng().normal(scale=0.1, size=v.shape).astype(v.dtype)

    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return x + jax.pure_callback(draw, shape, lax.stop_gradient(x))


def _noise_from_bits(x):
    flat = lax.stop_gradient(x).astype(jnp.float32).reshape(x.shape[0], -1)
    bits = lax.bitcast_convert_type(flat, jnp.uint32)
    odd = 2 * jnp.arange(bits.shape[1], dtype=jnp.uint32)[None] + 1
    seeds = jnp.sum(bits * odd, axis=1, dtype=jnp.uint32, keepdims=True)
    # a congruential generator, far quicker to compile than jax.random
    mixed = (seeds ^ (odd * jnp.uint32(747796405))) * jnp.uint32(2891336453)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(277803737)
    uniform = (mixed >> 8).astype(x.dtype) / 2**24
    return x + 0.3 * (uniform - 0.5).reshape(x.shape)


def _constant_noise(x):
    """What a key that is written into the model gives: the same for every batch."""
    noise = np.random.default_rng(0).normal(scale=0.1, size=x.shape)
    return x + jnp.asarray(noise, x.dtype)


def _signs(x):
    """A hash of each pixel decides whether 0.02 is added or taken away."""
    hashed = jnp.sin(lax.stop_gradient(x) * 12345.678) * 43758.5453
    return x + 0.02 * jnp.sign(hashed - jnp.round(hashed))


def _ripples(x):
    """The pixels themselves to 5 %, but the gradient has any sign: 1 + 10 cos 200 x."""
    return x + 0.05 * jnp.sin(200 * x)


def _code_book(x):
    book = jnp.asarray(np.random.default_rng(0).permutation(8) / 7, x.dtype)
    order = jnp.argsort(book)
    return book[order[jnp.clip(jnp.round(x * 7), 0, 7).astype(jnp.int32)]]


def _stop_half(x):
    half = (jnp.arange(x[0].size).reshape(1, *x.shape[1:]) % 2).astype(x.dtype)
    return half * x + (1 - half) * lax.stop_gradient(x)


def _rivals_tie(z):
    """Every class but the first gets the second logit, so that DLR is always −1."""
    top = lax.top_k(z, 2)[0]
    return jnp.where(z == top[:, :1], z, top[:, 1:])


def _third_falls(z):
    """DLR divides by e^{2 z_(1)}: the more confident the model, the larger its loss."""
    first, second, _ = jnp.split(lax.top_k(z, 3)[0], 3, axis=1)
    return jnp.where(z >= second, z, second - jnp.exp(jnp.minimum(2 * first, 40)))


def _train_mode(x):
    centred = x - jnp.mean(x, 0, keepdims=True)
    variance = jnp.mean(centred**2, 0, keepdims=True)
    return 0.5 + 0.3 * centred / jnp.sqrt(variance + 0.01)


KINDS = {
    "quantised input": Kind(("zero_gradient",), before=_levels(4)),
    "binary input": Kind(
        ("zero_gradient",), before=lambda x: 0.5 + jnp.sign(x - 0.5) / 2
    ),
    "saturated logits": Kind(("saturated",), after=lambda z: 1e4 * z),
    "rounded logits": Kind(("zero_gradient",), after=jnp.round),
    "arg max": Kind(
        ("zero_gradient",), after=lambda z: jax.nn.one_hot(z.argmax(1), z.shape[1])
    ),
    "noise from the host": Kind(("random",), before=_host_noise),
    "noise from the image": Kind(("shattered",), before=_noise_from_bits),
    "noise from one key": Kind(("batch",), before=_constant_noise),
    "softmax": Kind(("probabilities",), after=jax.nn.softmax),
    "stopped gradient": Kind(("zero_gradient",), before=lax.stop_gradient),
    "half stopped": Kind(("gradient",), before=_stop_half),
    "temperature 1e-6": Kind(("saturated",), after=lambda z: 1e6 * z),
    "temperature 1e6": Kind(("flat",), after=lambda z: 1e-6 * z),
    "rivals tie": Kind(("losses",), after=_rivals_tie),
    "third falls": Kind(("losses",), after=_third_falls),
    "batch statistics": Kind(("batch",), before=_train_mode),
    "hashed signs": Kind(("shattered", "gradient"), before=_signs),
    "code book": Kind(("zero_gradient",), before=_code_book),
    "ripples": Kind(("gradient",), before=_ripples),
}
_BRANCHES = [Kind(()), *KINDS.values()]


def _apply(network, number, x):
    x = lax.switch(number, [kind.before for kind in _BRANCHES], x)
    return lax.switch(number, [kind.after for kind in _BRANCHES], network(x))


def mask(network: Any, name: str | None) -> Partial:
    """The network behind a defence; all of them share what is compiled."""
    number = 0 if name is None else 1 + list(KINDS).index(name)
    return Partial(_apply, network, jnp.asarray(number))


def main(names: list[str], size: int = 128) -> None:
    """Prints what is raised on each network and behind each defence."""
    for name in names:
        network, test, eps = trained.load(name)
        x = data.to_float(test.images[:size], test.scale)
        y = jnp.asarray(test.labels[:size])
        for kind in [None, *KINDS]:
            report = masking.check(
                mask(network, kind), x, y, key=jax.random.key(0), ball=Linf(eps)
            )
            right = report.masked
            if kind is not None:
                right = bool(set(KINDS[kind].caught_by) & set(report.raised))
            elif right:
                print(report)
            shares = {k: f"{report.flags[k].mean():.0%}" for k in report.raised}
            word = "as it is" if kind is None else "caught" if right else "MISSED"
            print(f"{name:<16} {kind or '-':<22} {word:<9} {shares}", flush=True)


def padded(variables: Any, depth: int, width: int) -> Any:
    """The same function as an MLP of `depth` layers of `width` units.

    Layers are added as identities, which ReLU leaves alone, and units as zeros, so that
    one compiled program serves MLPs of many shapes.
    """
    params = variables["params"]
    layers = [params[f"dense{number}"] for number in range(1, len(params))]
    identity = {"kernel": jnp.eye(width), "bias": jnp.zeros(width)}
    layers += [identity] * (depth - len(layers))
    inputs = len(layers[0]["kernel"])
    wide = {
        f"dense{number}": {
            "kernel": _grown(layer["kernel"], inputs if number == 1 else width, width),
            "bias": _grown(layer["bias"], width),
        }
        for number, layer in enumerate(layers, start=1)
    }
    logits = params["logits"]
    kernel = _grown(logits["kernel"], width, len(logits["bias"]))
    return {"params": {**wide, "logits": {**logits, "kernel": kernel}}}


def _grown(array: jax.Array, *shape: int) -> jax.Array:
    """The array with zeros after its end, up to `shape`."""
    more = [(0, n - has) for n, has in zip(shape, array.shape, strict=True)]
    return jnp.pad(array, more)


def trainable(variables: Any, depth: int, width: int) -> Any:
    """1 where `padded` weights belong to the network itself, 0 where they are added."""
    ones, zeros = (
        padded(jax.tree.map(like, variables), depth, width)
        for like in (jnp.ones_like, jnp.zeros_like)
    )
    return jax.tree.map(jnp.subtract, ones, zeros)


def train_together(
    model: Any, fresh: list[Any], moves: list[Any], seeds: list[int], adversarial: bool
) -> list[Partial]:
    """Trains networks of one shape side by side, 20 epochs on digits with Adam.

    Args:
      model: of robjax.models, without batch norm.
      fresh: variables of each network.
      moves: 1 for the variables that are trained, else 0.
      seeds: of each network's batches and attacks.
      adversarial: on images moved by PGD in Linf(0.2), else on the images.
    """
    train = data.load("digits", "train")
    images = jnp.asarray(data.to_float(train.images, train.scale))
    labels = jnp.asarray(train.labels)
    optimizer = optax.adam(3e-3)

    def loss(variables, x, y):
        return losses.cross_entropy(model.apply(variables, x), y).mean()

    def attack(variables, x, y, key, eps):
        def up(_, v):
            moved = v + eps / 4 * jnp.sign(jax.grad(loss, 1)(variables, v, y))
            return Linf(eps).project(moved, x, (0.0, 1.0))

        start = x + eps * jax.random.uniform(key, x.shape, minval=-1)
        return lax.fori_loop(0, 7, up, jnp.clip(start, 0, 1))

    @jax.jit
    @jax.vmap
    def fit(variables, moves, key):
        def step(i, carry):
            variables, state = carry
            key_i = jax.random.fold_in(key, i)
            rows = jax.random.randint(key_i, (64,), 0, len(labels))
            x = images[rows]
            y = labels[rows]
            if adversarial:  # the radius grows over four epochs
                x = attack(variables, x, y, key_i, 0.2 * jnp.minimum(i / 88, 1))
            slope = jax.tree.map(jnp.multiply, jax.grad(loss)(variables, x, y), moves)
            updates, state = optimizer.update(slope, state)
            return optax.apply_updates(variables, updates), state

        carry = (variables, optimizer.init(variables))
        return lax.fori_loop(0, 20 * (len(labels) // 64), step, carry)[0]

    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    trained = jax.device_get(fit(_stacked(fresh), _stacked(moves), keys))
    leaves, structure = jax.tree.flatten(trained)
    rows = (map(jnp.asarray, row) for row in zip(*leaves, strict=True))
    return [Partial(model.apply, jax.tree.unflatten(structure, row)) for row in rows]


def _stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def train_mlps(
    shapes: list[tuple[int, int, int]], depth: int, width: int, adversarial: bool
) -> list[Partial]:
    """Trained MLPs of other (depth, width, seed), as MLPs of `depth` and `width`."""
    x = jnp.zeros((1, 8, 8, 1))
    fresh = [_mlp(d, w).init(jax.random.key(seed), x) for d, w, seed in shapes]
    moves = [trainable(each, depth, width) for each in fresh]
    fresh = [padded(each, depth, width) for each in fresh]
    seeds = [seed for _, _, seed in shapes]
    return train_together(_mlp(depth, width), fresh, moves, seeds, adversarial)


@functools.cache
def _mlp(depth: int, width: int) -> Any:
    """One object for each shape, so that its networks share what is compiled."""
    return models.MLP(10, widths=depth * (width,))


# (depth, width) of MLPs that share the program of the largest
MLPS = [
    [(depth, width) for depth in (1, 3, 6, 10, 12) for width in (8, 14, 20, 32)],
    [(1, 256), (2, 100), (3, 64), (3, 256)],
    [(8, 64), (12, 64), (12, 128)],
]
CNNS = {
    "4": models.CNN(10, blocks=((4,),), kernel=3, hidden=16),
    "8-16": models.CNN(10, blocks=((8,), (16,)), kernel=3, hidden=32),
    "4,4-8,8": models.CNN(10, blocks=((4, 4), (8, 8)), kernel=3, hidden=64),
}
LEARNED = 0.5  # accuracy; below it a network is no classifier, and is left out


def _honest_networks() -> Iterator[tuple[str, str, Partial, Sequence[Ball]]]:
    """Family, name, network and the balls in which it is asked."""
    linf = [Linf(0.05), Linf(0.2)]
    for adversarial, how in ((False, "standard"), (True, "adversarial")):
        for number, group in enumerate(MLPS):
            shapes = [(d, w, seed) for d, w in group for seed in range(2)]
            depth = max(d for d, _ in group)
            width = max(w for _, w in group)
            networks = train_mlps(shapes, depth, width, adversarial)
            balls = linf if number else [*linf, L2(0.5), L1(2.0)]
            for (d, w, seed), network in zip(shapes, networks, strict=True):
                yield f"MLP, {how}", f"{d} × {w}, seed {seed}", network, balls
        for name, model in CNNS.items():
            x = jnp.zeros((1, 8, 8, 1))
            seeds = [0, 1]
            fresh = [model.init(jax.random.key(seed), x) for seed in seeds]
            moves = [jax.tree.map(jnp.ones_like, each) for each in fresh]
            networks = train_together(model, fresh, moves, seeds, adversarial)
            for seed, network in zip(seeds, networks, strict=True):
                yield f"CNN, {how}", f"{name}, seed {seed}", network, linf
        yield f"ResNet with batch norm, {how}", "8", _resnet(adversarial), linf


def _resnet(adversarial: bool) -> Partial:
    """A residual network of 8 layers with batch norm, trained in the usual way."""
    model = models.ResNet(10, blocks_per_group=1)
    attack = {"ball": Linf(0.2), "steps": 7, "step_size": 0.05}
    objective = functools.partial(objectives.adversarial, **attack)
    config = FitConfig(
        epochs=8,
        batch_size=64,
        optimizer="adam",
        learning_rate=3e-3,
        warmup_epochs=3,
    )
    state = training.fit(
        model,
        data.load("digits", "train"),
        objective=objective if adversarial else objectives.standard,
        config=config,
        progress=False,
    )
    return Partial(model.apply, state.weights)


def honest(size: int = 128) -> None:
    """Prints what is raised on honest networks, and at the end a table."""
    test = data.load("digits", "test")
    x = data.to_float(test.images[:size], test.scale)
    y = jnp.asarray(test.labels[:size])
    counts = collections.defaultdict(collections.Counter)
    for family, name, network, balls in _honest_networks():
        accuracy = float((network(x).argmax(axis=1) == y).mean())
        line = f"{family}, {name}: accuracy {accuracy:.0%}"
        if accuracy < LEARNED:
            counts[family]["learned nothing"] += 1
            print(f"{line}, left out", flush=True)
            continue
        counts[family]["networks"] += 1
        for ball in balls:
            report = masking.check(network, x, y, key=jax.random.key(0), ball=ball)
            shares = {k: f"{report.flags[k].mean():.1%}" for k in report.raised}
            weak = [note.split()[0] for note in report.notes if "alone" in note]
            found = {"runs": 1, "raised": report.masked, "weak loss": bool(weak)}
            counts[family].update(found)
            print(f"{line}, {ball}: {shares or 'nothing'}, weak: {weak}", flush=True)
    columns = ("networks", "learned nothing", "runs", "raised", "weak loss")
    print(f"| family | {' | '.join(columns)} |\n|{6 * '---|'}")
    for family, count in counts.items():
        cells = (str(count[column]) for column in columns)
        print(f"| {family} | {' | '.join(cells)} |")


if __name__ == "__main__":
    if sys.argv[1:] == ["honest"]:
        honest()
    else:
        main(sys.argv[1:] or ["digits-madry", "digits-standard", "digits-trades"])
