"""PGD of other libraries on one network: name -> thunk that runs one attack.

Each takes the same start-to-end job: k sign steps in L∞ from a random start. Foolbox
gets the jitted JAX function; torchattacks and the plain loop get PyTorch twins.
A library that is not installed is left out, with a line that says so.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

Candidates = dict[str, Callable[[], Any]]


def candidates(
    network, x, y, *, eps: float, step_size: float, steps: int
) -> Candidates:
    """Every installed peer, checked to compute the network's logits."""
    found: Candidates = {}
    for add in (_foolbox, _torch):
        try:
            found |= add(network, x, y, eps, step_size, steps)
        except ImportError as error:
            print(
                f"left out: {error.name} is not installed (pip install robjax[bench])"
            )
    return found


def _foolbox(network, x, y, eps, step_size, steps) -> Candidates:
    from foolbox import attacks  # pyright: ignore[reportMissingImports]
    from foolbox.models.jax import JAXModel  # pyright: ignore[reportMissingImports]

    logits = jax.jit(network.logits)
    model = JAXModel(lambda v: logits(v), bounds=(0, 1), data_format="channels_last")
    attack = attacks.LinfPGD(abs_stepsize=step_size, steps=steps)
    return {"foolbox (jax)": lambda: attack(model, x, y, epsilons=eps)[1]}


def _torch(network, x, y, eps, step_size, steps) -> Candidates:
    import torch  # pyright: ignore[reportMissingImports]

    from benchmarks.peers.torch_models import images_of, labels_of, to_torch

    model = to_torch(network.model, network.variables)
    if model is None:
        return {}
    images, labels = images_of(x), labels_of(y)
    with jax.default_matmul_precision("float32"):
        ours = np.asarray(network.logits(x))
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        difference = np.abs(model(images).cpu().numpy() - ours).max()
    assert difference < 1e-3, f"the PyTorch twin differs by {difference}"

    def gradient(v):
        v = v.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(v), labels, reduction="sum")
        return torch.autograd.grad(loss, v)[0]

    def loop():
        v = images + eps * (2 * torch.rand_like(images) - 1)
        v = v.clamp(0, 1)
        for _ in range(steps):
            v = v + step_size * gradient(v).sign()
            v = torch.minimum(torch.maximum(v, images - eps), images + eps).clamp(0, 1)
        return v

    found: Candidates = {
        # a copy to the host waits for a GPU
        "torch input gradient": lambda: gradient(images).cpu(),
        "torch loop": lambda: loop().cpu(),
    }
    try:
        import torchattacks  # pyright: ignore[reportMissingImports]

        attack = torchattacks.PGD(model, eps=eps, alpha=step_size, steps=steps)
        found["torchattacks"] = lambda: attack(images, labels).cpu()
    except ImportError as error:
        print(f"left out: torchattacks needs {error.name}")
    return found
