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
    values = [loss_values(attack, z, tensors[1]) for z in logits]
    return Run(
        np.stack(points),
        np.stack([v.numpy() for v in values]),
        np.stack(step_sizes),
        np.stack([(z.argmax(1) == tensors[1]).numpy() for z in logits]),
        robust.numpy().astype(bool),
        x_best.numpy(),
        x_adv.detach().numpy(),
    )


def loss_values(attack: Any, logits: Any, labels: Any) -> Any:
    """The loss [B] that an APGD attack climbs."""
    torch, _ = torch_and_apgd()
    if attack.loss == "ce":
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    targeted = attack.loss != "dlr"
    return (attack.dlr_loss_targeted if targeted else attack.dlr_loss)(logits, labels)


def apgd_gradients(attack: Any, model: Any, run: Run, y) -> np.ndarray:
    """Gradients [E, B, *S] of the loss at the points of a run."""
    torch, _ = torch_and_apgd()
    labels, gradients = torch.tensor(np.asarray(y)).long(), []
    for point in run.points:
        leaf = torch.tensor(point).requires_grad_()
        total = loss_values(attack, model(leaf), labels).sum()
        gradients.append(torch.autograd.grad(total, leaf)[0].numpy())
    return np.stack(gradients)


def run_fab(attack: Any, rank: int, x, y) -> tuple[np.ndarray, np.ndarray]:
    """Iterates of one FAB-T run, x first, and the slopes there, [steps, B, *S] both.

    It aims at the class of the `rank`th highest logit; all x must be classified as y.
    Slopes below 10⁻⁷, also as a share of an image's largest, are made 0: robjax drops
    them below 10⁻⁸ of the largest, the reference in L2 below 10⁻⁸, in L∞ never.
    """
    torch, _ = torch_and_apgd()
    path, slopes = [], []
    original = attack.get_diff_logits_grads_batch_targeted

    def recorded(images, labels, targets):
        difference, slope = original(images, labels, targets)
        size = slope.abs()
        largest = size.amax(dim=tuple(range(1, size.ndim)), keepdim=True)
        slope[size < 1e-7 * largest.clamp(min=1)] = 0
        path.append(images.numpy().copy())
        slopes.append(slope[:, 0].numpy().copy())
        return difference, slope

    attack.target_class = rank
    attack.get_diff_logits_grads_batch_targeted = recorded
    tensors = torch.tensor(np.asarray(x)), torch.tensor(np.asarray(y))
    attack.attack_single_run(*tensors, is_targeted=True)
    return np.stack(path), np.stack(slopes)
