"""For each public function a small valid call, every argument by its name.

tests/test_bad_inputs.py replaces one argument after the other. Arguments that are left
out here have a default, whose kind is plain from its name or its type.
"""

import functools
import inspect
from typing import NamedTuple

import jax
import numpy as np

import robjax
from robjax import attacks, corruptions, data, evaluation, losses, masking, training
from robjax.balls import L2, Linf
from robjax.certification import branch_and_bound, certify
from robjax.diagnose import diagnose
from robjax.metrics import (
    class_pair_kl,
    fisher_spectrum,
    interactions,
    kl,
    kl_components,
    kl_path,
    kl_to_class_means,
    pairwise_kl,
    saliency,
    spurious,
    strong_robustness,
)
from robjax.models import MLP
from robjax.runs import provenance
from robjax.theory import feature_spaces, gaussian, linear_regression
from robjax.training import callbacks, objectives
from robjax.training.objectives.network import Network

KEY = jax.random.key(0)
X = np.random.default_rng(0).uniform(0.1, 0.9, (2, 8, 8, 1)).astype(np.float32)
Y = np.array([0, 1])
LOGITS = np.array([[3.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 2.0]], np.float32)


def model(x):
    return 10 * x[:, 0, :4, 0]


def labels_only(x):
    return jax.nn.one_hot(model(x).argmax(axis=1), 4)


def game(masks):
    return masks.sum(1) ** 2


def two_games(masks):
    return np.stack([masks[:, 0] & masks[:, 1], 0 * masks[:, 0]])


class Found(NamedTuple):
    """What `bracket` needs of an evaluation, and of a certificate."""

    robust: np.ndarray
    proven: np.ndarray


ATTACK = functools.partial(attacks.pgd, ball=Linf(0.1), steps=1, random_start=False)
DATA = (X, Y)
DATASET = data.from_arrays(X, Y, scale=1.0)
GROUPED = data.from_arrays(X, Y, scale=1.0, groups=[0, 1])
MLP_MODEL = MLP(2, widths=(4,))
VARIABLES = jax.eval_shape(MLP_MODEL.init, KEY, X)
VARIABLES = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), VARIABLES)
MODEL_CALL = {"logits_fn": model, "x": X, "y": Y}
ATTACK_CALL = MODEL_CALL | {"key": KEY, "ball": Linf(0.1)}
L2_CALL = ATTACK_CALL | {"ball": L2(1.0)}
EVALUATION = {"logits_fn": model, "data": DATA, "key": KEY}
MASKS = np.zeros((2, 8, 8), np.float32)
MASKS[:, :4] = 1
GRADIENT = X - 0.5
ORACLE = strong_robustness.identity()
CORRECT = np.array([True, False, True])
GROUPS = np.array([0, 0, 1])
GAUSSIAN = {"p": 0.9, "eta": 0.5}
W = np.array([1.0, 0.5])
COVARIANCE = np.array([[1.0, 0.5], [0.5, 1.0]])
REGRESSION = {"covariance": COVARIANCE, "w_star": np.array([1.0, 0.0])}
NOISY = REGRESSION | {"noise": 0.3, "norm": 2}
MAPS = {"a1": np.eye(2), "a2": np.array([[1.0, 0.0]])}
TABLE = np.array([[1.0, 1.0], [0.0, 0.0]])
GROUP_WEIGHTS = {"groups": {"weights": np.full(2, 0.5, np.float32)}}
OBJECTIVE = {
    "network": Network(MLP_MODEL, VARIABLES),
    "images": X,
    "labels": Y,
    "keys": jax.random.split(KEY, 2),
    "strength": 1.0,
}
CORRUPTION = {"x": X, "key": KEY, "severity": 1}

