"""Files: nothing half written, nothing silently wrong, everything bit for bit."""

import collections
import dataclasses
import json
import os
import pathlib
import warnings
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robjax.runs import checkpoints, files


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
    files.save_text(file, "old")
    with pytest.raises(RuntimeError), files.atomic_write(file) as out:
        out.write(b"half of the n")
        raise RuntimeError
    assert file.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_atomic_write_shows_nothing_before_the_end(tmp_path):
    file = tmp_path / "a.txt"
    with files.atomic_write(file) as out:
        out.write(b"new")
        out.flush()
        assert not file.exists()
    assert file.read_text() == "new"


def test_atomic_write_makes_files_as_readable_as_open_does(tmp_path):
    (tmp_path / "plain").touch()
    files.save_text(tmp_path / "atomic", "")
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

    text = json.dumps(files.plain(value), allow_nan=False)
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
    files.save_json(tmp_path / "a.json", value)
    assert files.load_json(tmp_path / "a.json") == {
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
        files.load_json(file)
    with pytest.raises(ValueError, match=r"damaged is not a readable \.npz"):
        files.load_npz(file)
    file.write_text('{"a": 1}\n{"a"\n')
    with pytest.raises(ValueError, match="damaged, line 2, is not JSON"):
        files.load_json_lines(file)
    with pytest.raises(FileNotFoundError):
        files.load_npz(tmp_path / "missing.npz")


@given(st.integers(0, 40))
def test_json_lines_survive_a_line_cut_anywhere(tmp_path_factory, cut):
    file = tmp_path_factory.mktemp("lines") / "metrics.jsonl"
    assert files.load_json_lines(file) == []
    records = [{"step": step, "loss": step / 3} for step in range(3)]
    for record in records:
        files.append_json_line(file, record)
    assert files.load_json_lines(file) == records

    data = file.read_bytes()[: -cut or None]
    file.write_bytes(data)
    complete = records[: data.count(b"\n")]
    assert files.load_json_lines(file) == complete
    files.append_json_line(file, {"step": 9})
    assert files.load_json_lines(file) == [*complete, {"step": 9}]


def test_json_lines_can_be_cut_back_to_the_step_resumed_from(tmp_path):
    file = tmp_path / "metrics.jsonl"
    files.save_json_lines(file, [{"step": 0}, {"step": 1}])
    files.append_json_line(file, {"step": 2})
    assert [r["step"] for r in files.load_json_lines(file)] == [0, 1, 2]
    files.save_json_lines(file, [])
    assert files.load_json_lines(file) == []


def test_npz_round_trip_is_exact(tmp_path):
    arrays = {"x": np.linspace(0, 1, 7, dtype=np.float32), "y": jnp.arange(3) > 1}
    files.save_npz(tmp_path / "a.npz", arrays)
    back = files.load_npz(tmp_path / "a.npz")
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array, strict=True)


def test_no_flipped_bit_of_an_npz_file_passes_for_its_arrays(tmp_path):
    arrays = {"means": np.zeros((3, 300))}
    file = tmp_path / "000000.npz"
    files.save_npz(file, arrays)
    content = file.read_bytes()
    outcomes = collections.Counter()
    # NumPy alone takes two of them for other zeros
    for bit in range(8 * 50, 8 * (len(content) - 80)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << (bit % 8)
        file.write_bytes(changed)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = files.load_part(file, arrays)
        outcomes[found is None] += 1
        assert bool(told) == (found is None)
        if found:
            np.testing.assert_array_equal(found["means"], arrays["means"], strict=True)
    assert outcomes[True] > 500
    (tmp_path / "000001.npz").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"000001\.npz is not a readable .* again"):
        assert files.load_part(tmp_path / "000001.npz", arrays) is None
    assert files.load_part(tmp_path / "000002.npz", arrays) is None


def test_results_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    results = tmp_path / "file" / "results"
    with pytest.raises(ValueError, match=r"results='.*file/results' must be a folder"):
        files.writable_folder(results)
    with pytest.raises(ValueError, match="folder='.*' must be a folder"):
        checkpoints.save_checkpoint(results, 0, {"w": jnp.zeros(2)})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_results_without_permission_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="must be a folder that can be written"):
        files.writable_folder(tmp_path)


def test_types_that_numpy_does_not_have_are_widened(tmp_path):
    values = jnp.array([1.5, -0.1, jnp.inf], jnp.bfloat16)
    files.save_npz(tmp_path / "a.npz", {"x": values, "n": np.arange(3)})
    loaded = files.load_npz(tmp_path / "a.npz")
    assert loaded["x"].dtype == np.float32 and loaded["n"].dtype == int
    np.testing.assert_array_equal(loaded["x"], np.asarray(values, np.float32))
