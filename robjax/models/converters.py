"""Weights that PyTorch trained, for the networks of robjax.

`from_state_dict` reads a state dict of one of these:

    model             names as in
    ResNet            RobustBench's ResNet with basic blocks
    PreActResNet      RobustBench's PreActResNet with its blocks of two convolutions
    WideResNet        RobustBench's WideResNet, which is that of TRADES
    VGG               CIFAR's usual VGG: layers "features.0", …, one "classifier"

PyTorch keeps kernels as [O, I, h, w] and [O, I], flax as [h, w, I, O] and [I, O]. The
logits are the same up to rounding.
"""

import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from robjax.models.preact_resnet import PreActResNet
from robjax.models.resnet import ResNet
from robjax.models.vgg import VGG
from robjax.models.wide_resnet import WideResNet

Convertible = ResNet | PreActResNet | WideResNet | VGG
"""The networks that can be read."""

_BATCH_NORM_EPS = 1e-5
_PARTS = {"weight": "scale", "bias": "bias", "running_mean": "mean"}
_PARTS["running_var"] = "var"
# TRADES' networks hold a group of blocks that they never call
_UNUSED = ("num_batches_tracked", "sub_block1.")
_NORMALISATION = {"mu": "mean", "sigma": "std"}


def from_state_dict(
    model: Convertible, weights: Mapping[str, Any] | str | os.PathLike[str]
) -> dict[str, Any]:
    """Makes the variables of a robjax network from a state dict of PyTorch.

        model = models.WideResNet(10, depth=28, width=10)
        variables = from_state_dict(model, "trades.safetensors")
        logits_fn = jax.tree_util.Partial(model.apply, variables)

    A prefix "module." or "model." that all names have is dropped. Buffers `mu` and
    `sigma` must be the `mean` and `std` of the model. The batch norms of a VGG are
    merged into its convolutions, since robjax's VGG has none.

    >>> from robjax import models
    >>> model = models.VGG(2, blocks=((3,),))
    >>> weights = {
    ...     "features.0.weight": np.ones((3, 1, 3, 3)),
    ...     "features.0.bias": np.zeros(3),
    ...     "classifier.weight": np.ones((2, 3)),
    ...     "classifier.bias": np.zeros(2),
    ... }
    >>> variables = from_state_dict(model, weights)
    >>> variables["params"]["conv1_1"]["kernel"].shape
    (3, 3, 1, 3)

    Args:
      model: a network of the same architecture.
      weights: names -> arrays (of NumPy, JAX or PyTorch), or the path of a file
        ``….safetensors``, for which the package safetensors has to be installed.

    Returns:
      {"params": …} and, with batch norm, "batch_stats"; float32 NumPy arrays, as
      ``model.init`` would have them.

    Raises:
      ValueError: `model` is none of these networks; a weight is missing, has another
        shape or is not one of the model's; `mu` or `sigma` differ; the file is no
        .safetensors file. A pickle is never opened.
    """
    if not isinstance(model, Convertible):
        kinds = ", ".join(kind.__name__ for kind in Convertible.__args__)
        raise ValueError(f"model must be one of {kinds}, got {type(model).__name__}")
    if isinstance(weights, str | os.PathLike):
        weights = _read(pathlib.Path(weights))
    arrays = _cleaned(weights)
    _check_normalisation(model, arrays)
    if isinstance(model, VGG):
        arrays = _without_batch_norm(arrays)
    names = dict(_layers(model))
    shapes = _shapes(model, arrays, names)
    flat, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    taken = [_take(arrays, names, path, leaf.shape) for path, leaf in flat]
    if arrays:
        raise ValueError(
            f"weights must be those of the model, got besides {_some(arrays)}: has the "
            "model the depth and the options of the network they are from?"
        )
    return jax.tree_util.tree_unflatten(treedef, taken)


def _read(path: pathlib.Path) -> Mapping[str, Any]:
    """The arrays of a .safetensors file."""
    if path.suffix != ".safetensors":
        raise ValueError(
            f"weights must be a .safetensors file, got {path.name}. A file of "
            "torch.save is a pickle, which can run any code while it is read. Convert "
            "it once, with PyTorch:\n"
            "    import torch, safetensors.torch\n"
            f"    weights = torch.load({path.name!r}, 'cpu', weights_only=True)\n"
            f"    safetensors.torch.save_file(weights, '{path.stem}.safetensors')\n"
            "where weights may have to be weights['state_dict']"
        )
    import safetensors.numpy  # pyright: ignore[reportMissingImports]

    if not path.is_file():
        raise ValueError(f"weights must be a file, got {path}")
    try:
        return safetensors.numpy.load_file(path)
    except Exception as error:  # its own class, and those of a type NumPy has not
        raise ValueError(f"weights must be a .safetensors file: {error}") from error


