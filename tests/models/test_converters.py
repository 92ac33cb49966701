"""State dicts of PyTorch: names and shapes without PyTorch, logits against its own."""

import importlib.util
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robjax import models
from robjax.models.converters import from_state_dict

RNG = np.random.default_rng(0)

SMALL = {
    "ResNet": models.ResNet(3, blocks_per_group=(1, 2), channels=(2, 4)),
    "PreActResNet": models.PreActResNet(3, blocks_per_group=1, channels=(2, 4)),
    "WideResNet": models.WideResNet(3, depth=10, width=2),
    "VGG": models.VGG(3, blocks=((2, 2), (4,))),
}


def norm(name, channels):
    parts = ("weight", "bias", "running_mean", "running_var")
    counter = {f"{name}.num_batches_tracked": ()}
    return {f"{name}.{part}": (channels,) for part in parts} | counter


def conv(name, inputs, outputs, size=3):
    return {f"{name}.weight": (outputs, inputs, size, size)}


def dense(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def block(name, inputs, outputs, *, before, shortcut=()):
    """A block of two convolutions; `before`: batch norm comes before the first."""
    first = norm(f"{name}.bn1", inputs if before else outputs)
    layers = conv(f"{name}.conv1", inputs, outputs) | first
    layers |= conv(f"{name}.conv2", outputs, outputs) | norm(f"{name}.bn2", outputs)
    for part in shortcut:
        if part == "shortcut.1":
            layers |= norm(f"{name}.{part}", outputs)
        else:
            layers |= conv(f"{name}.{part}", inputs, outputs, 1)
    return layers


def wide(name, inputs, outputs):
    return block(name, inputs, outputs, before=True, shortcut=["convShortcut"])


# Names and shapes of the weights, written down from RobustBench's classes.
NAMES = {
    "ResNet": conv("conv1", 3, 2)
    | norm("bn1", 2)
    | block("layer1.0", 2, 2, before=False)
    | block("layer2.0", 2, 4, before=False, shortcut=["shortcut.0", "shortcut.1"])
    | block("layer2.1", 4, 4, before=False)
    | dense("linear", 4, 3),
    "PreActResNet": conv("conv1", 3, 2)
    | block("layer1.0", 2, 2, before=True)
    | block("layer2.0", 2, 4, before=True, shortcut=["shortcut.0"])
    | norm("bn", 4)
    | dense("linear", 4, 3),
    "WideResNet": conv("conv1", 3, 16)
    | wide("block1.layer.0", 16, 32)
    | wide("sub_block1.layer.0", 16, 32)  # in TRADES' files, and never used
    | wide("block2.layer.0", 32, 64)
    | wide("block3.layer.0", 64, 128)
    | norm("bn1", 128)
    | dense("fc", 128, 3),
    "VGG": {
        f"features.{n}.{part}": shape if part == "weight" else shape[:1]
        for n, shape in {0: (2, 3, 3, 3), 2: (2, 2, 3, 3), 5: (4, 2, 3, 3)}.items()
        for part in ("weight", "bias")
    }
    | dense("classifier", 4, 3),
}


def draw(names):
    return {
        name: RNG.uniform(0.5, 1.5, shape).astype(np.float32)
        for name, shape in names.items()
    }


def size(tree):
    return sum(np.size(leaf) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_finds_its_place(name):
    weights = draw(NAMES[name])
    model = SMALL[name]
    variables = from_state_dict(model, weights)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    kinds = jax.tree.map(lambda leaf: (leaf.shape, np.dtype(leaf.dtype)), shapes)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), variables) == kinds
    used = {
        key: value
        for key, value in weights.items()
        if not key.startswith("sub_block1") and "num_batches" not in key
    }
    assert size(variables) == size(used)
    prefixed = {f"module.{key}": value for key, value in weights.items()}
    jax.tree.map(
        np.testing.assert_array_equal, from_state_dict(model, prefixed), variables
    )


