"""What evaluations write, take up again, share among devices and let count."""

import functools
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax import attacks, data
from robjax.balls import Linf
from robjax.evaluation import evaluate, loop
from robjax.evaluation.store import Store
from robjax.runs import files, preemption

RNG = np.random.default_rng(0)
W = RNG.normal(size=(12, 4)).astype(np.float32)
X = RNG.uniform(size=(23, 3, 4, 1)).astype(np.float32)
BALL = Linf(0.06)
KEY = jax.random.key(5)


def tanh_layer(w, x):
    return 3 * jnp.tanh((x.reshape(x.shape[0], -1) - 0.5) @ w)


MODEL = Partial(tanh_layer, jnp.asarray(W))
Y = np.asarray(jnp.argmax(MODEL(jnp.asarray(X)), axis=1))


def suite(ball=BALL):
    """Three attacks that leave something to the next, and draw random numbers."""
    return {
        "pgd, one step": functools.partial(
            attacks.pgd, ball=ball, steps=1, step_size=0.01
        ),
        "apgd": functools.partial(attacks.apgd, ball=ball, steps=3),
        "square": functools.partial(attacks.square, ball=ball, queries=8),
    }


def run(folder=None, *, devices=1, **options):
    return evaluate(
        MODEL, (X, Y), suite(), key=KEY, cascade=True, batch_size=8, run_dir=folder,
        devices=jax.devices()[:devices], **options,
    )  # fmt: skip


