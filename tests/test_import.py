"""`import robjax` makes everything reachable and loads nothing before it is used."""

import subprocess
import sys

import robjax

HEAVY = {
    "flax",
    "matplotlib",
    "orbax",
    "tensorflow_datasets",
    "sklearn",
    "tensorboardX",
}


def loaded_by(code: str) -> set[str]:
    """Top-level packages in a fresh interpreter that has run `code`."""
    script = (
        f"{code}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in done.stdout.split()}


def test_every_part_is_reachable_without_further_imports():
    script = "import robjax\nfor name in robjax.__all__: getattr(robjax, name)"
    assert loaded_by(script) >= {"robjax", "flax", "matplotlib"}
    assert set(robjax.__all__) <= set(dir(robjax))


def test_importing_robjax_loads_no_other_package():
    assert not loaded_by("import robjax") & (HEAVY | {"jax", "numpy", "optax"})


def test_attacks_metrics_and_evaluation_load_no_framework():
    used = "robjax.attacks, robjax.metrics, robjax.evaluation, robjax.masking"
    assert not loaded_by(f"import robjax\n{used}") & HEAVY


def test_a_wrong_name_is_an_attribute_error():
    try:
        robjax.attack  # noqa: B018
    except AttributeError as error:
        assert "module 'robjax' has no attribute 'attack'" in str(error)
    else:
        raise AssertionError("robjax.attack was found")
