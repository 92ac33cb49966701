"""PyTorch modules as they are, inside compiled attacks.

`from_torch` makes a function from images to logits of a ``torch.nn.Module``. JAX calls
PyTorch back for logits and for derivatives (`robjax.models.callbacks`), so jit, grad,
jvp, vmap and several devices work. A gradient costs two forward passes and one backward
pass.

The weights stay in PyTorch, on any device, and are read anew at every call: they are
not traced, and may change without compiling anew. Attacks at another precision
(``dtype=``) cannot round them.

Tested with torch 2.13.0 and jax 0.10.2, the callbacks also with jax 0.12.0. It stands
here in place of wrap-torch2jax 0.9.0, whose logits and gradients are equal: that knows
no jvp, which the KL metrics need, warns at every new batch size, goes through vmap one
by one, and compiles C++ when it is first used.
"""

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from robjax.checks import check_images
from robjax.models import callbacks

Layout = Literal["NHWC", "NCHW"]
"""Order of the axes of a batch of images: batch, height, width, channels."""


def from_torch(module: Any, example: Any, *, layout: Layout = "NHWC") -> "TorchModel":
    """Makes a PyTorch module a function from images to logits that JAX differentiates.

    >>> def attack(net, images, labels, key):
    ...     logits_fn = from_torch(net.eval(), images[:1])
    ...     return attacks.pgd(logits_fn, images, labels, key=key, ball=Linf(8 / 255))

    Args:
      module: a ``torch.nn.Module`` in eval mode, from images [B, C, H, W] (or rows
        [B, F]) to logits [B, K]. Its weights are of one floating-point type, which the
        images must have, too. It computes every sample on its own.
      example: [B, *S] images like those to come, B ≥ 1. The module is run on them once.
      layout: of the images in robjax. "NHWC" [B, H, W, C], as in all of robjax's own
        data: the module gets them as [B, C, H, W]. "NCHW": the module gets them as they
        are. Arrays that have not four axes are always given as they are.

    Raises:
      ValueError: `module` is no module of PyTorch, in train mode, on several devices,
        or has weights of several or of unknown types; `example` is malformed or of
        another type than the weights; `layout` is none of the two; the module cannot be
        run on `example`, or does not return one tensor [B, K] with K ≥ 2.
      ImportError: PyTorch is not installed.
    """
    import torch  # pyright: ignore[reportMissingImports]

    if layout not in get_args(Layout):
        raise ValueError(f"layout must be one of {get_args(Layout)}, got {layout!r}")
    if not isinstance(module, torch.nn.Module):
        kind = type(module).__name__
        raise ValueError(f"module must be a torch.nn.Module, got {kind}")
    _check_eval_mode(module)
    images = np.asarray(check_images(example, name="example"))
    model = TorchModel(module, layout, _dtype(module, images.dtype), classes=0)
    model.check(images, name="example")
    return dataclasses.replace(model, classes=_count_classes(model, images))


