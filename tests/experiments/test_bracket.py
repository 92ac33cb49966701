"""The study of attacks and proofs: verdicts on made-up numbers, one true bracket."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import bracket, common, study
from robjax.balls import Linf
from tests.experiments.test_tradeoff import NOISE, verdicts


def rows(attacked, proven, said):
    """What `bracket.measure` gives for three seeds; explanations all say `said`."""
    explained = {name: sign * said for name, sign in bracket.EXPLANATIONS.items()}
    return [
        {
            "clean": 0.95 + noise,
            "attacked": np.array([0.95, attacked, attacked, 0.1]) + noise,
            "proven": np.array([0.9, proven, proven, 0.0]) + noise / 2,
            "contradictions": 0,
        }
        | {name: value + noise / 10 for name, value in explained.items()}
        for noise in NOISE
    ]


def test_both_sides_are_judged_at_the_radius_of_training():
    found = {
        "standard": rows(0.3, 0.0, 1.0),
        "adversarial (Madry)": rows(0.8, 0.2, 3.0),
        "TRADES": rows(0.82, 0.3, 4.0),
        "IBP": rows(0.7, 0.69, 2.0),
        "CROWN-IBP": rows(0.78, 0.6, 2.5),
    }
    claims = verdicts(bracket.judge(found))
    assert claims["No image is proven and broken"] == common.HELD
    between = "at most 5 points lie between attacked and proven"
    assert claims[f"IBP: {between}"] == common.HELD
    assert claims[f"CROWN-IBP: {between}"] == common.FAILED
    assert claims["CROWN-IBP proves more than IBP"] == common.FAILED
    for title in ("standard", "adversarial (Madry)", "TRADES"):
        assert claims[f"IBP proves more than {title}"] == common.HELD
    # the explanations rank the trainings as attacks do, and not as proofs do
    for name in bracket.EXPLANATIONS:
        words = f"{name} goes with %s accuracy over the trainings"
        assert claims[words % "attacked"] == common.HELD
        assert claims[words % "proven"] == common.FAILED
    found["IBP"][0]["contradictions"] = 1
    assert verdicts(bracket.judge(found))["No image is proven and broken"] == (
        common.FAILED
    )
    assert len(bracket.draw(found)["bracket"].axes) == 5


@pytest.mark.slow
def test_survivors_and_proofs_of_a_linear_model_meet_where_its_margin_ends():
    # z_0 − z_1 = 2 (v_0 − v_1) falls by 4 ε: robust up to a quarter of it
    x = jnp.array([[0.9, 0.1], [0.6, 0.5], [0.45, 0.55]])[:, None, :, None]
    y = jnp.zeros(3, int)

    def network(v):
        return 2 * v[:, 0, :, 0]

    for eps, robust in ((0.04, [True, True, False]), (0.06, [True, False, False])):
        ball = Linf(jnp.float32(eps))
        left = np.array([True, True, False])
        found = bracket._survivors(network, x, y, left, ball)
        assert found.tolist() == robust
        proven = bracket._proven(network, x, y, found, ball)
        assert proven.tolist() == robust


@pytest.mark.slow
def test_smoke_of_bracket(tmp_path):
    arguments = study.Arguments(smoke=True, results=tmp_path)
    folder = study.run(bracket.STUDY, arguments)
    assert (
        "No image is proven and broken | 0 images of 5 networks | held"
        in (folder / "summary.md").read_text()
    )
    assert (folder / "figures" / "bracket.png").exists()