def _cleaned(weights: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Names without a common prefix -> arrays, without those that nothing uses."""
    if not isinstance(weights, Mapping) or not all(isinstance(k, str) for k in weights):
        raise ValueError(
            "weights must be a mapping from names to arrays or the path of a "
            f".safetensors file, got {type(weights).__name__}"
        )
    arrays = {name: _array(name, value) for name, value in weights.items()}
    for prefix in ("module.", "model."):
        if arrays and all(name.startswith(prefix) for name in arrays):
            arrays = {name[len(prefix) :]: a for name, a in arrays.items()}
    return {
        name: array
        for name, array in arrays.items()
        if not (name.endswith(_UNUSED[0]) or name.startswith(_UNUSED[1]))
    }


def _array(name: str, value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a tensor of PyTorch
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.dtype == object:
        raise ValueError(
            f"weights must hold arrays, got {type(value).__name__} at {name!r}: give "
            "the state dict alone"
        )
    return array


def _check_normalisation(model: Convertible, arrays: dict[str, np.ndarray]) -> None:
    """Takes the buffers for input normalisation out of the arrays."""
    for name, field in _NORMALISATION.items():
        values = arrays.pop(name, None)
        if values is None:
            continue
        wanted = tuple(float(f"{value:.6g}") for value in values.ravel())
        have = getattr(model, field)
        if len(have) not in (1, len(wanted)) or not np.allclose(have, wanted):
            raise ValueError(
                f"model must have the {field} that weights hold as {name!r}, got "
                f"{have}: make it with {field}={wanted}"
            )


def _layers(model: Convertible) -> Iterator[tuple[str, str]]:
    """Paths of layers in the parameters of flax, and their names in PyTorch."""
    if isinstance(model, VGG):
        yield from _vgg_layers(model)
        return
    wide = isinstance(model, WideResNet)
    yield "conv", "conv1"
    yield "bn", "bn" if isinstance(model, PreActResNet) else "bn1"
    yield "logits", "fc" if wide else "linear"
    shortcut = {"shortcut_conv": "convShortcut"} if wide else {}
    shortcut = shortcut or {"shortcut_conv": "shortcut.0", "shortcut_bn": "shortcut.1"}
    layers = {name: name for name in ("conv1", "bn1", "conv2", "bn2")} | shortcut
    for group in range(1, 10):
        for block in range(1, 100):
            theirs = f"block{group}.layer" if wide else f"layer{group}"
            for layer, name in layers.items():
                ours = f"group{group}_block{block}/{layer}"
                yield ours, f"{theirs}.{block - 1}.{name}"


def _vgg_layers(model: VGG) -> Iterator[tuple[str, str]]:
    """Convolutions as a VGG without batch norm counts them; a ReLU follows each."""
    index = 0
    for block, widths in enumerate(model.blocks, start=1):
        for convolution in range(1, len(widths) + 1):
            yield f"conv{block}_{convolution}", f"features.{index}"
            index += 2
        index += 1  # pooling
    yield "logits", "classifier"


def _without_batch_norm(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A VGG's weights with batch norms merged into the convolutions before them.

    BN(Wx + b) = s (Wx + b − m) + β with s = γ / √(v + ε). Layers are numbered anew.
    """
    norms = [n.removesuffix(".running_mean") for n in arrays if "running_mean" in n]
    if not norms:
        return arrays
    merged = dict(arrays)
    numbers = sorted(int(name.split(".")[1]) for name in norms)
    for number in numbers:
        names = {part: f"features.{number}.{part}" for part in _PARTS}
        layer = f"features.{number - 1}"
        needed = [*names.values(), f"{layer}.weight", f"{layer}.bias"]
        missing = [name for name in needed if name not in merged]
        if missing:
            raise ValueError(f"weights must hold {_some(missing)}, which are missing")
        gamma, beta, mean, var = (merged.pop(names[part]) for part in _PARTS)
        scale = gamma / np.sqrt(var + _BATCH_NORM_EPS)
        merged[f"{layer}.weight"] = (
            merged[f"{layer}.weight"] * scale[:, None, None, None]
        )
        merged[f"{layer}.bias"] = (merged[f"{layer}.bias"] - mean) * scale + beta

    def renamed(name: str) -> str:
        kind, number, *rest = name.split(".")
        if kind != "features":
            return name
        before = sum(norm < int(number) for norm in numbers)
        return ".".join((kind, str(int(number) - before), *rest))

    return {renamed(name): array for name, array in merged.items()}


def _shapes(
    model: Convertible, arrays: Mapping[str, np.ndarray], names: Mapping[str, str]
) -> Any:
    """What ``model.init`` would return, as shapes."""
    first = names["conv1_1" if isinstance(model, VGG) else "conv"] + ".weight"
    kernel = arrays.get(first)
    if kernel is None:
        raise ValueError(
            f"weights must hold {first!r} as in RobustBench, got {_some(arrays)}"
        )
    channels = kernel.shape[1] if kernel.ndim == 4 else 3
    images = jax.ShapeDtypeStruct((1, 32, 32, channels), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def _take(
    arrays: dict[str, np.ndarray],
    names: Mapping[str, str],
    path: tuple[Any, ...],
    shape: tuple[int, ...],
) -> np.ndarray:
    """Takes the array for one leaf of the variables out of the arrays."""
    _, *layer, part = (entry.key for entry in path)
    theirs = {ours: name for name, ours in _PARTS.items()} | {"kernel": "weight"}
    name = f"{names['/'.join(layer)]}.{theirs[part]}"
    if name not in arrays:
        raise ValueError(
            f"weights must hold {name!r} for {'/'.join(layer)}/{part}, which is "
            f"missing; left are {_some(arrays)}"
        )
    array = arrays.pop(name)
    given = array.shape
    if part == "kernel" and array.ndim in (2, 4):
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    if array.shape != shape:
        raise ValueError(
            f"weights must hold {name!r} of the shape that makes {list(shape)} for "
            f"{'/'.join(layer)}/{part}, got {list(given)}"
        )
    return np.ascontiguousarray(array, np.float32)


def _some(names: Any) -> str:
    """The first names, and how many there are."""
    names = list(names)
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return (", ".join(map(repr, names[:4])) or "nothing") + more