def ensemble(**options):
    return attacks.autoattack(
        MODEL, X, Y, key=KEY, ball=BALL, version="custom", attacks=suite(),
        batch_size=8, devices=jax.devices()[:1], **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    return run()


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    folder = tmp_path_factory.mktemp("begun")
    run(folder)
    return folder


def assert_identical(one, other):
    jax.tree.map(np.testing.assert_array_equal, one._asdict(), other._asdict())


def test_the_attacks_leave_something_to_each_other(whole):
    """Otherwise the tests below would say little."""
    assert set(whole.fooled_by) >= {-1, 1, 2}
    before = whole.correct
    for number, table in enumerate(whole.attacks.values(), start=1):
        tried = table.queries > 0
        np.testing.assert_array_equal(tried, before)
        np.testing.assert_array_equal(before & ~table.robust, whole.fooled_by == number)
        before = table.robust
    np.testing.assert_array_equal(whole.robust, before)


# ------------------------------------------------------------------ files

KILLED = """
import os, signal, stat, sys
from tests.evaluation import test_loop

flush, left = os.fsync, int(sys.argv[2])

def flush_or_die(descriptor):
    global left
    left -= stat.S_ISREG(os.fstat(descriptor).st_mode)
    if not left:
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    flush(descriptor)

os.fsync = flush_or_die
test_loop.run(sys.argv[1], resume=True)
"""


def files_of(folder):
    """In the order in which a run writes them."""
    batches = sorted(str(path.relative_to(folder)) for path in folder.glob("*/0*.npz"))
    return ["run.json"] * (folder / "run.json").exists() + batches


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same(whole, begun, tmp_path):
    """Each time in the middle of a file: the first, the last, one of each attack."""
    files, folder, done = files_of(begun), tmp_path / "run", 0
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": os.getcwd()}
    second = [
        files.index(f"{name}/000001.npz") for name in ("01-pgd_one_step", "02-apgd")
    ]
    for fatal in (0, 1, *second, len(files) - 1):
        command = [sys.executable, "-c", KILLED, str(folder), str(fatal - done + 1)]
        killed = subprocess.run(
            command, env=environment, capture_output=True, text=True
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert files_of(folder) == files[:fatal]
        done = fatal
    before = [(folder / name).stat().st_mtime_ns for name in files[:done]]
    assert_identical(run(folder, resume=True), whole)
    assert [(folder / name).stat().st_mtime_ns for name in files[:done]] == before
    # and once more, when there is nothing left to do; its images are on disk, too
    assert_identical(run(folder, resume=True), whole)
    assert_identical(ensemble(run_dir=folder, resume=True), ensemble())


def test_every_batch_is_on_disk_with_its_images(whole, tmp_path):
    run(tmp_path)
    names = ["00-clean", "01-pgd_one_step", "02-apgd", "03-square"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "run.json"]
    for number, folder in enumerate(names):
        for path in sorted((tmp_path / folder).glob("*.npz")):
            batch = files.load_npz(path)
            logits = MODEL(jnp.asarray(batch["x_adv"]))
            wrong = np.argmax(logits, axis=1) != Y[batch["index"]]
            np.testing.assert_array_equal(batch["fooled"], wrong)
            won = whole.fooled_by[batch["index"]] == number
            np.testing.assert_array_equal(batch["fooled"], won)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": jax.random.key(6)}, "another key"),
        ({"logits_fn": Partial(tanh_layer, jnp.asarray(2 * W))}, "another model"),
        ({"data": (X[::-1].copy(), Y)}, "another data"),
        ({"attacks": suite(Linf(0.05))}, "another attacks"),
        ({"batch_size": 4}, "another batch_size"),
        ({"cascade": False}, "another cascade"),
        ({"resume": False}, "already holds a run"),
        ({"run_dir": None}, "run_dir must be given"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_only_the_same_run_is_taken_up(begun, change, message):
    arguments = {
        "logits_fn": MODEL, "data": (X, Y), "attacks": suite(), "key": KEY,
        "cascade": True, "batch_size": 8, "devices": jax.devices()[:1],
        "run_dir": begun, "resume": True,
    } | change  # fmt: skip
    positional = [arguments.pop(name) for name in ("logits_fn", "data", "attacks")]
    with pytest.raises(ValueError, match=message):
        evaluate(*positional, **arguments)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.vmap, Partial])
def test_a_closure_over_other_weights_is_another_model(tmp_path, wrap):
    def make(w):
        return wrap(lambda x: x.ravel() @ w if wrap is jax.vmap else tanh_layer(w, x))

    evaluate(make(W), (X, Y), {}, key=KEY, run_dir=tmp_path)
    evaluate(make(W.copy()), (X, Y), {}, key=KEY, run_dir=tmp_path, resume=True)
    with pytest.raises(ValueError, match="another model"):
        evaluate(make(-W), (X, Y), {}, key=KEY, run_dir=tmp_path, resume=True)


def test_the_same_bytes_on_another_scale_are_another_run(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, X.shape, dtype=np.uint8)

    def begin(scale, **options):
        own = data.from_arrays(images, Y.astype(np.int32), num_classes=4, scale=scale)
        evaluate(MODEL, own, {}, key=KEY, run_dir=tmp_path, **options)

    begin(255.0)
    begin(255.0, resume=True)
    with pytest.raises(ValueError, match="another scale"):
        begin(400.0, resume=True)


def test_a_radius_for_each_of_many_samples_belongs_to_the_run(tmp_path):
    count = 2000
    images, eps = np.resize(X, (count, *X.shape[1:])), np.full(count, 0.01)
    labels = np.resize(Y, count)
    fgsm = functools.partial(attacks.fgsm, ball=Linf(eps))
    run_ = functools.partial(evaluate, MODEL, (images, labels), key=KEY, batch_size=500)
    run_({"fgsm": fgsm}, run_dir=tmp_path)
    other = functools.partial(fgsm, ball=Linf(np.where(np.arange(count) == 9, 1, eps)))
    with pytest.raises(ValueError, match="another attacks"):
        run_({"fgsm": other}, run_dir=tmp_path, resume=True)


def test_a_damaged_batch_is_done_again(whole, begun, tmp_path):
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "02-apgd" / "000000.npz"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.warns(UserWarning, match=r"000000\.npz is not a readable.*done again"):
        again = run(tmp_path, resume=True)
    assert_identical(again, whole)
    # so is one of other samples, as after a change of a batch before
    found = files.load_npz(file)
    files.save_npz(file, found | {"index": found["index"][::-1]})
    with pytest.warns(UserWarning, match=r"000000\.npz is of other samples"):
        assert_identical(run(tmp_path, resume=True), whole)


def test_told_to_stop_it_goes_on_with_other_devices(whole, tmp_path, monkeypatch):
    """SIGTERM in the second batch of an attack; then four devices, then one again."""
    save, left = Store.save, 5

    def told_while_saving(self, *arguments):
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGTERM)
        save(self, *arguments)

    monkeypatch.setattr(Store, "save", told_while_saving)
    with pytest.raises(preemption.Preempted) as stopped:
        run(tmp_path)
    assert stopped.value.code == preemption.EXIT_CODE
    done = files_of(tmp_path)
    assert done[-1] == "01-pgd_one_step/000001.npz" and len(done) == 1 + 5
    left = 2
    with (
        pytest.raises(preemption.Preempted),
        pytest.warns(UserWarning, match=r"different devices \(1 then, 4 now\)"),
    ):
        run(tmp_path, devices=4, resume=True)
    assert files_of(tmp_path)[:-2] == done
    assert_same_table(run(tmp_path, resume=True), whole)


