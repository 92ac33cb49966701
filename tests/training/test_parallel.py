"""N devices do what one device does on the whole batch."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax import data, training
from robjax.balls import Linf
from robjax.models import MLP
from robjax.training import objectives, parallel, state
from robjax.training.step import make_step

CONFIG = training.FitConfig(
    epochs=1, batch_size=32, learning_rate=0.05, schedule="constant", pad=1, flip=True
)
ADVERSARIAL = functools.partial(
    objectives.adversarial, ball=Linf(0.1), steps=3, step_size=0.05
)


class NormNet(nn.Module):
    """A convolution and a batch norm, whose statistics are those of the whole batch."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), strides=2)(x)
        x = nn.BatchNorm(use_running_average=not train, axis_name=self.axis_name)(x)
        return nn.Dense(10)(nn.tanh(x).reshape((x.shape[0], -1)))


def take_steps(model, objective, count, *, devices):
    """The replicated state after `count` steps on different batches of digits."""
    dataset = data.subset(data.load("digits", "train"), 32 * count)
    model = parallel.join_batch_norm(model)
    optimizer = state.make_optimizer(CONFIG, count)
    example = data.to_float(dataset.images[:1], dataset.scale)
    now = state.create_state(model, example, optimizer, CONFIG)
    step = make_step(
        model, objective, optimizer, CONFIG, steps_per_epoch=count, scale=dataset.scale
    )
    step = parallel.data_parallel(step, devices)
    now = parallel.replicate(now, devices)
    for batch in data.batch_indices(len(dataset.labels), 32, seed=0, epoch=0):
        rows = parallel.own_rows(batch, devices).astype(np.int32)
        now, metrics = step(now, dataset.images[rows], dataset.labels[rows], rows)
    return now, metrics


def assert_same(tree, other, tolerance):
    def compare(path, a, b):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(
            a, b, rtol=tolerance, atol=tolerance, err_msg=name, verbose=False
        )

    jax.tree_util.tree_map_with_path(
        compare, jax.device_get(tree), jax.device_get(other)
    )


AWP = functools.partial(objectives.awp, **ADVERSARIAL.keywords)
MART = functools.partial(objectives.mart, **ADVERSARIAL.keywords)
SIAMESE = functools.partial(objectives.siamese, layer="BatchNorm_0")
N_FGSM = functools.partial(objectives.n_fgsm, ball=ADVERSARIAL.keywords["ball"])


@pytest.mark.parametrize(
    "objective",
    [
        *(objectives.standard, ADVERSARIAL, AWP, MART, N_FGSM),
        *(objectives.fisher_spectral, SIAMESE),
    ],
)
def test_eight_devices_take_the_step_of_one(objective):
    # With a smooth model no gradient is near a kink; a sign(g) of the attack that
    # flips would show, and for these draws none does.
    eight = take_steps(NormNet(), objective, 1, devices=jax.devices()[:8])
    one = take_steps(NormNet(), objective, 1, devices=jax.devices()[:1])
    assert_same(eight, one, 1e-5)


def test_batch_norm_inside_the_attack_sees_the_whole_batch():
    objective = functools.partial(ADVERSARIAL, attack_mode="train")
    four = take_steps(NormNet(), objective, 1, devices=jax.devices()[:4])
    one = take_steps(NormNet(), objective, 1, devices=jax.devices()[:1])
    assert_same(four, one, 1e-5)


def test_devices_hold_the_same_state_after_several_steps():
    # `out_axes=None` would hide a forgotten pmean behind the value of device 0.
    now, _ = take_steps(NormNet(), objectives.standard, 4, devices=jax.devices()[:4])
    for leaf in jax.tree.leaves(now):
        first, *others = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(others) == 3
        for other in others:
            np.testing.assert_array_equal(other, first)


def test_seeds_share_one_trace():
    traces = []

    def counted(network, images, labels, **options):
        traces.append(images.shape)
        return objectives.standard(network, images, labels, **options)

    states = [
        training.fit(
            MLP(10, widths=(8,)),
            data.subset(data.load("digits", "train"), 64),
            objective=counted,
            config=dataclasses.replace(CONFIG, seed=seed),
            devices=jax.devices()[:1],
            progress=False,
        )
        for seed in (0, 1, 0)
    ]
    assert len(traces) == 1
    kernels = [s.variables["params"]["logits"]["kernel"] for s in states]
    assert not np.array_equal(kernels[0], kernels[1])
    np.testing.assert_array_equal(kernels[0], kernels[2])


def test_that_check_finds_a_forgotten_mean():
    devices = jax.devices()[:2]
    step = parallel.data_parallel(
        lambda s, x, y, i: (s + jnp.mean(x), jnp.mean(x)), devices
    )
    x = np.arange(4.0, dtype=np.float32).reshape(2, 2)
    now, _ = step(parallel.replicate(jnp.float32(0), devices), x, x, x)
    first, second = [np.asarray(shard.data) for shard in now.addressable_shards]
    assert first != second


def test_one_trace_for_a_whole_run():
    traces = []

    def counted(network, images, labels, **options):
        traces.append(images.shape)
        return objectives.standard(network, images, labels, **options)

    training.fit(
        MLP(10, widths=(8,)),
        data.subset(data.load("digits", "train"), 100),
        objective=counted,
        config=dataclasses.replace(CONFIG, epochs=3, ema_decay=0.9, warmup_epochs=2),
        devices=jax.devices()[:4],
        progress=False,
    )
    assert traces == [(8, 8, 8, 1)]


def test_kept_copies_survive_the_donated_state():
    devices = jax.devices()[:2]
    step = parallel.data_parallel(lambda s, x, y, i: (s + 1, s), devices)
    placed = parallel.replicate(jnp.zeros(3), devices)
    kept = parallel.one_copy(placed)
    x = np.zeros((2, 1))
    now, _ = step(placed, x, x, x)
    assert placed.is_deleted()
    np.testing.assert_array_equal(kept, np.zeros(3))
    np.testing.assert_array_equal(parallel.one_copy(now), np.ones(3))


@pytest.mark.parametrize(
    ("devices", "batch_size", "message"),
    [
        ([], 8, "devices"),
        ([0, 0], 8, "devices"),
        ([0, 1, 2], 8, "batch_size must be a multiple .* 3, got 8"),
    ],
)
def test_devices_that_cannot_share_a_batch(devices, batch_size, message):
    chosen = [jax.devices()[i] for i in devices]
    with pytest.raises(ValueError, match=message):
        parallel.check_devices(chosen, batch_size)


def test_batch_norm_without_an_axis_name_is_refused_on_several_devices():
    class Local(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.BatchNorm(use_running_average=not train)(x)
            return nn.Dense(10)(x.reshape((x.shape[0], -1)))

    dataset = data.subset(data.load("digits", "train"), 40)
    with pytest.raises(ValueError, match="axis_name"):
        training.fit(Local(), dataset, config=CONFIG, devices=jax.devices()[:2])


def batch_norm_run(run_dir, *, resume=False):
    """A run that several processes take like one; tests/runs/test_processes.py."""
    return training.fit(
        NormNet(),
        data.subset(data.load("digits", "train"), 96),
        config=dataclasses.replace(CONFIG, epochs=2),
        run_dir=run_dir,
        resume=resume,
        progress=False,
    )
