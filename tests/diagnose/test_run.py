"""The whole of `diagnose` on a linear model, whose numbers are known."""

import importlib
import json
import os
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import robjax
from robjax.balls import L0, L2, Linf
from robjax.diagnose import BUDGETS, Budget, report, run
from robjax.diagnose import __main__ as command
from robjax.diagnose.lenses import LENSES
from robjax.runs import preemption

N = 24
SMALL = Budget(N, 2, 8, 8, 0, N, N, 2, 2, 1)
EPS = 0.1
RNG = np.random.default_rng(0)
X = RNG.uniform(0.3, 0.7, size=(N, 4, 4, 1)).astype(np.float32)
W = jnp.asarray(RNG.normal(size=(16, 2)), jnp.float32)
SCORE = (X - 0.5).reshape(N, 16) @ np.asarray(W)
Y = SCORE.argmax(1).astype(np.int32)
MASKS = np.ones((N, 4, 4), np.float32) * (np.arange(4) < 2)


def linear(w, x):
    return (x - 0.5).reshape(len(x), -1) @ w


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnosed")
    given = {"folder": folder, "budget": SMALL, "masks": MASKS, "ball": Linf(EPS)}
    found = robjax.diagnose(Partial(linear, W), (X, Y), **given)
    return found, folder, given


def test_numbers_are_those_of_the_closed_form(done):
    found, _, _ = done
    lenses = found.models["model"].lenses
    assert list(lenses) == list(LENSES)
    gap = np.asarray(W[:, 0] - W[:, 1], float)
    margin = np.abs((X.reshape(N, -1) - 0.5) @ gap)
    distance = margin / np.abs(gap).sum()
    attacks = lenses["attacks"]
    assert attacks.value("accuracy") == 1
    assert attacks.value("robust") == pytest.approx((distance > EPS).mean())
    assert lenses["proof"].value("proven") == attacks.value("robust")
    near = lenses["distances"]
    order = np.asarray(jax.random.permutation(jax.random.key(0), N))[:8]
    np.testing.assert_allclose(near.arrays["distance"], distance[order], rtol=2e-3)
    expected = np.minimum(distance[order], EPS).mean()
    assert near.value("arc") == pytest.approx(expected, rel=2e-3)
    for part in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0):
        rate = lenses["curve"].value(f"{part:g}")
        assert rate == pytest.approx((distance > part * EPS).mean())
    # a linear network has no curvature
    assert abs(lenses["divergence"].value("network")) < 1e-4
    assert lenses["masking"].arrays["raised"].size == 0
    assert found.models["model"].verdict.kind in ("weakly robust", "not robust")


def test_the_files_hold_what_is_printed(done):
    found, folder, _ = done
    written = json.loads((folder / "report.json").read_text())
    html = (folder / "report.html").read_text()
    model = found.models["model"]
    assert written["models"]["model"]["verdict"]["sentence"] == model.verdict.sentence
    assert model.verdict.sentence.replace("'", "&#39;") in html
    for name, lens in model.lenses.items():
        numbers = written["models"]["model"]["lenses"][name]["numbers"]
        assert numbers.keys() == lens.numbers.keys()
        for key, number in lens.numbers.items():
            assert number.shown() in html and number.shown() in str(found)
            if np.isfinite(number.value):
                assert numbers[key]["value"] == number.value
    assert (
        written["settings"]["images"] == N and "jax" in written["versions"]["packages"]
    )
    assert sys.orig_argv[0] in written["versions"]["command"]
    assert "http://" not in html.replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "")


def test_a_killed_run_goes_on_with_what_is_done(done, monkeypatch):
    found, folder, given = done
    *_, before, last = LENSES
    (folder / "00" / f"{before}.npz").unlink()
    (folder / "00" / f"{last}.npz").unlink()
    called = []

    def looked(name, look):
        def call(*arguments):
            called.append(name)
            if name == before:
                os.kill(os.getpid(), signal.SIGTERM)
            return look(*arguments)

        return call

    again = {k: (t, looked(k, f), c) for k, (t, f, c) in LENSES.items()}
    monkeypatch.setattr(run, "LENSES", again)
    with pytest.raises(preemption.Preempted) as stopped:
        robjax.diagnose(Partial(linear, W), (X, Y), resume=True, **given)
    assert called == [before] and stopped.value.code == preemption.EXIT_CODE
    resumed = robjax.diagnose(Partial(linear, W), (X, Y), resume=True, **given)
    assert called == [before, last]
    assert str(resumed) == str(found)
    with pytest.raises(ValueError, match="resume"):
        robjax.diagnose(Partial(linear, W), (X, Y), **given)
    for other, words in (
        ({"ball": Linf(0.2)}, "another threat: 'L∞ ε = 0.1' there"),
        ({"key": jax.random.key(1)}, "another key"),
        ({"masks": None}, "another masks"),
    ):
        with pytest.raises(ValueError, match=words):
            robjax.diagnose(
                Partial(linear, W), (X, Y), resume=True, **{**given, **other}
            )
    with pytest.raises(ValueError, match="another"):
        robjax.diagnose(Partial(linear, 2 * W), (X, Y), resume=True, **given)
    with pytest.raises(ValueError, match="folder.* another models: .'model'. there"):
        robjax.diagnose({"m": Partial(linear, W)}, (X, Y), resume=True, **given)


