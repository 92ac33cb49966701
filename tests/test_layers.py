"""The layout of the design: who may import whom, read from the source."""

import ast
import pathlib
import tomllib
from collections.abc import Iterator
from typing import NamedTuple

import pytest

import robjax

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAYERS = (
    {
        "advice",
        "arrays",
        "balls",
        "boxes",
        "checks",
        "closures",
        "compose",
        "losses",
        "lowering",
        "model",
        "numerics",
        "runs",
        "samples",
        "traced",
    },
    {"models", "data", "theory", "corruptions"},
    {"evaluation"},
    {"attacks"},
    {"certification", "masking", "metrics"},
    {"training"},
    {"reporting"},
    {"diagnose"},
)
OWNERS = {
    "flax": {"models", "training"},
    "tensorflow_datasets": {"data"},
    "tensorflow": {"data"},
    "matplotlib": {"reporting", "diagnose", "experiments"},
    "grain": {"data"},
    "torch": {"models"},
    "safetensors": {"models"},
    "experiments": {"experiments"},
    "benchmarks": {"benchmarks"},
}
LAZY = {"grain", "tensorflow", "tensorflow_datasets", "torch", "safetensors"}
LEVEL = {module: level for level, layer in enumerate(LAYERS) for module in layer}
FILES = sorted(ROOT.glob("robjax/**/*.py")) + sorted(ROOT.glob("experiments/**/*.py"))


class Import(NamedTuple):
    module: str
    inside_function: bool


def imports(tree: ast.Module, package: str) -> Iterator[Import]:
    """Absolute dotted names that a module of `package` imports."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    inside = {id(node) for f in functions for node in ast.walk(f)}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: -(node.level - 1) or None]
            base = ".".join((above if node.level else []) + [node.module or ""])
            base = base.rstrip(".")
            names = [f"{base}.{alias.name}" for alias in node.names]
        yield from (Import(name, id(node) in inside) for name in names)


def allowed(where: str, name: str, inside_function: bool) -> bool:
    """Whether a module of the subpackage `where` may import `name`."""
    top, *rest = name.split(".")
    if top in LAZY and not inside_function:
        return False
    if top in OWNERS:
        return where in OWNERS[top]
    if top != "robjax" or where not in LEVEL:
        return True
    target = rest[0] if rest else ""
    if target not in LEVEL:
        return target == "__version__"
    # Files of the lowest layer may build on each other.
    lower = LEVEL[target] < LEVEL[where] or LEVEL[target] == LEVEL[where] == 0
    return target == where or lower


def violations(source: str, file: str) -> list[str]:
    """What a file of this source, at this path below the root, must not import."""
    package = pathlib.PurePosixPath(file).parent.parts
    inner = package[1:] or (pathlib.PurePosixPath(file).stem,)
    where = inner[0] if package[0] == "robjax" else package[0]
    found = imports(ast.parse(source), ".".join(package))
    return [i.module for i in found if not allowed(where, *i)]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_follow_the_layout(path: pathlib.Path):
    assert violations(path.read_text(), path.relative_to(ROOT).as_posix()) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_files_stay_short(path: pathlib.Path):
    assert len(path.read_text().splitlines()) < 500


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert robjax.__version__ == project["version"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {project['version']}\n" in citation


def test_every_module_has_a_layer():
    found = {p.stem for p in (ROOT / "robjax").glob("*.py")} - {"__init__"}
    found |= {p.parent.name for p in (ROOT / "robjax").glob("*/__init__.py")}
    assert found <= LEVEL.keys()


@pytest.mark.parametrize(
    ("file", "source", "fine"),
    [
        ("robjax/attacks/pgd.py", "from robjax import balls", True),
        ("robjax/attacks/pgd.py", "from robjax.attacks.steps import a", True),
        ("robjax/attacks/pgd.py", "from . import steps", True),
        ("robjax/attacks/pgd.py", "from .. import balls", True),
        ("robjax/losses.py", "from robjax import numerics", True),
        ("robjax/balls.py", "from robjax import attacks", False),
        ("robjax/balls.py", "import robjax.attacks.pgd", False),
        ("robjax/attacks/pgd.py", "from .. import metrics", False),
        ("robjax/attacks/pgd.py", "from ..metrics import kl", False),
        ("robjax/training/fit.py", "from robjax import reporting", False),
        ("robjax/evaluation/loop.py", "from robjax import attacks", False),
        ("robjax/theory/gaussian.py", "from robjax import data", False),
        ("robjax/metrics/kl.py", "import flax.linen as nn", False),
        ("robjax/models/cnn.py", "import flax.linen as nn", True),
        ("robjax/data/tfds.py", "import tensorflow_datasets", False),
        ("robjax/data/tfds.py", "def f():\n  import tensorflow_datasets", True),
        ("robjax/metrics/kl.py", "def f():\n  import tensorflow_datasets", False),
        ("robjax/data/tfds.py", "import tensorflow as tf", False),
        ("robjax/data/tfds.py", "def f():\n  import tensorflow as tf", True),
        ("robjax/models/bridges.py", "def f():\n  import torch", True),
        ("robjax/models/bridges.py", "import torch", False),
        ("robjax/evaluation/loop.py", "import matplotlib.pyplot as plt", False),
        ("robjax/reporting/figures.py", "import matplotlib.pyplot as plt", True),
        ("robjax/reporting/figures.py", "def f():\n  import experiments.a", False),
        ("experiments/a.py", "from robjax import reporting", True),
        ("experiments/a.py", "from experiments import b", True),
        ("experiments/a.py", "from benchmarks import b", False),
        ("robjax/__init__.py", "from robjax import attacks", True),
        ("robjax/__init__.py", "from robjax import runs", True),
    ],
)
def test_the_checker_itself(file, source, fine):
    assert (violations(source, file) == []) == fine