# ------------------------------------------------------------------ progress


def collapsed(values):
    return [value for value, _ in itertools.groupby(values)]


@pytest.mark.parametrize("run", [run, ensemble], ids=["evaluate", "autoattack"])
def test_the_bars_show_the_robust_accuracy_so_far(run, monkeypatch, capsys):
    monkeypatch.setattr(loop, "tqdm", functools.partial(loop.tqdm, mininterval=0))
    fooled_by = run(progress=True).fooled_by
    shown = capsys.readouterr().err
    # evaluations and ensembles count from the clean image, number 0
    robust = np.ones(len(Y), bool)
    for number, name in enumerate(["clean", *suite()]):
        expected, todo = [robust.mean()], np.flatnonzero(robust)
        for batch in np.split(todo, range(8, len(todo), 8)):
            robust[batch] = fooled_by[batch] != number
            expected.append(robust.mean())
        found = re.findall(rf"\r{name}: .*?robust ([\d.]+) %", shown)
        assert collapsed(found) == collapsed(f"{100 * e:.2f}" for e in expected), name
        assert f"{len(todo)}/{len(todo)} [" in shown
    np.testing.assert_array_equal(robust, fooled_by < 0)
    run()
    assert capsys.readouterr().err == ""


def test_a_bar_without_an_image_left_shows_the_robust_accuracy_too(capsys):
    run_ = functools.partial(evaluate, MODEL, (X, Y), key=KEY, cascade=True)
    fgsm = functools.partial(attacks.fgsm, ball=Linf(1.0))
    run_({"fgsm": fgsm, "again": fgsm}, devices=jax.devices()[:1], progress=True)
    (last,) = re.findall(r"\ragain: .*robust ([\d.]+) %", capsys.readouterr().err)[-1:]
    assert last == "0.00"


# ------------------------------------------------------------------ how it is run


def test_the_number_of_devices_changes_nothing_but_rounding(whole):
    assert_same_table(run(devices=4), whole)


def assert_same_table(shared, whole):
    """Up to the rounding of other devices."""
    np.testing.assert_array_equal(shared.fooled_by, whole.fooled_by)
    for name, table in whole.attacks.items():
        other = shared.attacks[name]
        np.testing.assert_array_equal(table.first_success, other.first_success)
        np.testing.assert_array_equal(table.queries, other.queries)
        np.testing.assert_allclose(table.margin, other.margin, atol=1e-5)


def test_the_cascade_over_a_data_set_is_autoattack(whole):
    out = ensemble()
    np.testing.assert_array_equal(out.fooled_by, whole.fooled_by)
    np.testing.assert_array_equal(out.success, ~whole.robust)
    rates = [whole.accuracy.mean]
    rates += [whole.robust_accuracy(name).mean for name in whole.attacks]
    assert list(out.robust_accuracy.values()) == pytest.approx(rates)


def test_arguments_bound_by_position_come_first_as_ever():
    def scaled(factor, logits_fn, x, y, *, ball, **options):
        return attacks.pgd(logits_fn, x, y, ball=Linf(factor * ball.eps), **options)

    factors = {"half": 0.5, "third": np.float32(1 / 3)}
    named = {k: functools.partial(scaled, f, ball=BALL) for k, f in factors.items()}
    out = evaluate(MODEL, (X, Y), named, key=KEY, devices=jax.devices()[:1])
    for name, factor in factors.items():
        expected = factor * BALL.eps
        np.testing.assert_allclose(out.attacks[name].distance, expected, rtol=1e-5)
