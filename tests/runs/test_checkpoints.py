"""Checkpoints: whole or not there, and bit for bit the same."""

import dataclasses
import os
import resource
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robjax.runs import checkpoints


@dataclasses.dataclass(frozen=True)
class Config:
    eps: float
    name: str = "a"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def state(seed=0):
    params = {"w": jax.random.normal(jax.random.key(seed), (3, 2)), "b": jnp.zeros(2)}
    return {
        "params": params,
        "opt": optax.sgd(0.1, momentum=0.9).init(params),
        "half": jnp.full((2,), 1 / 3, jnp.bfloat16),
        "counts": np.arange(3),
        "key": jax.random.key(7),
        "step": 5,
    }


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert type(x) is type(y)
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            assert x.dtype == y.dtype
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), strict=True)


def test_checkpoint_round_trip_is_exact(tmp_path):
    path = checkpoints.save_checkpoint(tmp_path, 5, state(), config=Config(eps=0.3))
    like = jax.tree.map(lambda leaf: leaf, state(seed=1))
    assert_same(checkpoints.load_checkpoint(path, like), state())
    manifest = checkpoints.load_manifest(path)
    assert manifest["step"] == 5
    assert manifest["config"] == {"eps": 0.3, "name": "a"}
    assert manifest["versions"]["packages"]["jax"] == jax.__version__


def test_checkpoint_comes_back_on_the_devices_of_the_new_state(tmp_path):
    mesh = jax.make_mesh((8,), ("batch",))
    everywhere = jax.NamedSharding(mesh, jax.P())
    one, eight = {"w": jnp.arange(4.0)}, {"w": jnp.zeros(4)}
    eight = jax.device_put(eight, everywhere)
    path = checkpoints.save_checkpoint(tmp_path, 1, one)
    back = checkpoints.load_checkpoint(path, eight)
    assert back["w"].sharding == everywhere
    path = checkpoints.save_checkpoint(tmp_path, 2, back)
    again = checkpoints.load_checkpoint(path, one)
    assert again["w"].sharding == one["w"].sharding
    assert_same(again, one)


def test_only_the_latest_checkpoints_stay(tmp_path):
    assert checkpoints.list_checkpoints(tmp_path / "none") == []
    for step in (1, 2, 10):
        checkpoints.save_checkpoint(tmp_path, step, {"w": jnp.float32(step)}, keep=2)
    kept = checkpoints.list_checkpoints(tmp_path)
    assert [checkpoints.load_manifest(path)["step"] for path in kept] == [2, 10]
    assert names(tmp_path) == [path.name for path in kept]


def test_saving_a_step_again_replaces_it(tmp_path):
    checkpoints.save_checkpoint(tmp_path, 1, {"w": jnp.float32(1)})
    path = checkpoints.save_checkpoint(tmp_path, 1, {"w": jnp.float32(2)})
    assert checkpoints.load_checkpoint(path, {"w": jnp.float32(0)})["w"] == 2
    assert names(tmp_path) == [path.name]


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGE = {
    "altered": flip,
    "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
    "deleted": lambda file: file.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_to_any_file_is_found(tmp_path, damage):
    path = checkpoints.save_checkpoint(tmp_path, 3, {"w": jnp.arange(5.0)})
    files = [file for file in path.rglob("*") if file.is_file() and file.stat().st_size]
    assert len(files) > 3
    for file in files:
        whole = file.read_bytes()
        DAMAGE[damage](file)
        if file.name == "manifest.json" and damage == "altered":
            file.write_text("{}")
        with pytest.raises(ValueError, match=f"checkpoint {path}"):
            checkpoints.load_checkpoint(path, {"w": jnp.zeros(5)})
        file.write_bytes(whole)
    assert_same(
        checkpoints.load_checkpoint(path, {"w": jnp.zeros(5)})["w"], jnp.arange(5.0)
    )


def test_flipped_bits_of_the_manifest_are_found(tmp_path):
    path = checkpoints.save_checkpoint(
        tmp_path, 5, {"w": np.ones(2)}, config={"eps": 0.125, "name": "mine"}
    )
    file = path / "manifest.json"
    content = file.read_bytes()
    whole = checkpoints.load_manifest(path)
    for place in range(0, len(content), 5):
        changed = bytearray(content)
        changed[place] ^= 1 << (place % 8)
        file.write_bytes(changed)
        try:
            found = checkpoints.load_manifest(path)
        except ValueError:
            continue
        assert found | whole == found  # it was the name of the checksum


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match="step_9 has no readable manifest"):
        checkpoints.load_checkpoint(tmp_path / "step_9", {})


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"w": jnp.zeros(4)}, r"\['w'\] is float32\[5\] there and float32\[4\] here"),
        ({"w": jnp.zeros(5, int)}, r"float32\[5\] there and int32\[5\] here"),
        ({"v": jnp.zeros(5)}, r"\['v'\] is missing there and float32\[5\] here"),
        ({}, r"\['w'\] is float32\[5\] there and missing here"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, like, message):
    path = checkpoints.save_checkpoint(tmp_path, 3, {"w": jnp.arange(5.0)})
    with pytest.raises(ValueError, match=message):
        checkpoints.load_checkpoint(path, like)


@pytest.mark.parametrize(("step", "keep"), [(-1, 1), (0, 0)])
def test_step_and_keep_are_checked(tmp_path, step, keep):
    with pytest.raises(ValueError, match=f"step={step} .* keep={keep}"):
        checkpoints.save_checkpoint(tmp_path, step, {"w": jnp.zeros(1)}, keep=keep)


def test_a_process_killed_while_saving_leaves_the_previous_checkpoint(tmp_path):
    """Kills at every rename in turn, the only instants at which anything appears."""
    code = textwrap.dedent("""
        import os, signal, sys
        import numpy as np
        from robjax.runs import checkpoints
        folder, kill_at = sys.argv[1], int(sys.argv[2])
        checkpoints.save_checkpoint(folder, 1, {"w": np.arange(3.0)}, keep=1)
        calls = 0
        def count(event, arguments):
            global calls
            if event == "os.rename":
                calls += 1
                if calls == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        checkpoints.save_checkpoint(folder, 2, {"w": np.ones(3)}, keep=1)
    """)
    survived = 0
    for kill_at in range(1, 9):
        folder = tmp_path / str(kill_at)
        command = [sys.executable, "-c", code, str(folder), str(kill_at)]
        status = subprocess.run(command, check=False).returncode
        if status == 0:
            break
        assert status == -signal.SIGKILL
        survived += 1
        (path,) = checkpoints.list_checkpoints(folder)
        back = checkpoints.load_checkpoint(path, {"w": np.zeros(3)})
        np.testing.assert_array_equal(back["w"], np.arange(3.0))
        path = checkpoints.save_checkpoint(folder, 2, {"w": np.ones(3)}, keep=1)
        assert names(folder) == [path.name]
    assert survived >= 2


def test_a_full_disk_is_one_sentence_and_leaves_the_previous_checkpoint(tmp_path):
    checkpoints.save_checkpoint(tmp_path, 1, state())
    large = {"w": np.random.default_rng(0).random(50_000)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"written \(File too large\); the earlier"):
            checkpoints.save_checkpoint(tmp_path, 2, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["step_0000000001"]
    checkpoints.load_checkpoint(tmp_path / "step_0000000001", state(1))
