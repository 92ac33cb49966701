"""What attacks inside the losses are given: radius, step size, mode of the model."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from robjax.balls import Linf
from robjax.models import Linear
from robjax.training import objectives
from tests.training.by_hand import BATCH, CLASSES, attack_that_returns, problem


class NormNet(nn.Module):
    """One batch norm between two dense layers."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(5)(x.reshape((x.shape[0], -1)))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.Dense(CLASSES)(nn.tanh(x))


@pytest.mark.parametrize("attack", ["pgd", "kl_pgd"])
def test_strength_scales_radius_and_step(monkeypatch, attack):
    calls = attack_that_returns(monkeypatch, attack, lambda f, x: x)
    name = {"pgd": "adversarial", "kl_pgd": "trades"}[attack]
    network, x, y, keys = problem(Linear(CLASSES))
    getattr(objectives, name)(
        network, x, y, keys=keys, strength=0.25, ball=Linf(0.4), step_size=0.2
    )
    assert float(calls[0]["ball"].eps) == pytest.approx(0.1)
    assert float(calls[0]["step_size"]) == pytest.approx(0.05)
    assert calls[0]["key"] is keys


class TestBatchNorm:
    def network(self):
        model = NormNet()
        object.__setattr__(model, "num_classes", CLASSES)
        network, x, y, keys = problem(model)
        stats = jax.tree.map(lambda a: a + 0.5, network.variables["batch_stats"])
        variables = {**network.variables, "batch_stats": stats}
        return network._replace(variables=variables), x, y, keys

    @pytest.mark.parametrize("name", ["adversarial", "trades"])
    @pytest.mark.parametrize("mode", ["eval", "train"])
    def test_attack_sees_the_chosen_mode(self, monkeypatch, name, mode):
        attack = {"adversarial": "pgd", "trades": "kl_pgd"}[name]
        calls = attack_that_returns(monkeypatch, attack, lambda f, x: x)
        network, x, y, keys = self.network()
        objective = functools.partial(getattr(objectives, name), attack_mode=mode)
        objective(network, x, y, keys=keys, strength=1.0)
        seen = calls[0]["logits_fn"](x)
        expected = {
            "eval": network.model.apply(network.variables, x),
            "train": network.train(x)[0],
        }
        np.testing.assert_allclose(seen, expected[mode], rtol=1e-6)
        other = expected["train" if mode == "eval" else "eval"]
        assert np.max(np.abs(seen - other)) > 0.01

    @pytest.mark.parametrize(
        "name", ["standard", "adversarial", "trades", "mart", "fisher_trace"]
    )
    def test_running_statistics_move_towards_the_batch(self, monkeypatch, name):
        attack_that_returns(monkeypatch, "pgd", lambda f, x: x)
        attack_that_returns(monkeypatch, "kl_pgd", lambda f, x: x)
        network, x, y, keys = self.network()
        objective = getattr(objectives, name)
        updated = objective(network, x, y, keys=keys, strength=1.0)[2].variables
        dense = network.variables["params"]["Dense_0"]
        batch_mean = (
            x.reshape(BATCH, -1) @ dense["kernel"] + dense["bias"][None]
        ).mean(0)
        before = network.variables["batch_stats"]["BatchNorm_0"]["mean"]
        forwards = 2 if name in ("trades", "mart") else 1
        kept = 0.9**forwards
        np.testing.assert_allclose(
            updated["batch_stats"]["BatchNorm_0"]["mean"],
            kept * before + (1 - kept) * batch_mean,
            rtol=1e-5,
            atol=1e-6,
        )

    def test_unknown_mode_is_an_error(self):
        with pytest.raises(ValueError, match="attack_mode.*'evaluate'"):
            self.network()[0].logits_fn("evaluate")  # pyright: ignore[reportArgumentType]
