"""A run is taken up by the same model and attacks, and by no others."""

import functools
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robjax import attacks, data
from robjax.balls import Linf
from robjax.evaluation import evaluate
from robjax.models import MLP
from robjax.runs import files, provenance
from tests.runs.programs import PROGRAMS, run

RNG = np.random.default_rng(0)
X = RNG.uniform(size=(9, 12)).astype(np.float32)
Y = RNG.integers(0, 4, 9)
KEY = jax.random.key(0)


def judge(logits_fn, folder, *, named=None, resume=False, **options):
    """An evaluation, of the clean images unless attacks are named."""
    devices = options.pop("devices", jax.devices()[:1])
    return evaluate(
        logits_fn, (X, Y), named or {}, key=KEY, run_dir=folder, resume=resume,
        devices=devices, **options,
    )  # fmt: skip


UNSEEN = {
    "through globals()": """
W = VALUE * BASE
def f(x): return x @ globals()["W"]
""",
    "through getattr": """
other = module("other", "W = np.float32(VALUE)")
def f(x): return getattr(other, "W") * (x @ BASE)
""",
    "in the environment": """
import os
os.environ["ROBJAX_TEST_SCALE"] = "VALUE"
def f(x): return float(os.environ["ROBJAX_TEST_SCALE"]) * (x @ BASE)
""",
}
MODELS = [
    "variable of the module", "variable that a helper reads", "code",
    "attribute of another module", "code of a helper", "keyword-only default value",
    "functools.cache", "attribute of a class", "code of a method", "__slots__",
    "repr of its own", "repr with an address", "method of a pytree", "linen", "NNX",
    "code of a linen module", "weights of an NNX module in a closure", "Haiku's style",
    "code of an Equinox module", "estimator", "many closures in each other",
]  # fmt: skip


@pytest.mark.parametrize("program", [*MODELS, *UNSEEN])
def test_only_the_same_model_is_taken_up(program, tmp_path):
    source = (PROGRAMS | UNSEEN)[program]
    first = judge(run(source, 1.0), tmp_path)
    again = judge(run(source, 1.0), tmp_path, resume=True)
    np.testing.assert_array_equal(first.correct, again.correct)
    with pytest.raises(ValueError, match="holds a run with another model"):
        judge(run(source, 3.0), tmp_path, resume=True)


ATTACKS = {
    "variable": """
amount = VALUE
def f(logits_fn, x, y, *, key, bounds): return jnp.clip(x + amount / 9, *bounds)
""",
    "code": """
def f(logits_fn, x, y, *, key, bounds): return jnp.clip(x + VALUE / 9, *bounds)
""",
    "keyword-only default value": """
def f(logits_fn, x, y, *, key, bounds, amount=VALUE):
    return jnp.clip(x + amount / 9, *bounds)
""",
    "attribute of a class": """
class Brighter:
    amount = VALUE
    def __call__(self, logits_fn, x, y, *, key, bounds):
        return jnp.clip(x + self.amount / 9, *bounds)
f = Brighter()
""",
    "__slots__": """
class Brighter:
    __slots__ = ("amount",)
    def __call__(self, logits_fn, x, y, *, key, bounds):
        return jnp.clip(x + self.amount / 9, *bounds)
f = Brighter()
f.amount = VALUE
""",
    "field left out of the repr": """
@dataclasses.dataclass(frozen=True)
class Brighter:
    amount: float = dataclasses.field(repr=False)
    def __call__(self, logits_fn, x, y, *, key, bounds):
        return jnp.clip(x + self.amount / 9, *bounds)
f = Brighter(VALUE)
""",
    "loss": """
from robjax import attacks, balls
def loss(logits, y): return VALUE * logits[jnp.arange(len(y)), y]
f = functools.partial(attacks.pgd, ball=balls.Linf(0.1), steps=2, step_size=0.1,
                      loss=loss)
""",
    "variable of a loss": """
from robjax import attacks, balls
scale = VALUE
def loss(logits, y): return scale * logits[jnp.arange(len(y)), y]
f = functools.partial(attacks.pgd, ball=balls.Linf(0.1), steps=2, step_size=0.1,
                      loss=loss)
""",
    "attack around an attack": """
from robjax import attacks, balls
def f(logits_fn, x, y, *, key, bounds):
    ball = balls.Linf(VALUE / 9)
    return attacks.pgd(logits_fn, x, y, key=key, ball=ball, bounds=bounds, steps=2,
                       step_size=0.1)
""",
}


@pytest.mark.parametrize("program", ATTACKS)
def test_only_the_same_attack_is_taken_up(program, tmp_path):
    model = run(PROGRAMS["code"])

    def attacked(value, **options):
        named = {"mine": run(ATTACKS[program], value)}
        return judge(model, tmp_path, named=named, **options)

    first, again = attacked(1.0), attacked(1.0, resume=True)
    for one, other in zip(first.attacks["mine"], again.attacks["mine"], strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="holds a run with another attacks"):
        attacked(3.0, resume=True)