CALLS = {
    # attacks
    attacks.apgd: ATTACK_CALL | {"steps": 2},
    attacks.apgd_targeted: ATTACK_CALL | {"steps": 2, "targets": 1},
    attacks.autoattack: ATTACK_CALL | {"version": "custom", "attacks": {"a": ATTACK}},
    attacks.boundary_attack: L2_CALL | {"logits_fn": labels_only, "queries": 20},
    attacks.carlini_wagner: L2_CALL | {"steps": 2, "searches": 1},
    attacks.ddn: L2_CALL | {"steps": 2},
    attacks.deepfool: ATTACK_CALL | {"steps": 2, "classes": 2},
    attacks.fab: ATTACK_CALL | {"steps": 2},
    attacks.fgsm: ATTACK_CALL,
    attacks.fmn: ATTACK_CALL | {"steps": 2},
    attacks.gradient_free: {"attack": ATTACK},
    attacks.hop_skip_jump: L2_CALL
    | {"logits_fn": labels_only, "queries": 40, "draws": 4},
    attacks.kl_pgd: {name: value for name, value in ATTACK_CALL.items() if name != "y"}
    | {"steps": 2},
    attacks.likeliest: {"logits": LOGITS, "y": Y},
    attacks.limits: {"x": X, "mask": X > 0.5, "eps": 0.1},
    attacks.mi_fgsm: ATTACK_CALL | {"steps": 2},
    attacks.minimal_distance: ATTACK_CALL | {"starts": 1},
    attacks.paste: {
        "x": X,
        "patch": np.ones((2, 2, 1), np.float32),
        "placement": attacks.Placement(
            np.full((2, 2), 3.0, np.float32),
            np.ones(2, np.float32),
            np.zeros(2, np.float32),
        ),
    },
    attacks.patch: MODEL_CALL
    | {"key": KEY, "size": (2, 2), "steps": 1, "batch_size": 2, "places": 1},
    attacks.patched: MODEL_CALL
    | {"key": KEY, "patch": np.full((2, 2, 1), 0.5, np.float32)},
    attacks.perturbed: ATTACK_CALL | {"delta": np.full((8, 8, 1), 0.05, np.float32)},
    attacks.pgd: ATTACK_CALL | {"steps": 2, "step_size": 0.1},
    attacks.square: ATTACK_CALL | {"queries": 3},
    attacks.square_queries: {
        "predict": model,
        "x": X,
        "y": Y,
        "key": KEY,
        "ball": Linf(0.1),
        "queries": 3,
    },
    attacks.success_rate: {"first_success": np.array([0, 4, -1]), "budgets": [1, 5]},
    attacks.suite: {"version": "standard", "ball": Linf(0.1)},
    attacks.to_target: {"attack": ATTACK, "target": 1},
    attacks.universal: ATTACK_CALL | {"steps": 1, "batch_size": 2},
    # certification
    certify: MODEL_CALL | {"ball": Linf(0.1), "method": "ibp", "steps": 1},
    branch_and_bound: MODEL_CALL | {"ball": Linf(0.1)},
    # corruptions
    **{
        getattr(corruptions, name): CORRUPTION
        for name in corruptions.__all__
        if inspect.isfunction(getattr(corruptions, name))
    },
    # data
    data.augment: {"images": X, "key": KEY},
    data.balance_groups: {"dataset": GROUPED},
    data.balanced_indices: {"labels": Y, "batch_size": 2, "seed": 0, "epoch": 0},
    data.batch_indices: {"num_examples": 7, "batch_size": 3, "seed": 0, "epoch": 0},
    data.folders: {"root": "photos"},
    data.from_arrays: {
        "images": X,
        "labels": Y,
        "num_classes": 2,
        "scale": 1.0,
        "groups": Y,
        "num_groups": 2,
    },
    data.load: {"name": "digits", "split": "test"},
    data.split: {"dataset": DATASET, "size": 1},
    data.subset: {"dataset": DATASET, "size": 1},
    data.to_float: {"images": np.zeros((2, 3), np.uint8), "scale": 255.0},
    # evaluation
    diagnose: {"logits_fn": model, "data": DATA, "ball": Linf(0.1)},
    evaluation.audited: EVALUATION | {"cheap": {"a": ATTACK}, "full": {"a": ATTACK}},
    evaluation.bracket: {
        "evaluation": Found(CORRECT, CORRECT),
        "certificate": Found(CORRECT, CORRECT),
    },
    evaluation.broken_among: {"survivors": 100, "sampled": 50, "broken": 2},
    evaluation.corruption_table: EVALUATION
    | {"kinds": {"brightness": corruptions.brightness}, "severities": (1,)},
    evaluation.curve_from_distances: {
        "distances": np.array([0.0, 0.2, np.inf]),
        "epsilons": [0.1, 0.2],
    },
    evaluation.doubts: MODEL_CALL | {"key": KEY, "ball": Linf(0.1)},
    evaluation.evaluate: EVALUATION | {"attacks": {"a": ATTACK}},
    evaluation.proportion: {"verdicts": CORRECT},
    evaluation.robust_accuracy_curve: MODEL_CALL
    | {
        "attack": functools.partial(attacks.pgd, steps=1),
        "epsilons": [0.1],
        "key": KEY,
    },
    evaluation.transfer: {
        "models": {"a": model, "b": model},
        "data": DATA,
        "attack": ATTACK,
        "key": KEY,
    },
    masking.check: ATTACK_CALL | {"surrogate": model, "queries": 10},
    # losses
    losses.cross_entropy: {"logits": LOGITS, "labels": Y},
    losses.dlr: {"logits": LOGITS, "labels": Y},
    losses.kl: {"logits_p": LOGITS, "logits_q": LOGITS + 1},
    losses.log_odds: {"logits": LOGITS, "labels": Y},
    losses.margin: {"logits": LOGITS, "labels": Y},
    losses.misclassified: {"logits": LOGITS, "labels": Y},
    losses.smoothed_cross_entropy: {"logits": LOGITS, "labels": Y},
    losses.targeted_dlr: {"logits": LOGITS, "labels": Y, "targets": 1 - Y},
    # metrics
    class_pair_kl: MODEL_CALL,
    fisher_spectrum: {"logits_fn": model, "x": X},
    kl_components: {"logits_fn": model, "x": X, "x_prime": X[::-1]},
    kl_path: {
        "logits_fn": model,
        "x": X,
        "x_prime": X[::-1],
        "times": np.array([0.5, 1.0], np.float32),
    },
    kl_to_class_means: MODEL_CALL,
    pairwise_kl: MODEL_CALL | {"partners": 1, "key": KEY},
    kl.split_kl: {"logits": LOGITS, "change": LOGITS, "logits_prime": 2 * LOGITS},
    interactions.attack_utility: {"pair": interactions.exact(two_games, 3)},
    interactions.auroc: {"positive": [2.0, 3.0], "negative": [1.0, 2.0]},
    interactions.cutout: {"x": X, "key": KEY},
    interactions.decompose: {"game": interactions.exact(game, 3), "visible": 2},
    interactions.design_pairs: {"pairs": "all", "n": 4, "grid": (2, 2)},
    interactions.disentanglement: {"game": interactions.exact(game, 3)},
    interactions.dispersion: {"attributions": [0.0, 1.0, 5.0]},
    interactions.exact: {"value_fn": game, "n": 3},
    interactions.fisher_ratio: {"a": [[0.0], [2.0]], "b": [[5.0], [7.0]]},
    interactions.fourier_magnitudes: {"x": X},
    interactions.image_game: {
        "logits_fn": model,
        "x": X[0],
        "y": 0,
        "grid": (2, 2),
        "baseline": "zero",
    },
    interactions.leave_one_out: {"value_fn": game, "n": 3},
    interactions.log_odds: {"logits": LOGITS, "y": 0},
    interactions.log_softmax: {"logits": LOGITS, "y": 0},
    interactions.logit: {"logits": LOGITS, "y": 0},
    interactions.other_categories: {"logits": LOGITS, "y": 0},
    interactions.pair_magnitudes: {"game": interactions.exact(game, 3)},
    interactions.pixel_dropout: {"x": X, "key": KEY, "share": 0.5},
    interactions.recoverability: MODEL_CALL | {"ball": Linf(0.1), "steps": 1},
    interactions.reduce_rank: {"x": X, "rank": 2},
    interactions.sampled: {
        "value_fn": game,
        "n": 4,
        "key": KEY,
        "orders": [0, 1],
        "grid": (2, 2),
        "blocks": 2,
        "block_players": 3,
    },
    interactions.usual_orders: {"n": 16},
    interactions.utility_attack: MODEL_CALL
    | {"ball": Linf(0.1), "utility": 0.1, "steps": 1},
    interactions.visibility: {"value_fn": game, "n": 4, "key": KEY, "permutations": 2},
    saliency.alignment: {"g": GRADIENT, "x": X},
    saliency.autocorrelation: {"g": GRADIENT},
    saliency.border_energy: {"g": GRADIENT, "width": 1},
    saliency.interpolate: {"x": X, "x_adv": X[::-1], "points": 3},
    saliency.large_perturbation: MODEL_CALL | {"ball": Linf(0.5)},
    saliency.neighbour_votes: {
        "x": X,
        "reference": X[::-1],
        "labels": Y,
        "num_classes": 2,
        "k": 1,
    },
    saliency.saliency: MODEL_CALL | {"width": 1},
    saliency.sigma_view: {"g": GRADIENT},
    saliency.signed_view: {"g": GRADIENT},
    saliency.votes_along: {
        "x": X,
        "x_adv": X[::-1],
        "reached": Y,
        "reference": X,
        "labels": Y,
        "num_classes": 2,
        "k": 1,
        "points": 3,
    },
    spurious.background_gap: {"same": CORRECT, "rand": CORRECT[::-1]},
    spurious.background_swap: MODEL_CALL | {"masks": MASKS, "scenery": 1 - X},
    spurious.dilate: {"masks": MASKS > 0, "kernel": 3, "iterations": 1},
    spurious.group_accuracies: {"correct": CORRECT, "groups": GROUPS, "num_groups": 2},
    spurious.map_classes: {"logits_fn": model, "table": [0, 1, 1, -1]},
    spurious.noise_sensitivity: MODEL_CALL
    | {"masks": MASKS, "key": KEY, "linf_levels": (0.1,), "l2_levels": (1.0,)},
    spurious.relative_sensitivity: {"acc_fg_noise": 0.6, "acc_bg_noise": 0.8},
    spurious.reweighted_accuracy: {
        "correct": CORRECT,
        "groups": GROUPS,
        "shares": [0.9, 0.1],
    },
    spurious.swap_backgrounds: {"x": X, "masks": MASKS, "scenery": 1 - X},
    spurious.worst_group_accuracy: {
        "correct": CORRECT,
        "groups": GROUPS,
        "num_groups": 2,
    },
    strong_robustness.arc: {"distances": np.array([0.1, np.inf]), "delta": 0.2},
    strong_robustness.arca: {
        "distances": np.array([0.1, 0.3, np.inf]),
        "correct": CORRECT,
        "delta": 0.2,
    },
    strong_robustness.features: {"fn": lambda x: x**2},
    strong_robustness.identity: {},
    strong_robustness.linear: {"matrix": np.eye(64)[:3], "tolerance": 1e-6},
    strong_robustness.minimal_distances: {
        "logits_fn": model,
        "x": X,
        "ball": L2(1.0),
        "key": KEY,
        "attack": functools.partial(attacks.ddn, steps=2),
    },
    strong_robustness.modulus: {
        "features_fn": model,
        "x": X,
        "x_prime": X[::-1],
        "oracle": ORACLE,
    },
    strong_robustness.oracle_distance: {
        "oracle": ORACLE,
        "x": X,
        "x_prime": X[::-1],
    },
    strong_robustness.pair_agreement: {
        "logits_fn": model,
        "x": X,
        "oracle": ORACLE,
        "delta": 0.1,
        "key": KEY,
        "oracle_logits_fn": model,
    },
    strong_robustness.pca: {"images": X, "components": 1},
    strong_robustness.unnecessary_directions: {
        "logits_fn": model,
        "x": X,
        "oracle": strong_robustness.linear(np.eye(64)[:3]),
        "count": 1,
    },
    strong_robustness.worst_case_agreement: {
        "logits_fn": model,
        "x": X,
        "oracle": ORACLE,
        "delta": 0.1,
        "key": KEY,
        "steps": 1,
    },
    # models
    **{
        getattr(robjax.models, name): {"num_classes": 10}
        for name in robjax.models.__all__
        if inspect.isfunction(getattr(robjax.models, name))
    },
    # runs
    provenance.check_same_run: {
        "folder": "runs/a",
        "then": {"eps": 0.1},
        "now": {"eps": 0.1},
        "versions_then": provenance.versions(),
    },
    provenance.open_run: {
        "folder": None,
        "description": dict,
        "parts": "*.npz",
        "resume": False,
    },
    # theory
    feature_spaces.case: MAPS,
    feature_spaces.compare: MAPS,
    feature_spaces.finer: MAPS,
    feature_spaces.modulus: MAPS,
    feature_spaces.constant_classifier: MAPS | {"x": np.ones((3, 2))},
    feature_spaces.gaussian_arc: {"mean": 0.0, "std": 1.0, "modulus": 2.0},
    feature_spaces.ignored_direction: {"x": np.array([[2.0, 1.0]]), "weight": 0.5},
    feature_spaces.minimal_flip_distance: {
        "a": W,
        "b": 0.0,
        "x": np.ones((3, 2)),
        "a2": MAPS["a2"],
    },
    feature_spaces.norm_ratio: {"p": np.inf, "q": 2, "dimension": 4},
    feature_spaces.pair_agreement: {
        "a": W,
        "covariance": COVARIANCE,
        "noise_covariance": COVARIANCE,
    },
    gaussian.adversarial_svm: GAUSSIAN | {"eps": 0.5, "lam": 0.5},
    gaussian.average_classifier: {"d": 4},
    gaussian.bayes_threshold: {"p": 0.5, "m": 3.0},
    gaussian.best_robust_accuracy: GAUSSIAN | {"eps": 0.5},
    gaussian.expected_hinge: {"w1": 0.5, "v": 0.5, "p": 0.9, "m": 3.0, "d": 9},
    gaussian.frontier: {"tau": 9.0, "p": 0.9, "m": 3.0},
    gaussian.linear_table: {"w": W, "eta": 0.5},
    gaussian.robust_accuracy: GAUSSIAN | {"w": W, "eps": 0.5},
    gaussian.sample: GAUSSIAN | {"key": KEY, "count": 5, "d": 2},
    gaussian.shift_slack: {"table": TABLE, "p": 0.75},
    gaussian.standard_accuracy: GAUSSIAN | {"w": W},
    gaussian.svm: {"p": 0.95, "m": 2.0, "d": 100, "eps": 0.4, "lam": 0.5},
    gaussian.table_accuracies: {"table": TABLE, "p": 0.75},
    gaussian.theorem_bound: {"standard": 0.99, "p": 0.95},
    gaussian.unit_svm: {"p": 0.6, "m": 0.5},
    linear_regression.adversarial_risk: NOISY | {"w": W, "eps": 0.3, "mean": W},
    linear_regression.collapse_threshold: NOISY,
    linear_regression.core_only: NOISY | {"eps": 0.3, "core": [True, False]},
    linear_regression.eps_of_penalty: NOISY | {"penalty": [0.25]},
    linear_regression.ignores_spurious_condition: {
        "w": np.array([0.9, 0.0]),
        "covariance": COVARIANCE,
        "core": [True, False],
    },
    linear_regression.path: NOISY | {"eps": [0.0, 0.5]},
    linear_regression.penalised: REGRESSION | {"penalty": [0.5], "norm": 2},
    linear_regression.penalty_of_eps: NOISY | {"eps": [0.5]},
    linear_regression.phase_diagram: {
        "rho": 0.8,
        "kappa": np.array([1.2]),
        "eps": 0.3,
        "noise": 0.3,
        "norm": 2,
    },
    linear_regression.plateau: REGRESSION | {"norm": 2},
    linear_regression.risk_gradient: NOISY | {"w": W, "eps": 0.3, "mean": W},
    linear_regression.shift_price: REGRESSION | {"w": W, "core": [True, False]},
    linear_regression.solve: NOISY | {"eps": 0.3},
    linear_regression.worst_perturbation: {
        "w": W,
        "x": np.ones((3, 2)),
        "y": np.zeros(3),
        "eps": 0.3,
        "norm": 2,
    },
    # training
    training.fit: {
        "model": MLP_MODEL,
        "data": DATASET,
        "config": training.FitConfig(epochs=1, batch_size=2),
        "devices": jax.devices()[:1],
        "progress": False,
    },
    training.load: {"run_dir": "nowhere"},
    training.logits_fn: {"model": MLP_MODEL, "weights": VARIABLES},
    callbacks.best: {"metric": "accuracy", "patience": 1},
    callbacks.evaluate: {"data": DATASET, "attacks": {"a": ATTACK}},
    callbacks.mean_weights: {},
    **dict.fromkeys(
        (
            objectives.adversarial,
            objectives.awp,
            objectives.crown_ibp,
            objectives.feature_matching,
            objectives.fisher_spectral,
            objectives.fisher_trace,
            objectives.ibp,
            objectives.mart,
            objectives.n_fgsm,
            objectives.noise_augmentation,
            objectives.siamese,
            objectives.stability,
            objectives.standard,
            objectives.trades,
            objectives.vat,
        ),
        OBJECTIVE,
    ),
    objectives.augmented: {
        "objective": objectives.standard,
        "augment": lambda image, key: image,
    },
    objectives.group_dro: OBJECTIVE
    | {
        "network": Network(MLP_MODEL, VARIABLES | GROUP_WEIGHTS),
        "groups": Y,
    },
    objectives.smoothed: {"objective": objectives.standard, "amount": 0.1},
    objectives.weighted: {
        "objective": objectives.standard,
        "class_weights": [1.0, 2.0],
    },
}