@dataclasses.dataclass(frozen=True)
class TorchModel:
    """A PyTorch module as a function [B, *S] -> [B, K]; `from_torch` makes it.

    Two are equal if they run the same module object in the same way.

    Attributes:
      module: the ``torch.nn.Module``.
      layout: of the images that it is called with.
      dtype: of images and logits.
      classes: K.
    """

    module: Any
    layout: Layout
    dtype: np.dtype
    classes: int

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images [B, *S] -> logits [B, K].

        Raises:
          ValueError: the images have another dtype than the weights, or the module is
            in train mode.
        """
        self.check(images, name="images")
        _check_eval_mode(self.module)
        return callbacks.call(self, jnp.asarray(images))

    def check(self, images: Any, *, name: str) -> None:
        """Raises a ValueError if images are not of the type of the weights."""
        if images.dtype != self.dtype:
            raise ValueError(
                f"{name} must be {self.dtype} as the weights of the PyTorch module are,"
                f" got {images.dtype}: convert one of them (module.float() makes the "
                "weights float32; float64 needs jax_enable_x64)"
            )

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Images [B, *S] -> logits [B, K], both of NumPy, as the methods below."""
        import torch  # pyright: ignore[reportMissingImports]

        with torch.no_grad():
            return _array(self.run(self._tensor(x)))

    def pull(self, x: np.ndarray, cotangent: np.ndarray) -> np.ndarray:
        """Images [B, *S], weights [B, K] -> gradient [B, *S] of the weighted logits."""
        images, logits = self._recorded(x)
        return _array(_gradient(logits, images, self._tensor(cotangent)))

    def push(self, x: np.ndarray, tangent: np.ndarray) -> np.ndarray:
        """Images [B, *S], their change [B, *S] -> the change of the logits [B, K].

        J dx is the gradient by v of ⟨Jᵀv, dx⟩. PyTorch knows that for more layers than
        it knows forward mode for.
        """
        import torch  # pyright: ignore[reportMissingImports]
        from torch.nn import attention  # pyright: ignore[reportMissingImports]

        # the fused kernels of attention have no second derivative
        with attention.sdpa_kernel(attention.SDPBackend.MATH):
            images, logits = self._recorded(x)
            v = torch.zeros_like(logits, requires_grad=True)
            pulled = _gradient(logits, images, v, create_graph=True)
            return _array(_gradient(pulled, v, self._tensor(tangent)))

    def run(self, images: Any) -> Any:
        """Tensor of images [B, *S] -> what the module returns."""
        _check_eval_mode(self.module)
        if images.ndim == 4 and self.layout == "NHWC":
            images = images.permute(0, 3, 1, 2).contiguous()
        return self.module(images)

    def _recorded(self, x: np.ndarray) -> tuple[Any, Any]:
        """Images and their logits, as tensors that know where they come from."""
        import torch  # pyright: ignore[reportMissingImports]

        with torch.enable_grad():
            images = self._tensor(x).requires_grad_()
            return images, self.run(images)

    def _tensor(self, x: np.ndarray) -> Any:
        """A copy on the device of the module."""
        import torch  # pyright: ignore[reportMissingImports]

        return torch.tensor(x, device=_devices(self.module)[0])


def _array(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _gradient(outputs: Any, inputs: Any, weights: Any, **options: Any) -> Any:
    """The gradient of ⟨outputs, weights⟩; 0 if nothing depends on the inputs."""
    import torch  # pyright: ignore[reportMissingImports]

    if not outputs.requires_grad:
        return torch.zeros_like(inputs)
    found = torch.autograd.grad(
        outputs, inputs, weights, materialize_grads=True, **options
    )
    return found[0]


def _check_eval_mode(module: Any) -> None:
    training = [name for name, part in module.named_modules() if part.training]
    if training:
        where = training[0] or type(module).__name__
        raise ValueError(
            "module must be in eval mode, where every sample is computed on its own: "
            f"call module.eval() first (train mode at {where})"
        )


def _devices(module: Any) -> list[Any]:
    """The devices of parameters and buffers; the CPU if there are none."""
    tensors = [*module.parameters(), *module.buffers()]
    return list({tensor.device for tensor in tensors}) or ["cpu"]


def _dtype(module: Any, default: np.dtype) -> np.dtype:
    """The type of the weights; `default` if there are none."""
    devices = sorted(map(str, _devices(module)))
    if len(devices) > 1 or devices == ["meta"]:
        raise ValueError(
            f"module must be on one device, got {', '.join(devices)}: give "
            "module.to('cpu') or another device"
        )
    weights = [w.dtype for w in module.parameters() if w.dtype.is_floating_point]
    names = {str(dtype).removeprefix("torch.") for dtype in weights}
    if not names:
        return default
    if len(names) > 1 or not names <= {"float16", "float32", "float64"}:
        raise ValueError(
            "module must have weights of float32, float64 or float16, all of one type, "
            f"got {', '.join(sorted(names))}: give module.float()"
        )
    return np.dtype(names.pop())


def _count_classes(model: TorchModel, images: np.ndarray) -> int:
    """Runs the module once and returns the number of its logits."""
    import torch  # pyright: ignore[reportMissingImports]

    try:
        with torch.no_grad():
            logits = model.run(model._tensor(images))
    except Exception as error:
        raise ValueError(
            f"module cannot be run on example {list(images.shape)} in the layout "
            f"{model.layout}: {error}"
        ) from error
    wanted = f"one tensor of logits [{len(images)}, K], K >= 2, of {model.dtype}"
    if not isinstance(logits, torch.Tensor):
        raise ValueError(
            f"module must return {wanted}, got {type(logits).__name__}: wrap it in a "
            "module whose forward returns the logits alone"
        )
    shape = tuple(logits.shape)
    kind = str(logits.dtype).removeprefix("torch.")
    fits = len(shape) == 2 and shape[0] == len(images) and shape[1] >= 2
    if not fits or kind != model.dtype.name:
        raise ValueError(f"module must return {wanted}, got {kind} of shape {shape}")
    return shape[1]
