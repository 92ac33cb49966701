import jax
import pytest

from tests.oracles import autoattack as reference


@pytest.fixture
def float64(monkeypatch):
    """JAX and torch in float64, so that rounding cannot decide a comparison."""
    torch, base = reference.torch_and_apgd()
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    with jax.enable_x64(True):
        yield torch, base
    torch.set_default_dtype(torch.float32)
