"""The whole of `diagnose` on a linear model, whose numbers are known."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import robjax
from robjax.balls import L2, Linf
from robjax.diagnose import BUDGETS, Budget, report, run
from robjax.diagnose import __main__ as command
from robjax.diagnose.lenses import LENSES

N = 24
SMALL = Budget(N, 2, 8, 8, 1, N, 2, 2, 1)
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
    assert "http://" not in html.replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "")


def test_a_killed_run_goes_on_with_what_is_done(done, monkeypatch):
    found, folder, given = done
    (folder / "00" / "gradients.npz").unlink()
    called = []

    def looked(name, look):
        def call(*arguments):
            called.append(name)
            return look(*arguments)

        return call

    again = {k: (t, looked(k, f), c) for k, (t, f, c) in LENSES.items()}
    monkeypatch.setattr(run, "LENSES", again)
    resumed = robjax.diagnose(Partial(linear, W), (X, Y), resume=True, **given)
    assert called == ["gradients"]
    assert str(resumed) == str(found)
    with pytest.raises(ValueError, match="resume"):
        robjax.diagnose(Partial(linear, W), (X, Y), **given)
    for other in ({"ball": Linf(0.2)}, {"key": jax.random.key(1)}, {"masks": None}):
        with pytest.raises(ValueError, match="another"):
            robjax.diagnose(
                Partial(linear, W), (X, Y), resume=True, **{**given, **other}
            )
    with pytest.raises(ValueError, match="another"):
        robjax.diagnose(Partial(linear, 2 * W), (X, Y), resume=True, **given)


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
        ({"masks": MASKS[:, :2]}, "masks must be"),
        ({"bounds": (1.0, 0.0)}, "bounds"),
        ({"resume": True, "folder": None}, "run_dir must be given"),
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
    with pytest.raises(ValueError, match="labels"):
        robjax.diagnose(Partial(linear, W), (X, Y + 2), **given)


def test_the_command_reads_models_and_data(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text("def logits_fn(x):\n    return x\nother = 3\n")
    np.savez(tmp_path / "set.npz", x=X, y=Y, masks=MASKS)
    asked = {}

    def diagnosed(models, data, **given):
        asked.update(given, models=models, data=data)
        return "the report"

    monkeypatch.setattr(command, "diagnose", diagnosed)
    place = f"{tmp_path / 'mine.py'}:logits_fn"
    line = f"robjax {place} --data {tmp_path / 'set.npz'} --eps 0.5 --norm L2"
    monkeypatch.setattr("sys.argv", line.split())
    command.main()
    assert "the report" in capsys.readouterr().out
    assert asked["models"][place](3) == 3 and asked["ball"] == L2(0.5)
    np.testing.assert_array_equal(asked["data"][0], X)
    np.testing.assert_array_equal(asked["masks"], MASKS)
    for place, words in (
        ("mine", "module:name"),
        ("no_such_module:f", "no_such_module"),
        (f"{tmp_path / 'mine.py'}:other", "no callable"),
        (f"{tmp_path / 'none.py'}:f", "no file"),
    ):
        monkeypatch.setattr("sys.argv", ["robjax", place, "--eps", "1"])
        with pytest.raises(SystemExit):
            command.main()
        assert words in capsys.readouterr().err


def test_budgets_grow():
    for small, large in (("quick", "standard"), ("standard", "full")):
        pairs = zip(BUDGETS[small], BUDGETS[large], strict=True)
        assert all(a <= b for a, b in pairs)