def test_kernels_and_statistics_are_those_of_flax():
    weights = draw(NAMES["ResNet"])
    variables = from_state_dict(SMALL["ResNet"], weights)
    params, stats = variables["params"], variables["batch_stats"]
    kernel = params["group2_block2"]["conv1"]["kernel"]
    assert kernel[0, 2, 1, 3] == weights["layer2.1.conv1.weight"][3, 1, 0, 2]
    assert params["logits"]["kernel"][3, 1] == weights["linear.weight"][1, 3]
    shortcut = "layer2.0.shortcut.1"
    for ours, theirs in (
        (params["group2_block1"]["shortcut_bn"]["scale"], "weight"),
        (params["group2_block1"]["shortcut_bn"]["bias"], "bias"),
        (stats["group2_block1"]["shortcut_bn"]["mean"], "running_mean"),
        (stats["group2_block1"]["shortcut_bn"]["var"], "running_var"),
    ):
        np.testing.assert_array_equal(ours, weights[f"{shortcut}.{theirs}"])


def test_batch_norms_of_a_vgg_are_merged():
    model = models.VGG(2, blocks=((3,),), form="pure_linear")
    names = {"features.0.weight": (3, 1, 3, 3), "features.0.bias": (3,)}
    weights = draw(names | norm("features.1", 3) | dense("classifier", 3, 2))
    params = from_state_dict(model, weights)["params"]
    w, b, gamma, beta, mean, var, *_ = (v.astype(np.float64) for v in weights.values())
    scale = gamma / np.sqrt(var + 1e-5)
    kernel = w.transpose(2, 3, 1, 0) * scale
    np.testing.assert_allclose(params["conv1_1"]["kernel"], kernel, rtol=1e-6)
    bias = (b - mean) * scale + beta
    np.testing.assert_allclose(params["conv1_1"]["bias"], bias, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_named():
    def read(change, model=SMALL["ResNet"], name="ResNet"):
        weights = draw(NAMES[name])
        change(weights)
        return from_state_dict(model, weights)

    with pytest.raises(ValueError, match=r"must hold 'layer2.1.bn2.running_var'.*miss"):
        read(lambda w: w.pop("layer2.1.bn2.running_var"))
    with pytest.raises(ValueError, match=r"besides 'layer3.0.conv1.weight'"):
        read(lambda w: w.update({"layer3.0.conv1.weight": np.zeros((2, 2, 3, 3))}))
    with pytest.raises(
        ValueError, match=r"'linear.weight' of the shape .*\[4, 3\].*got \[10, 4\]"
    ):
        read(lambda w: w.update({"linear.weight": np.zeros((10, 4))}))
    with pytest.raises(ValueError, match=r"'conv1.weight' as in RobustBench"):
        read(lambda w: w.clear())
    with pytest.raises(ValueError, match="must be missing|which are missing"):
        read(
            lambda w: w.update({"features.7.running_mean": np.zeros(4)}),
            SMALL["VGG"],
            "VGG",
        )
    with pytest.raises(ValueError, match="arrays, got dict at 'epoch'"):
        from_state_dict(SMALL["VGG"], {"epoch": {}})
    with pytest.raises(ValueError, match="model must be one of ResNet.*got MLP"):
        from_state_dict(models.MLP(3), {})
    with pytest.raises(ValueError, match="mapping from names.*got list"):
        from_state_dict(SMALL["VGG"], [])


def test_input_normalisation_must_be_that_of_the_model():
    weights = draw(NAMES["VGG"])
    weights["mu"] = np.float32([0.4914, 0.4822, 0.4465]).reshape(1, 3, 1, 1)
    weights["sigma"] = np.full((1, 3, 1, 1), 0.5, np.float32)
    with pytest.raises(ValueError, match=r"mean=\(0.4914, 0.4822, 0.4465\)"):
        from_state_dict(SMALL["VGG"], weights)
    model = SMALL["VGG"].clone(mean=(0.4914, 0.4822, 0.4465), std=(0.5,))
    assert from_state_dict(model, weights)["params"]
    with pytest.raises(ValueError, match="the std that weights hold as 'sigma'"):
        from_state_dict(model.clone(std=(0.25,)), weights)


def test_pickles_are_refused_unopened(tmp_path):
    path = tmp_path / "net.pt"
    with pytest.raises(ValueError, match=r"(?s)pickle.*torch.load\('net.pt', 'cpu', w"):
        from_state_dict(SMALL["VGG"], path)  # there is no such file


def test_files(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy", reason="needs safetensors")
    weights = draw(NAMES["VGG"])
    path = tmp_path / "net.safetensors"
    numpy.save_file(weights, path)
    jax.tree.map(
        np.testing.assert_array_equal,
        from_state_dict(SMALL["VGG"], path),
        from_state_dict(SMALL["VGG"], weights),
    )
    path.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match="must be a .safetensors file: "):
        from_state_dict(SMALL["VGG"], str(path))
    with pytest.raises(ValueError, match="must be a file, got"):
        from_state_dict(SMALL["VGG"], tmp_path / "other.safetensors")


# ------------------------------------------------------- against PyTorch's own numbers


def robustbench(module):
    """A file of RobustBench's architectures, without what its package imports."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    package = importlib.util.find_spec("robustbench")
    if package is None:
        pytest.skip("RobustBench is not installed")
    folder = pathlib.Path(package.submodule_search_locations[0])
    path = folder / "model_zoo" / "architectures" / f"{module}.py"
    spec = importlib.util.spec_from_file_location(f"robustbench_{module}", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def theirs_resnet():
    code = robustbench("resnet")
    return code.ResNet(code.BasicBlock, [2, 1, 1, 1]), models.resnet18(10).clone(
        blocks_per_group=(2, 1, 1, 1)
    )


def theirs_preact(kind, **options):
    def make():
        code = robustbench("resnet")
        net = code.PreActResNet(getattr(code, kind), [1, 1, 1, 1], **options)
        return net, models.PreActResNet(
            10,
            blocks_per_group=1,
            raw_shortcut=kind == "PreActBlock" and not options.get("out_shortcut"),
            final_norm="bn_before_fc" in options,
        )

    return make


def theirs_wide():
    code = robustbench("wide_resnet")
    net = code.WideResNet(depth=16, widen_factor=2, sub_block1=True)
    return net, models.WideResNet(10, depth=16, width=2)


def theirs_vgg(batch_norm):
    def make():
        torch = pytest.importorskip("torch", reason="PyTorch is not installed")
        nn = torch.nn
        layers, inputs = [], 3
        for widths in models.vgg11(10).blocks:
            for width in widths:
                layers += [nn.Conv2d(inputs, width, 3, padding=1)]
                layers += [nn.BatchNorm2d(width)] if batch_norm else []
                layers += [nn.ReLU()]
                inputs = width
            layers += [nn.MaxPool2d(2)]
        names = {"features": nn.Sequential(*layers), "flat": nn.Flatten()}
        names["classifier"] = nn.Linear(512, 10)
        return nn.Sequential(), models.vgg11(10), names

    def net():
        net, model, names = make()
        for name, layer in names.items():
            net.add_module(name, layer)
        return net, model

    return net


THEIRS = {
    "resnet": theirs_resnet,
    "preact": theirs_preact("PreActBlock"),
    "preact, other shortcut": theirs_preact("PreActBlock", out_shortcut=True),
    "preact v2": theirs_preact("PreActBlockV2", bn_before_fc=True),
    "wide": theirs_wide,
    "vgg": theirs_vgg(batch_norm=False),
    "vgg with batch norm": theirs_vgg(batch_norm=True),
}


@pytest.mark.parametrize("name", THEIRS)
def test_logits_are_those_of_pytorch(name):
    net, model = THEIRS[name]()
    import torch

    torch.manual_seed(0)
    for layer in net.modules():  # no statistics that do nothing
        if isinstance(layer, torch.nn.BatchNorm2d):
            for values in (layer.weight, layer.bias, layer.running_mean):
                torch.nn.init.uniform_(values, 0.5, 1.5)
            torch.nn.init.uniform_(layer.running_var, 0.5, 1.5)
    x = RNG.uniform(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = net.eval()(torch.tensor(np.moveaxis(x, -1, 1).copy())).numpy()
    variables = from_state_dict(model, net.state_dict())
    ours = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(
        ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max()
    )


def test_the_conversion_that_the_refusal_recommends(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("safetensors.torch", reason="needs safetensors")
    weights = draw(NAMES["VGG"])
    torch.save({k: torch.tensor(v) for k, v in weights.items()}, tmp_path / "net.pt")
    with pytest.raises(ValueError) as refused:
        from_state_dict(SMALL["VGG"], tmp_path / "net.pt")
    lines = [li.strip() for li in str(refused.value).splitlines() if li[:4] == "    "]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, cwd=tmp_path)
    read = from_state_dict(SMALL["VGG"], tmp_path / "net.safetensors")
    expected = from_state_dict(SMALL["VGG"], weights)
    jax.tree.map(np.testing.assert_array_equal, read, expected)
