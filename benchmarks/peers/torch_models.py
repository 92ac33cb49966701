"""The benchmark networks in PyTorch, with the weights of the flax ones.

They are on the device that JAX computes on, if PyTorch can use it.
"""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

from robjax import models

ON_GPU = jax.default_backend() == "gpu" and torch.cuda.is_available()


def images_of(x: Any) -> torch.Tensor:
    """[B, H, W, C] -> [B, C, H, W]."""
    return _tensor(x).permute(0, 3, 1, 2).contiguous()


def labels_of(y: Any) -> torch.Tensor:
    """Labels [B] for PyTorch's losses."""
    return torch.from_numpy(np.array(y, np.int64)).to("cuda" if ON_GPU else "cpu")


def _tensor(array: Any) -> torch.Tensor:
    tensor = torch.from_numpy(np.array(array, np.float32))
    return tensor.cuda() if ON_GPU else tensor


def _conv_weights(layer: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    kernel = _tensor(layer["kernel"]).permute(3, 2, 0, 1).contiguous()
    return kernel, _tensor(layer["bias"]) if "bias" in layer else None


class TorchCNN(torch.nn.Module):
    """`models.CNN` or the benchmark's `UserNet`; images [B, C, H, W]."""

    def __init__(self, params: dict[str, Any], pool_after: int):
        super().__init__()
        convs = sorted(name for name in params if name.lower().startswith("conv"))
        dense = [name for name in params if name not in convs]
        self.pool_after = pool_after
        self.convs = [_conv_weights(params[name]) for name in convs]
        hidden, last = (params[name] for name in sorted(dense))
        self.dense = [
            (_tensor(layer["kernel"]).T.contiguous(), _tensor(layer["bias"]))
            for layer in (hidden, last)
        ]

    def forward(self, x):
        """Images [B, C, H, W] -> logits [B, K]."""
        for index, (kernel, bias) in enumerate(self.convs, start=1):
            x = F.relu(F.conv2d(x, kernel, bias, padding=kernel.shape[-1] // 2))
            if index % self.pool_after == 0:
                x = F.max_pool2d(x, 2)
        x = x.permute(0, 2, 3, 1).reshape(len(x), -1)  # flax flattens [H, W, C]
        x = F.relu(F.linear(x, *self.dense[0]))
        return F.linear(x, *self.dense[1])


class TorchResNet(torch.nn.Module):
    """`models.ResNet` in inference mode; images [B, C, H, W]."""

    def __init__(self, variables: dict[str, Any]):
        super().__init__()
        self.params, self.stats = jax.tree.map(
            _tensor, (dict(variables["params"]), dict(variables["batch_stats"]))
        )

    def _conv(self, x, layer, stride=1):
        kernel = layer["kernel"].permute(3, 2, 0, 1).contiguous()
        return F.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2)

    def _norm(self, x, params, stats):
        return F.batch_norm(
            x, stats["mean"], stats["var"], params["scale"], params["bias"]
        )

    def _block(self, x, params, stats, stride):
        shortcut = x
        if "shortcut_conv" in params:
            shortcut = self._conv(x, params["shortcut_conv"], stride)
            shortcut = self._norm(shortcut, params["shortcut_bn"], stats["shortcut_bn"])
        x = self._conv(x, params["conv1"], stride)
        x = F.relu(self._norm(x, params["bn1"], stats["bn1"]))
        x = self._norm(self._conv(x, params["conv2"]), params["bn2"], stats["bn2"])
        return F.relu(shortcut + x)

    def forward(self, x):
        """Images [B, C, H, W] -> logits [B, K]."""
        x = self._conv(x, self.params["conv"])
        x = F.relu(self._norm(x, self.params["bn"], self.stats["bn"]))
        for name in sorted(n for n in self.params if n.startswith("group")):
            stride = 2 if name.endswith("_block1") and name != "group1_block1" else 1
            x = self._block(x, self.params[name], self.stats[name], stride)
        x = x.mean((2, 3))
        last = self.params["logits"]
        return F.linear(x, last["kernel"].T, last["bias"])


def to_torch(model: nn.Module, variables: Any) -> torch.nn.Module | None:
    """The PyTorch twin of a benchmark network, None if there is none."""
    if isinstance(model, models.ResNet):
        return TorchResNet(variables)
    if isinstance(model, models.CNN) or type(model).__name__ == "UserNet":
        blocks = getattr(model, "blocks", ((32, 32), (64, 64)))
        return TorchCNN(variables["params"], pool_after=len(blocks[0]))
    return None
