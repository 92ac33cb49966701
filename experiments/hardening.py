"""Which training hardens a network, and does FGSM tell?

Claim (Wang, Gao and Qi, arXiv 1612.00334): Siamese training, which holds the features
of an image and of its noisy copy together, keeps the clean accuracy and makes networks
robust, as stability and adversarial training do, and as well or better. The paper
measures that by accuracy against the strength of FGSM.

    python -m experiments.hardening [--dataset mnist]

An MLP, 64-100-100-10 pixels to classes on digits, 784-100-100-10 on 10,000 images of
MNIST. Standard training, the mandatory baseline of noise augmentation, the five methods
of the paper's table (adversarial training as FGSM and as PGD-7), all with the same
steps; random noise of 0.2, adversarial images within 0.1 in L∞ (experiments/
hardened.py). Accuracy under FGSM, PGD-40 and AutoAttack on the first 100 test images,
against ε; an image that is broken at a smaller ε stays so. FGSM alone shows too much:
its accuracies are there to be compared with the others. Numbers: docs/verdicts.md.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.tree_util import Partial

from experiments import common, hardened
from experiments.common import Claim
from experiments.hardened import NOISE, RADIUS, SIAMESE, SIGMA, STANDARD, Arguments
from robjax import attacks
from robjax.balls import Linf
from robjax.reporting import figures, tables
from robjax.training.objectives.features import noisy

EPSILONS = np.array([0, 0.05, 0.1, 0.2])
AT = int(np.flatnonzero(EPSILONS == RADIUS)[0])
FAST, STRONG = "FGSM", ("PGD-40", "AutoAttack")
ATTACKS = {
    FAST: attacks.fgsm,
    "PGD-40": functools.partial(attacks.pgd, steps=40),
    "AutoAttack": functools.partial(attacks.autoattack, batch_size=32),
}
COST = {"digits": 7, "mnist": 15}

Found = Mapping[str, Any]
"""Training -> for each seed the arrays of `measure`."""


def measure(
    recipe: hardened.Recipe, network: Partial, x: jax.Array, y: jax.Array
) -> dict[str, Any]:
    """Accuracies [E] by attack, and how far noise moves the features.

    Returns:
        `FAST`, each of `STRONG`: accuracy at every ε.
        features: mean ‖g₁(x)‖₂.
        moved: mean ‖g₁(x) − g₁(x')‖₂ with x' as in Siamese training.
        relative: mean of ‖g₁(x) − g₁(x')‖₂ / ‖g₁(x)‖₂.
        head: Frobenius norm of the last layer.
    """
    found = {name: curve(network, x, y, attack) for name, attack in ATTACKS.items()}
    features = hardened.features_of(network)
    keys = jax.random.split(jax.random.key(recipe.seed), len(x))
    here, there = features(x), features(noisy(x, keys, 1.0, SIGMA))
    moved, length = (jnp.linalg.norm(v, axis=1) for v in (here - there, here))
    (variables,) = network.args
    return found | {
        "features": jnp.mean(length),
        "moved": jnp.mean(moved),
        "relative": jnp.mean(moved / length),
        "head": jnp.linalg.norm(variables["params"]["logits"]["kernel"]),
    }


def curve(network: Partial, x: jax.Array, y: jax.Array, attack: Any) -> np.ndarray:
    """Accuracy [E] at every ε under one attack; what a smaller ε breaks stays broken.

    Args:
        network: images -> logits.
        x: [N, *S] images.
        y: [N] labels.
        attack: called as attack(network, x, y, key=, ball=).
    """
    robust = np.asarray(jnp.argmax(network(x), axis=1) == y)
    accuracy = [robust.mean()]
    for eps in EPSILONS[1:]:
        ball = Linf(jnp.float32(eps))
        found = attack(network, x, y, key=jax.random.key(0), ball=ball)
        robust = robust & ~np.asarray(found.success)
        accuracy.append(robust.mean())
    return np.array(accuracy)


def judge(found: Found) -> list[Claim]:
    """Every hardening against standard training, and the claims on Siamese training."""
    accuracy = {
        (name, attack): hardened.column(rows, attack)
        for name, rows in found.items()
        for attack in (FAST, *STRONG)
    }
    others = [name for name in found if name != STANDARD]
    claims = []
    for attack in STRONG:
        base = accuracy[STANDARD, attack][:, AT]
        for name in others:
            words = f"{name} beats standard training under {attack}, ε = {RADIUS:g}"
            claims.append(
                hardened.above(words, accuracy[name, attack][:, AT], base, unit="%")
            )
    clean = accuracy[STANDARD, FAST][:, 0]
    for name in others:
        words = f"{name} keeps the clean accuracy within 1 point"
        claims.append(
            hardened.above(
                words, accuracy[name, FAST][:, 0], clean, threshold=-0.01, unit="%"
            )
        )
    for attack in STRONG:
        for name in [NOISE, *(name for name in others if name not in (NOISE, SIAMESE))]:
            words = f"Siamese training beats {name} under {attack}, ε = {RADIUS:g}"
            ours, theirs = (accuracy[n, attack][:, AT] for n in (SIAMESE, name))
            claims.append(hardened.above(words, ours, theirs, unit="%"))
    for name in found:
        fast, strong = (accuracy[name, a][:, AT] for a in (FAST, STRONG[-1]))
        words = f"{name}: FGSM shows more than AutoAttack leaves, ε = {RADIUS:g}"
        claims.append(hardened.above(words, fast, strong, unit="%"))
    shown, left = (
        np.stack([accuracy[name, attack][:, AT] for name in found], axis=1)
        for attack in (FAST, STRONG[-1])
    )
    ranks = common.rank_correlation(shown, left)
    return [
        *claims,
        Claim(
            "FGSM orders the trainings as AutoAttack does (rank correlation above 0.9)",
            f"rank correlation {tables.plus_minus(ranks)}",
            common.is_above(ranks, 0.9),
        ),
    ]


def table(found: Found) -> str:
    """Accuracies under AutoAttack, best first, and how far noise moves the features."""
    strongest = STRONG[-1]
    order = sorted(
        found, key=lambda n: -hardened.column(found[n], strongest)[:, AT].mean()
    )
    rows = []
    for name in order:
        of = {key: hardened.column(found[name], key) for key in found[name][0]}
        shares = (of[strongest][:, e] for e in range(len(EPSILONS)))
        rows.append(
            [
                name,
                *(tables.plus_minus(share, unit="%") for share in shares),
                *(
                    tables.plus_minus(of[key])
                    for key in ("features", "moved", "relative", "head")
                ),
            ]
        )
    header = [
        *("training", "clean", *(f"ε = {e:g}" for e in EPSILONS[1:])),
        *("‖g₁(x)‖", "‖g₁(x) − g₁(x')‖", "relative", "‖W_out‖_F"),
    ]
    return (
        f"Accuracy under {strongest}, the features g₁ before the last layer W_out, and "
        f"how far noise of {SIGMA:g} moves them.\n\n{tables.markdown(header, rows)}"
    )


def draw(found: Found) -> dict[str, Any]:
    """Accuracy over ε, a panel for each attack."""
    row = [
        figures.Panel(
            {name: hardened.column(rows, attack) for name, rows in found.items()},
            attack,
            "accuracy [%]",
            scale="percent",
        )
        for attack in (FAST, *STRONG)
    ]
    title = "Accuracy against attack strength, mean ± s.e. over seeds"
    drawn = figures.curves([row], title=title, x=EPSILONS, xlabel="ε (L∞)")
    return {"hardening": drawn}


def run(arguments: Arguments) -> None:
    """Prints the claim and the cost, measures, judges and writes the report."""
    question = "Which training hardens a network, and does FGSM tell?"
    claim = (
        "Holding features together under noise (Siamese training) keeps the clean "
        "accuracy and hardens a network as well as or better than other trainings."
    )
    cost = COST[arguments.dataset]
    common.announce(question, claim, minutes=cost, seeds=arguments.seeds)
    found = hardened.measure_all(arguments, "hardening", measure)
    common.write_report(
        common.results_of(arguments) / "hardening" / arguments.dataset,
        question=question,
        claim=claim,
        setting=arguments.smoke * common.SMOKE + hardened.describe(arguments),
        claims=judge(found),
        drawn=draw(found),
        rest=table(found),
    )


if __name__ == "__main__":
    run(tyro.cli(Arguments, prog="python -m experiments.hardening"))