def test_the_message_says_where_the_difference_is(tmp_path):
    judge(run(PROGRAMS["variable that a helper reads"]), tmp_path / "variable")
    with pytest.raises(ValueError, match=r"its victim.W was 'float32\[12, 4\] crc32 "):
        judge(
            run(PROGRAMS["variable that a helper reads"], 2.0),
            tmp_path / "variable",
            resume=True,
        )
    judge(run(PROGRAMS["code of a helper"]), tmp_path / "code")
    with pytest.raises(ValueError, match="the code of victim.helper was changed since"):
        judge(run(PROGRAMS["code of a helper"], 2.0), tmp_path / "code", resume=True)
    judge(run(UNSEEN["through getattr"]), tmp_path / "unseen")
    with pytest.raises(ValueError, match=r"outputs: up to [\d.]+ apart on 8 im"):
        judge(run(UNSEEN["through getattr"], 2.0), tmp_path / "unseen", resume=True)


@pytest.mark.parametrize(
    "change",
    [lambda w: w.reshape(4, 12), lambda w: w.view(np.int32)],
    ids=["shape", "dtype"],
)
def test_the_same_bytes_in_another_form_are_another_model(change, tmp_path):
    def logits(w, x):
        return x @ w.reshape(12, 4).astype(jnp.float32)

    weights = RNG.normal(size=(12, 4)).astype(np.float32)
    judge(Partial(logits, weights), tmp_path)
    with pytest.raises(ValueError, match="holds a run with another model"):
        judge(Partial(logits, change(weights)), tmp_path, resume=True)


def test_a_model_that_is_loaded_again_is_the_same(tmp_path):
    model = MLP(4, widths=(5,))
    variables = jax.jit(model.init)(jax.random.key(0), jnp.asarray(X))
    leaves, tree = jax.tree.flatten(variables)
    files.save_npz(
        tmp_path / "weights.npz", {f"{n:03d}": leaf for n, leaf in enumerate(leaves)}
    )
    loaded = files.load_npz(tmp_path / "weights.npz")
    again = jax.tree.unflatten(tree, [jnp.asarray(loaded[n]) for n in sorted(loaded)])
    folder = tmp_path / "run"
    judge(Partial(model.apply, variables), folder)
    judge(Partial(MLP(4, widths=(5,)).apply, again), folder, resume=True)
    judge(Partial(model.apply, jax.device_get(variables)), folder, resume=True)
    other = jax.tree.map(lambda leaf: leaf * 1.0001, variables)
    with pytest.raises(ValueError, match="another model"):
        judge(Partial(model.apply, other), folder, resume=True)


SCRIPT = """
import sys
import jax, jax.numpy as jnp, numpy as np
from robjax.evaluation import evaluate

SCALE = 1.0
NAMES = {"a", "b", "c"}
STARTED = str(sys.argv)

def helper(x):
    assert NAMES == {"c", "b", "a"}
    return SCALE * x

class Net:
    def __call__(self, x):
        return jax.vmap(lambda row: helper(row)[:3])(x)

def attack(logits_fn, x, y, *, key, bounds):
    return jnp.clip(helper(x), *bounds)

x = np.linspace(0, 1, 20, dtype=np.float32).reshape(5, 4)
evaluate(Net(), (x, np.zeros(5, int)), {"mine": attack}, key=jax.random.key(0),
         run_dir=sys.argv[1], resume=len(sys.argv) > 2)
"""


def test_a_script_takes_up_its_own_run_until_it_is_edited(tmp_path):
    def call(source, seed, *options):
        (tmp_path / "attack.py").write_text(source)
        command = [sys.executable, "attack.py", "run", *options]
        environment = os.environ | {"PYTHONPATH": os.getcwd(), "PYTHONHASHSEED": seed}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    assert call(SCRIPT, "1").returncode == 0
    done = call(f"# some comment\n{SCRIPT}", "2", "--resume")
    assert done.returncode == 0, done.stderr
    done = call(SCRIPT.replace("SCALE = 1.0", "SCALE = 0.5"), "1", "--resume")
    assert "another attacks" in done.stderr and "__main__.SCALE" in done.stderr


# ------------------------------------------------------------------ what may differ


def test_code_is_not_compared_between_versions_of_python(monkeypatch, tmp_path):
    judge(run(PROGRAMS["code"]), tmp_path)
    versions = provenance.versions()
    monkeypatch.setattr(provenance, "versions", lambda: versions | {"python": "3.99.1"})
    judge_ = functools.partial(judge, folder=tmp_path, resume=True)
    with pytest.warns(UserWarning, match="different python.*code was changed is not"):
        judge_(run(PROGRAMS["code"]))
    # the outputs of the model are compared all the same
    with pytest.raises(ValueError, match="another model_outputs"):
        judge_(run(PROGRAMS["code"], 2.0))
    # and a later patch of the same version has the same bytecode
    later = ".".join([*versions["python"].split(".")[:2], "99"])
    monkeypatch.setattr(provenance, "versions", lambda: versions | {"python": later})
    with pytest.raises(ValueError, match="the code of victim.f was changed"):
        judge_(run(PROGRAMS["code"], 2.0))


