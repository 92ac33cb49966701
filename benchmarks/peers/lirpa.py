"""auto_LiRPA, which certifies PyTorch modules: bounds of the same networks.

Version 0.3 imports names that NumPy 2 and PyTorch 2 have moved; they are put back
before it is imported. Newer versions need none of this.
"""

import importlib
import sys
import types
from collections.abc import Callable

import numpy as np
import torch

NAMES = {
    "ibp": "IBP",
    "crown_ibp": "CROWN-IBP",
    "crown": "CROWN",
    "alpha_crown": "CROWN-Optimized",
}


def _imported():
    module = types.ModuleType("numpy.lib.arraysetops")
    module.isin = np.isin  # pyright: ignore
    sys.modules.setdefault(module.__name__, module)
    helper = importlib.import_module("torch.onnx.symbolic_helper")
    if not hasattr(helper, "_set_opset_version"):
        helper._set_opset_version = lambda version: None  # pyright: ignore
    node = torch._C.Node
    if not hasattr(node, "__getitem__"):
        node.__getitem__ = lambda self, key: getattr(self, self.kindOf(key))(key)
    import auto_LiRPA

    return auto_LiRPA


def margins(
    module: torch.nn.Module, x: np.ndarray, y: np.ndarray, eps: float, steps: int
) -> dict[str, Callable[[], np.ndarray]]:
    """By method a function that bounds z_y − z_i over an L∞ ball ∩ [0, 1], [B, K − 1].

    Args:
      module: images [B, *S] -> logits [B, K].
      x: [B, *S].
      y: [B] labels.
      eps: ε.
      steps: of the optimiser of CROWN-Optimized.
    """
    lirpa = _imported()
    images = torch.tensor(x)
    options = {"optimize_bound_args": {"ob_iteration": steps, "iteration": steps}}
    low, high = torch.clamp(images - eps, 0, 1), torch.clamp(images + eps, 0, 1)
    ball = lirpa.PerturbationLpNorm(norm=np.inf, eps=eps, x_L=low, x_U=high)
    ones = torch.eye(module(images).shape[1])
    rows = [[ones[c] - o for k, o in enumerate(ones) if k != c] for c in y.tolist()]
    spec = torch.stack([torch.stack(row) for row in rows])
    bounded = lirpa.BoundedModule(module, images, bound_opts=options)

    def run(name: str) -> np.ndarray:
        argument = lirpa.BoundedTensor(images, ball)
        found, _ = bounded.compute_bounds(
            x=(argument,), C=spec, method=name, bound_upper=False
        )
        return found.detach().numpy()

    return {ours: lambda n=theirs: run(n) for ours, theirs in NAMES.items()}
