"""The reference AutoAttack (pyautoattack) with its inner variables made visible."""

import sys
from typing import Any, NamedTuple

import numpy as np
import pytest


class Run(NamedTuple):
    """What a run of the reference did; E = steps + 1 evaluations.

    points: [E, B, *S]. losses: [E, B], of evaluation 0 too. step_sizes: [steps, B].
    correct: [E, B] bool. robust: [B] bool, never fooled. x_best, x_adv: [B, *S].
    """

    points: np.ndarray
    losses: np.ndarray
    step_sizes: np.ndarray
    correct: np.ndarray
    robust: np.ndarray
    x_best: np.ndarray
    x_adv: np.ndarray


def torch_and_apgd():
    """The torch module and the reference's APGD classes, or skips the test."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    base = pytest.importorskip(
        "pyautoattack.autopgd_base", reason="pyautoattack is not installed"
    )
    return torch, base


def run_apgd(attack: Any, model: Any, x, y, start) -> Run:
    """Runs one restart from `start`, everything in float64.

    `attack` is made with ``predict=None``; the model is put in here. Step sizes are
    read from the local variables of the reference's loop whenever it calls the model.
    """
    torch, _ = torch_and_apgd()
    points, step_sizes, logits = [], [], []

    def spy(v):
        frame: Any = sys._getframe(1)
        while frame.f_code.co_name != "attack_single_run":
            frame = frame.f_back
        step = frame.f_locals.get("step_size")
        if step is not None:
            step_sizes.append(step.reshape(-1).numpy().copy())
        points.append(v.detach().numpy().copy())
        out = model(v)
        logits.append(out.detach())
        return out

    attack.model = spy
    tensors = [torch.tensor(np.asarray(v)) for v in (x, y, start)]
    tensors[1] = tensors[1].long()
    attack.init_hyperparam(tensors[0])
    x_best, robust, _, x_adv = attack.attack_single_run(
        tensors[0], tensors[1], x_init=tensors[2]
    )
    if attack.loss == "ce":
        values = [
            torch.nn.functional.cross_entropy(z, tensors[1], reduction="none")
            for z in logits
        ]
    elif attack.loss == "dlr":
        values = [attack.dlr_loss(z, tensors[1]) for z in logits]
    else:
        values = [attack.dlr_loss_targeted(z, tensors[1]) for z in logits]
    return Run(
        np.stack(points),
        np.stack([v.numpy() for v in values]),
        np.stack(step_sizes),
        np.stack([(z.argmax(1) == tensors[1]).numpy() for z in logits]),
        robust.numpy().astype(bool),
        x_best.numpy(),
        x_adv.detach().numpy(),
    )
