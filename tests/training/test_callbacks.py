"""What happens at the end of an epoch, and that a resumed run repeats it."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from robjax import attacks, data, evaluation, training
from robjax.balls import Linf
from robjax.models import Linear
from robjax.runs import files
from robjax.training import FitConfig, callbacks
from robjax.training.journal import Journal

RNG = np.random.default_rng(0)
DATA = data.from_arrays(RNG.uniform(size=(32, 1, 3, 1)), np.arange(32) % 2)
VALIDATION = data.from_arrays(RNG.uniform(size=(16, 1, 3, 1)), np.arange(16) % 2)
FGSM = {"FGSM": functools.partial(attacks.fgsm, ball=Linf(0.05))}
CONFIG = FitConfig(
    epochs=6, batch_size=16, learning_rate=0.5, schedule="constant", ema_decay=0.5
)


def fit(run_dir=None, *, config=CONFIG, progress=False, **options):
    return training.fit(
        Linear(2), DATA, config=config, run_dir=run_dir, devices=jax.devices()[:1],
        progress=progress, **options,
    )  # fmt: skip


def records(folder):
    found = files.load_json_lines(folder / "metrics.jsonl")
    for record in found:
        record.pop("images_per_second", None)
    return found


def assert_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def scripted(values, seen=None):
    """An `on_epoch` that measures given values, and keeps the weights."""

    def on_epoch(epoch, variables):
        if seen is not None:
            seen.append(variables)
        return {"score": values[epoch]} if values[epoch] is not None else {}

    return on_epoch


@pytest.mark.parametrize(
    ("mode", "values", "chosen", "stopped"),
    [
        ("max", [0.1, 0.3, 0.2, 0.3, 0.2, 0.1, 0.9], 1, 3),
        ("min", [0.5, 0.3, 0.2, 0.3, 0.4, 0.1, 0.0], 2, 4),
        ("max", [None, 0.1, None, 0.2, 0.3, 0.4, 0.5], 6, 6),
        ("max", [0.9, float("nan"), 0.2, 0.1, 0.1, 0.1, 0.1], 0, 2),
        ("max", [0.1, None, None, None, 0.2, None, 0.1], 4, 6),
    ],
)
def test_the_best_weights_and_the_end_of_the_training(mode, values, chosen, stopped):
    seen = []
    state = fit(
        on_epoch=scripted(values, seen),
        callbacks=[callbacks.best("score", patience=2, mode=mode)],
    )
    assert len(seen) == stopped + 1 and int(state.step) == 2 * stopped
    assert_equal(state.weights, seen[chosen])
    assert_equal(state.ema, seen[-1])  # the last ones are there, too


def test_a_run_that_stopped_is_not_taken_up_again(tmp_path):
    options = {
        "on_epoch": scripted([0.1, 0.3, 0.2, 0.3, 0.2, 0.1, 0.9]),
        "callbacks": [callbacks.best("score", patience=2)],
    }
    state = fit(tmp_path, **options)
    found = records(tmp_path)
    assert_equal(fit(tmp_path, resume=True, **options), state)
    assert records(tmp_path) == found
    assert [record.get("best_epoch") for record in found] == [0, 1, 1, 1]


def test_averaged_weights_are_the_mean_of_those_of_the_epochs():
    seen = []
    state = fit(
        on_epoch=scripted([0.0] * 7, seen), callbacks=[callbacks.mean_weights(start=3)]
    )
    expected = jax.tree.map(lambda *w: np.mean(w, axis=0), *jax.device_get(seen[3:]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        state.weights, expected,
    )  # fmt: skip


def test_accuracy_under_attack_is_that_of_an_evaluation(tmp_path):
    seen = []
    fit(
        tmp_path,
        on_epoch=scripted([0.0] * 7, seen),
        callbacks=[
            callbacks.mean_weights(start=1),
            callbacks.evaluate(VALIDATION, FGSM, every=3, name="held_out"),
        ],
    )
    found = records(tmp_path)
    names = ("held_out_accuracy", "held_out_robust_accuracy")
    measured = [r["epoch"] for r in found if {*names} <= r.keys()]
    assert measured == [0, 3, 6]
    # the callback before it has put the mean of three epochs in the place of the last
    mean = jax.tree.map(lambda *w: sum(w) / 3, *seen[1:4])
    expected = evaluation.evaluate(
        training.logits_fn(Linear(2), mean), VALIDATION, FGSM, key=jax.random.key(0)
    )
    assert found[3]["held_out_accuracy"] == expected.accuracy.mean
    assert found[3]["held_out_robust_accuracy"] == expected.robust_accuracy().mean
    assert expected.robust_accuracy().mean < expected.accuracy.mean


class Stop(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("saves", [1, 4, 7])
def test_resumes_bit_for_bit(saves, tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, epochs=5, checkpoint_every=1, balanced=True)
    options = {
        "config": config,
        "callbacks": [
            callbacks.mean_weights(start=2),
            callbacks.evaluate(VALIDATION, FGSM, every=2),
            callbacks.best("validation_robust_accuracy", patience=4),
        ],
    }
    whole = fit(tmp_path / "whole", **options)
    save, count = Journal.save, 0

    def stop(self, state, extra):
        nonlocal count
        save(self, state, extra)
        count += 1
        if count == saves:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save", stop)
        with pytest.raises(Stop):
            fit(tmp_path / "cut", **options)
    assert_equal(fit(tmp_path / "cut", resume=True, **options), whole)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    other = [*options["callbacks"][:2], callbacks.best("loss", mode="min")]
    with pytest.raises(ValueError, match="another callbacks"):
        fit(tmp_path / "cut", resume=True, **{**options, "callbacks": other})


def test_a_line_for_each_epoch_where_there_is_no_terminal(capsys):
    fit(config=dataclasses.replace(CONFIG, epochs=2), progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"epoch {e}/2" for e in range(3)]
    assert all(word in lines[2] for word in ("loss 0.", "learning_rate 0.5"))


def test_a_callback_of_ones_own():
    def init(weights):
        return callbacks.Kept(None, {"sum": np.array(0.0)}, np.array(False))

    def update(kept, end):
        total = kept.memory["sum"] + end.epoch
        memory = {"sum": np.array(total)}
        logits = end.logits_fn(VALIDATION.images)
        now = callbacks.Kept(None, memory, np.array(total >= 3))
        return now, {"spread": float(np.ptp(logits))}

    state = fit(callbacks=[callbacks.Callback(init, update)])
    assert int(state.step) == 4 and float(state.callbacks[0].memory["sum"]) == 3
    assert state.weights is state.ema


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: callbacks.best("loss", patience=0), "patience must be"),
        (lambda: callbacks.best("loss", mode="least"), "mode must be 'max' or 'min'"),  # pyright: ignore[reportArgumentType]
        (lambda: callbacks.evaluate((DATA.images, DATA.labels), FGSM), "data must be"),  # pyright: ignore[reportArgumentType]
        (lambda: callbacks.evaluate(VALIDATION, FGSM, every=0), "every must be"),
        (lambda: callbacks.mean_weights(start=-1), "start must be"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_metric_that_nobody_measures_is_named():
    with pytest.raises(ValueError, match="metric must be one of accuracy, .*'acuracy'"):
        fit(callbacks=[callbacks.best("acuracy")])
