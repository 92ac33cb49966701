"""How deep a reader has to go: from `evaluate` to the loop of an attack."""

import functools
import pathlib
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import robjax
from robjax import attacks
from robjax.balls import Linf
from robjax.evaluation import evaluate

HOME = pathlib.Path(robjax.__file__).parent
FRAMES, FILES = 8, 5


@pytest.mark.parametrize(
    ("attack", "folder"),
    [
        (functools.partial(attacks.pgd, steps=2), "attacks"),
        (functools.partial(attacks.apgd, steps=2), "apgd"),
        (functools.partial(attacks.fab, steps=2), "minimal_norm"),
        (functools.partial(attacks.square, queries=2), "square"),
    ],
)
def test_few_frames_and_files_lead_to_the_loop(attack, folder, monkeypatch, tmp_path):
    stacks = []

    def watch(loop):
        def watched(*args, **options):
            stack = [pathlib.Path(f.filename) for f in traceback.extract_stack()]
            own = [path for path in stack if path.is_relative_to(HOME)]
            if own and folder in own[-1].parts:
                stacks.append(own)
            return loop(*args, **options)

        return watched

    monkeypatch.setattr(lax, "while_loop", watch(lax.while_loop))
    monkeypatch.setattr(lax, "fori_loop", watch(lax.fori_loop))
    x = np.full((3, 2, 2, 1), 0.5, np.float32)
    evaluate(
        lambda x: jnp.stack([x.sum((1, 2, 3)), x.min((1, 2, 3))], axis=1),
        (x, np.zeros(3, int)),
        {"attack": functools.partial(attack, ball=Linf(0.1))},
        key=jax.random.key(0),
        cascade=True,
        run_dir=tmp_path,
    )
    first = min(stacks, key=len)
    assert len(first) <= FRAMES, first
    assert len(set(first)) <= FILES, first