def test_a_lens_is_read_as_it_was_written(done):
    found, folder, _ = done
    for name, lens in found.models["model"].lenses.items():
        path = folder / "copy.npz"
        report.save_lens(path, lens)
        again = report.load_lens(path)
        assert again.notes == lens.notes and again.numbers.keys() == lens.numbers.keys()
        for key, number in lens.numbers.items():
            np.testing.assert_equal(tuple(again.numbers[key]), tuple(number))
        for key, array in lens.arrays.items():
            np.testing.assert_array_equal(again.arrays[key], array)
        assert name in LENSES


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": "huge"}, "budget must be one of quick, standard, full"),
        ({"budget": SMALL._replace(grid=0)}, "budget.grid"),
        ({"ball": Linf(0.0)}, "ball must have one radius above 0"),
        ({"ball": Linf}, "ball must have a radius"),
        ({"ball": L2(jnp.ones(N))}, "ball must have one radius above 0"),
        ({"ball": 0.1}, r"ball must be Linf\(eps\), L2\(eps\) or L1\(eps\), got 0.1"),
        ({"ball": L0(3)}, "ball must be Linf.* or L1.eps., got L0"),
        ({"ball": Linf(8)}, "ball: .*in the unit of the pixels, where 8 of 255"),
        ({"masks": MASKS[:, :2]}, "masks must be"),
        ({"masks": 255 * MASKS}, r"masks must .* got values from 0 to 255$"),
        ({"masks": [[1.0], [1.0, 0.0]]}, "masks must be one array"),
        ({"key": 0}, "key must be one key from .*, got 0$"),
        ({"key": jax.random.split(jax.random.key(0), N)}, "key must be one key"),
        ({"bounds": (1.0, 0.0)}, "bounds"),
        ({"resume": True, "folder": None}, "folder must be given"),
        ({"folder": 3}, "folder must be"),
    ],
)
def test_mistakes_are_named_before_anything_runs(changes, words):
    given = {"ball": Linf(EPS), "budget": SMALL} | changes
    with pytest.raises(ValueError, match=words):
        robjax.diagnose(Partial(linear, W), (X, Y), **given)


def test_models_need_names_and_labels_classes():
    given = {"ball": Linf(EPS), "budget": SMALL}
    with pytest.raises(ValueError, match="empty mapping"):
        robjax.diagnose({}, (X, Y), **given)
    with pytest.raises(ValueError, match="names"):
        robjax.diagnose({1: Partial(linear, W)}, (X, Y), **given)
    with pytest.raises(ValueError, match="model 'b': logits_fn must be a callable"):
        robjax.diagnose({"a": Partial(linear, W), "b": None}, (X, Y), **given)
    with pytest.raises(ValueError, match="labels"):
        robjax.diagnose(Partial(linear, W), (X, Y + 2), **given)


def test_the_command_reads_models_and_data(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "import beside_it\nbeside_it.times += 1\nother = 3\n"
        "def logits_fn(x):\n    return x\ndef again(x):\n    return x\n"
    )
    (tmp_path / "beside_it.py").write_text("times = 0\n")
    monkeypatch.setattr("sys.path", [*sys.path])
    np.savez(tmp_path / "set.npz", x=X, y=Y, masks=MASKS)
    asked = {}

    def diagnosed(models, data, **given):
        asked.update(given, models=models, data=data)
        return "the report"

    monkeypatch.setattr(command, "diagnose", diagnosed)
    place = f"{tmp_path / 'mine.py'}:logits_fn"
    again = f"{tmp_path / 'mine.py'}:again"
    line = f"robjax {place} {again} --data {tmp_path / 'set.npz'} --eps 8/16 --norm L2"
    monkeypatch.setattr("sys.argv", line.split())
    command.main()
    assert "the report" in capsys.readouterr().out
    assert asked["models"][place](3) == 3 and asked["ball"] == L2(0.5)
    assert importlib.import_module("beside_it").times == 1  # the file ran once
    np.testing.assert_array_equal(asked["data"][0], X)
    np.testing.assert_array_equal(asked["masks"], MASKS)


def test_mistakes_on_the_command_line_are_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text("other = 3\n")
    (tmp_path / "broken.py").write_text("x = 1\ny = x / 0\n")
    (tmp_path / "odd.py").write_text("def f(x) return x\n")
    (tmp_path / "run.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    for line, words in (
        ("", "models: name one"),
        ("mine", "module:name"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("mine.py:other", "must be callable, got int"),
        ("mine.py:nothing", "has no 'nothing'"),
        ("none.py:f", "no file"),
        ("broken.py:f", "cannot be imported (line 2): ZeroDivisionError"),
        ("odd.py:f", "cannot be imported: SyntaxError"),
        ("math:sqrt --eps 8/0", "eps must be a number, as 0.03 or 8/255, got '8/0'"),
        ("math:sqrt --eps 0,1", "eps must be a number"),
        ("math:sqrt --folder .", "already holds a run: go on with it by --resume"),
        ("math:sqrt --data mine.py", "data must be digits"),
    ):
        monkeypatch.setattr("sys.argv", ["robjax", "--eps", "1", *line.split()])
        with pytest.raises(SystemExit) as stop:
            command.main()
        said = capsys.readouterr().err
        assert stop.value.code == 2 and words in said and said.count("\n") == 1


def test_budgets_grow():
    for small, large in (("quick", "standard"), ("standard", "full")):
        pairs = zip(BUDGETS[small], BUDGETS[large], strict=True)
        assert all(a <= b for a, b in pairs)