@pytest.mark.parametrize(("factor", "taken"), [(1.0003, True), (1.01, False)])
def test_outputs_may_be_rounded_in_another_way(factor, taken, tmp_path):
    model = run(PROGRAMS["code"])
    judge(model, tmp_path)
    record = files.load_json(tmp_path / "run.json")
    outputs = np.array(record["run"]["model_outputs"])
    assert outputs.shape == (8, 2)
    logits = np.asarray(model(jnp.asarray(X[:8])))
    np.testing.assert_allclose(outputs[:, 1], np.ptp(logits, axis=1), rtol=1e-5)
    record["run"]["model_outputs"] = outputs * factor
    del record["sha256"]  # of the outputs before
    files.save_json(tmp_path / "run.json", record)
    if taken:
        judge(model, tmp_path, resume=True)
        return
    with pytest.raises(ValueError, match="another model_outputs"):
        judge(model, tmp_path, resume=True)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (lambda x: x[:, :4].at[:, 2].set(jnp.nan), {}),
        (lambda x: x[:, :4] / 0, {}),
        (lambda x: 0 * x[:, :4] + 7, {}),
        (lambda x: x[:, :4].astype(jnp.bfloat16), {}),
        (lambda x: x[:, :4], {"dtype": jnp.bfloat16}),
        (lambda x: x[:, :4], {"devices": jax.devices()[:4]}),
        (lambda x: x[:, :4] - x[:, :4].mean(axis=0, keepdims=True), {"batch_size": 4}),
    ],
    ids=["NaN", "inf", "constant", "half", "attacked in half", "devices", "mean"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_unusual_models_are_taken_up(model, options, tmp_path):
    first = judge(model, tmp_path, **options)
    again = judge(model, tmp_path, resume=True, **options)
    np.testing.assert_array_equal(first.correct, again.correct)


def test_a_randomised_model_is_taken_up(tmp_path):
    def model(scale, x, keys):
        noise = jax.vmap(lambda k: jax.random.normal(k, (4,)))(keys)
        return x[:, :4] + scale * noise

    judge(functools.partial(model, 0.1), tmp_path, eot=3)
    judge(functools.partial(model, 0.1), tmp_path, eot=3, resume=True)
    with pytest.raises(ValueError, match="another model"):
        judge(functools.partial(model, 0.2), tmp_path, eot=3, resume=True)


# ------------------------------------------------------------------ lost descriptions


@pytest.mark.parametrize("resume", [True, False])
def test_batches_without_a_description_are_refused(resume, tmp_path):
    fgsm = {"fgsm": functools.partial(attacks.fgsm, ball=Linf(0.3))}
    model = run(PROGRAMS["code"])
    judge(model, tmp_path, named=fgsm)
    (tmp_path / "run.json").unlink()
    shutil.rmtree(tmp_path / "00-clean")  # the batches of the attack are enough
    weaker = {"fgsm": functools.partial(attacks.fgsm, ball=Linf(0.01))}
    with pytest.raises(ValueError, match="run_dir=.* no run.json"):
        judge(model, tmp_path, named=weaker, resume=resume)
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize("content", ["[]", "{}", '{"run": {}}', '{"run": ', "null"])
def test_a_damaged_description_is_named(content, tmp_path):
    model = run(PROGRAMS["code"])
    judge(model, tmp_path)
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json"):
        judge(model, tmp_path, resume=True)


def test_other_files_in_the_folder_are_no_run(tmp_path):
    (tmp_path / "figures").mkdir()
    np.savez(tmp_path / "figures" / "000000.npz", x=X)
    (tmp_path / "notes.txt").write_text("mine")
    judge(run(PROGRAMS["code"]), tmp_path, resume=True)
    assert (tmp_path / "run.json").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_another_scale_or_type_of_images_is_another_run(tmp_path):
    images = RNG.integers(0, 100, size=X.shape, dtype=np.uint8)
    for dtype, name in ((np.uint8, "another scale"), (np.int16, "another data")):
        own = data.Dataset(images, Y, num_classes=4, scale=255.0, name="own")
        folder = tmp_path / name
        options = {"key": KEY, "run_dir": folder, "devices": jax.devices()[:1]}
        evaluate(run(PROGRAMS["code"]), own, {}, **options)
        scale = 200.0 if dtype is np.uint8 else own.scale
        changed = own._replace(images=images.astype(dtype), scale=scale)
        with pytest.raises(ValueError, match=name):
            evaluate(run(PROGRAMS["code"]), changed, {}, resume=True, **options)
