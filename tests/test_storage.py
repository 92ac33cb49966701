"""Storage: nothing half written, nothing silently wrong, everything bit for bit."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robjax import storage


class Pair(NamedTuple):
    left: int
    right: float


@dataclasses.dataclass(frozen=True)
class Config:
    eps: float
    name: str = "a"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_atomic_write_keeps_the_old_file_if_the_block_fails(tmp_path):
    file = tmp_path / "a.txt"
    storage.save_text(file, "old")
    with pytest.raises(RuntimeError), storage.atomic_write(file) as out:
        out.write(b"half of the n")
        raise RuntimeError
    assert file.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_atomic_write_shows_nothing_before_the_end(tmp_path):
    file = tmp_path / "a.txt"
    with storage.atomic_write(file) as out:
        out.write(b"new")
        out.flush()
        assert not file.exists()
    assert file.read_text() == "new"


def test_atomic_write_makes_files_as_readable_as_open_does(tmp_path):
    (tmp_path / "plain").touch()
    storage.save_text(tmp_path / "atomic", "")
    modes = {(tmp_path / name).stat().st_mode for name in ("plain", "atomic")}
    assert len(modes) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON)
def test_json_is_strict_and_keeps_every_finite_value(value):
    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    text = json.dumps(storage.plain(value), allow_nan=False)
    back = json.loads(text, parse_constant=refuse)
    # The standard library's own (not strict) writer is the reference.
    expected = json.loads(json.dumps(value), parse_constant=lambda token: None)
    assert back == expected


def test_plain_converts_what_results_are_made_of(tmp_path):
    value = {
        "config": Config(eps=float("nan")),
        "pair": Pair(1, 2.5),
        "array": jnp.array([[1, 2], [3, 4]]),
        "scalar": np.float32(0.5),
        "infinite": np.array([1.0, np.inf]),
        "path": pathlib.PurePosixPath("a/b"),
        3: {"b", "a"},
    }
    storage.save_json(tmp_path / "a.json", value)
    assert storage.load_json(tmp_path / "a.json") == {
        "config": {"eps": None, "name": "a"},
        "pair": {"left": 1, "right": 2.5},
        "array": [[1, 2], [3, 4]],
        "scalar": 0.5,
        "infinite": [1.0, None],
        "path": "a/b",
        "3": ["a", "b"],
    }


def test_damaged_files_are_named(tmp_path):
    file = tmp_path / "damaged"
    file.write_text('{"a": 1')
    with pytest.raises(ValueError, match="damaged is not valid JSON"):
        storage.load_json(file)
    with pytest.raises(ValueError, match=r"damaged is not a readable \.npz"):
        storage.load_npz(file)
    file.write_text('{"a": 1}\n{"a"\n')
    with pytest.raises(ValueError, match="damaged, line 2, is not JSON"):
        storage.load_json_lines(file)
    with pytest.raises(FileNotFoundError):
        storage.load_npz(tmp_path / "missing.npz")


@given(st.integers(0, 40))
def test_json_lines_survive_a_line_cut_anywhere(tmp_path_factory, cut):
    file = tmp_path_factory.mktemp("lines") / "metrics.jsonl"
    assert storage.load_json_lines(file) == []
    records = [{"step": step, "loss": step / 3} for step in range(3)]
    for record in records:
        storage.append_json_line(file, record)
    assert storage.load_json_lines(file) == records

    data = file.read_bytes()[: -cut or None]
    file.write_bytes(data)
    complete = records[: data.count(b"\n")]
    assert storage.load_json_lines(file) == complete
    storage.append_json_line(file, {"step": 9})
    assert storage.load_json_lines(file) == [*complete, {"step": 9}]


def test_json_lines_can_be_cut_back_to_the_step_resumed_from(tmp_path):
    file = tmp_path / "metrics.jsonl"
    storage.save_json_lines(file, [{"step": 0}, {"step": 1}])
    storage.append_json_line(file, {"step": 2})
    assert [r["step"] for r in storage.load_json_lines(file)] == [0, 1, 2]
    storage.save_json_lines(file, [])
    assert storage.load_json_lines(file) == []


def test_npz_round_trip_is_exact(tmp_path):
    arrays = {"x": np.linspace(0, 1, 7, dtype=np.float32), "y": jnp.arange(3) > 1}
    storage.save_npz(tmp_path / "a.npz", arrays)
    back = storage.load_npz(tmp_path / "a.npz")
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array, strict=True)


def test_results_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    results = tmp_path / "file" / "results"
    with pytest.raises(ValueError, match=r"results='.*file/results' must be a folder"):
        storage.check_writable(results)
    with pytest.raises(ValueError, match="must be a folder that can be written"):
        storage.open_run(results, "kl_metric", {})
    with pytest.raises(ValueError, match="folder='.*' must be a folder"):
        storage.save_checkpoint(results, 0, {"w": jnp.zeros(2)})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_results_without_permission_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="must be a folder that can be written"):
        storage.check_writable(tmp_path)


def test_a_run_holds_its_config_and_versions(tmp_path):
    folder = storage.open_run(tmp_path, "kl_metric", Config(eps=0.3))
    assert folder.parent == tmp_path / "kl_metric"
    assert names(folder) == ["config.json"]
    stored = storage.load_json(folder / "config.json")
    assert stored["config"] == {"eps": 0.3, "name": "a"}
    assert stored["versions"]["packages"]["jax"] == jax.__version__
    assert stored["versions"]["device"] == "8 x cpu"


def test_runs_without_a_name_never_share_a_folder(tmp_path):
    folders = {storage.open_run(tmp_path, "e", {}) for _ in range(3)}
    assert len(folders) == 3


def test_a_run_is_reopened_only_with_its_own_config(tmp_path):
    folder = storage.open_run(tmp_path, "e", Config(eps=0.3), run="one")
    storage.save_text(folder / "metrics.jsonl", "")
    assert storage.open_run(tmp_path, "e", Config(eps=0.3), run="one") == folder
    assert names(folder) == ["config.json", "metrics.jsonl"]
    with pytest.raises(ValueError, match="run='one' exists .* another config"):
        storage.open_run(tmp_path, "e", Config(eps=0.1), run="one")


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
    path = storage.save_checkpoint(tmp_path, 5, state(), config=Config(eps=0.3))
    like = jax.tree.map(lambda leaf: leaf, state(seed=1))
    assert_same(storage.load_checkpoint(path, like), state())
    manifest = storage.load_manifest(path)
    assert manifest["step"] == 5
    assert manifest["config"] == {"eps": 0.3, "name": "a"}
    assert manifest["versions"]["packages"]["jax"] == jax.__version__


def test_checkpoint_comes_back_on_the_devices_of_the_new_state(tmp_path):
    mesh = jax.make_mesh((8,), ("batch",))
    everywhere = jax.NamedSharding(mesh, jax.P())
    one, eight = {"w": jnp.arange(4.0)}, {"w": jnp.zeros(4)}
    eight = jax.device_put(eight, everywhere)
    path = storage.save_checkpoint(tmp_path, 1, one)
    back = storage.load_checkpoint(path, eight)
    assert back["w"].sharding == everywhere
    path = storage.save_checkpoint(tmp_path, 2, back)
    again = storage.load_checkpoint(path, one)
    assert again["w"].sharding == one["w"].sharding
    assert_same(again, one)


def test_only_the_latest_checkpoints_stay(tmp_path):
    assert storage.list_checkpoints(tmp_path / "none") == []
    for step in (1, 2, 10):
        storage.save_checkpoint(tmp_path, step, {"w": jnp.float32(step)}, keep=2)
    kept = storage.list_checkpoints(tmp_path)
    assert [storage.load_manifest(path)["step"] for path in kept] == [2, 10]
    assert names(tmp_path) == [path.name for path in kept]


def test_saving_a_step_again_replaces_it(tmp_path):
    storage.save_checkpoint(tmp_path, 1, {"w": jnp.float32(1)})
    path = storage.save_checkpoint(tmp_path, 1, {"w": jnp.float32(2)})
    assert storage.load_checkpoint(path, {"w": jnp.float32(0)})["w"] == 2
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
    path = storage.save_checkpoint(tmp_path, 3, {"w": jnp.arange(5.0)})
    files = [file for file in path.rglob("*") if file.is_file() and file.stat().st_size]
    assert len(files) > 3
    for file in files:
        whole = file.read_bytes()
        DAMAGE[damage](file)
        if file.name == "manifest.json" and damage == "altered":
            file.write_text("{}")
        with pytest.raises(ValueError, match=f"checkpoint {path}"):
            storage.load_checkpoint(path, {"w": jnp.zeros(5)})
        file.write_bytes(whole)
    assert_same(
        storage.load_checkpoint(path, {"w": jnp.zeros(5)})["w"], jnp.arange(5.0)
    )


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match="step_9 has no readable manifest"):
        storage.load_checkpoint(tmp_path / "step_9", {})


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
    path = storage.save_checkpoint(tmp_path, 3, {"w": jnp.arange(5.0)})
    with pytest.raises(ValueError, match=message):
        storage.load_checkpoint(path, like)


@pytest.mark.parametrize(("step", "keep"), [(-1, 1), (0, 0)])
def test_step_and_keep_are_checked(tmp_path, step, keep):
    with pytest.raises(ValueError, match=f"step={step} .* keep={keep}"):
        storage.save_checkpoint(tmp_path, step, {"w": jnp.zeros(1)}, keep=keep)


def test_a_process_killed_while_saving_leaves_the_previous_checkpoint(tmp_path):
    """Kills at every rename in turn, the only instants at which anything appears."""
    code = textwrap.dedent("""
        import os, signal, sys
        import numpy as np
        from robjax import storage
        folder, kill_at = sys.argv[1], int(sys.argv[2])
        storage.save_checkpoint(folder, 1, {"w": np.arange(3.0)}, keep=1)
        calls = 0
        def count(event, arguments):
            global calls
            if event == "os.rename":
                calls += 1
                if calls == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        storage.save_checkpoint(folder, 2, {"w": np.ones(3)}, keep=1)
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
        (path,) = storage.list_checkpoints(folder)
        back = storage.load_checkpoint(path, {"w": np.zeros(3)})
        np.testing.assert_array_equal(back["w"], np.arange(3.0))
        path = storage.save_checkpoint(folder, 2, {"w": np.ones(3)}, keep=1)
        assert names(folder) == [path.name]
    assert survived >= 2
