"""Lenses on why a model is (not) robust.

    lens(subject, budget, found) -> Lens

`found` holds the lenses before it. One that cannot look at a model says so in a note
and has no numbers.
"""

import jax.numpy as jnp
import numpy as np
from scipy import stats

from robjax import attacks, metrics
from robjax.diagnose.results import Lens, Number, mean, resampled, share
from robjax.diagnose.robustness import SAMPLES
from robjax.diagnose.subject import Budget, Found, Subject, left_out_for_noise
from robjax.metrics import interactions, spurious
from robjax.model import as_logits_fn


def divergence(subject: Subject, budget: Budget, found: Found) -> Lens:
    """The KL divergence between images of different classes, and its parts."""
    if subject.eot is not None:
        return left_out_for_noise()
    x, y = subject.x[: budget.compared], subject.y[: budget.compared]
    if len(np.unique(y)) < 2:
        return Lens(notes=("left out: all images have one label",))
    found_kl = metrics.pairwise_kl(subject.logits_fn, jnp.asarray(x), y)
    shares = {part: found_kl.share(part) for part in ("fisher", "softmax", "network")}
    words = {
        "fisher": "non-robust part of it (Fisher)",
        "softmax": "robust part, curvature of the softmax",
        "network": "robust part, curvature of the network",
    }
    numbers = {
        "M": Number(
            "mean KL divergence between classes, M",
            found_kl.mean,
            found_kl.stderr,
            len(x),
            "nats",
        )
    } | {
        part: Number(words[part], value, error, len(x), "%")
        for part, (value, error) in shares.items()
    }
    return Lens(numbers)


def fisher(subject: Subject, budget: Budget, found: Found) -> Lens:
    """The Fisher information of the input, and whether it predicts the distances."""
    if subject.eot is not None:
        return left_out_for_noise()
    x = jnp.asarray(subject.x[: budget.nearest])
    spectrum = metrics.fisher_spectrum(subject.logits_fn, x)
    spectral = np.asarray(spectrum.spectral, float)
    rank = np.asarray(spectrum.effective_rank, float)
    known = np.isfinite(spectral)
    numbers = {
        "spectral": resampled(
            "median λ_max of the Fisher information",
            np.median,
            spectral[known],
            unit="nats per squared unit of the image",
        ),
        "rank": resampled(
            "median number of directions (effective rank)",
            np.median,
            rank[np.isfinite(rank)],
        ),
    }
    arrays = {"spectral": spectral}
    if "distance" in found.get("distances", Lens()).arrays:
        distance = found["distances"].arrays["distance"]
        used = known & np.isfinite(distance)
        numbers["prediction"] = resampled(
            "rank correlation of small λ_max and large distance",
            _rank_correlation,
            -spectral[used],
            distance[used],
        )
    return Lens(numbers, (), arrays)


def orders(subject: Subject, budget: Budget, found: Found) -> Lens:
    """Through interactions of which order an attack works."""
    if subject.eot is not None:
        return left_out_for_noise()
    x, y = subject.x[: budget.played], subject.y[: budget.played]
    if x.ndim != 4 or min(x.shape[1:3]) < budget.grid:
        grid = budget.grid
        return Lens(notes=(f"left out: images of {grid}×{grid} pixels or more only",))
    result = attacks.pgd(
        subject.logits_fn,
        jnp.asarray(x),
        jnp.asarray(y),
        key=subject.key,
        ball=subject.ball,
        bounds=subject.bounds,
        steps=20,
    )
    game = interactions.image_game(
        subject.logits_fn,
        (jnp.asarray(x), result.x_adv),
        y,
        grid=_cells(x.shape[1:3], budget.grid),
    )
    split = interactions.attack_utility(interactions.exact(game, game.players))
    parts = np.asarray(split.orders)  # [images, orders]
    weight = np.abs(parts)
    places = np.linspace(0, 1, parts.shape[1])
    total = weight.sum(1)
    centre = (weight @ places) / np.where(total > 0, total, np.nan)
    n = game.players
    numbers = {
        "centre": mean(
            f"mean order of what the attack changes, of {n} parts, 0 low to 1 high",
            centre,
        ),
        "utility": mean("log-probability that the attack takes", split.value, "nats"),
    }
    return Lens(numbers, (), {"orders": parts})


def gradients(subject: Subject, budget: Budget, found: Found) -> Lens:
    """What the input gradient looks like."""
    x, y = subject.x[: budget.compared], subject.y[: budget.compared]
    if subject.eot is not None:
        return left_out_for_noise()
    if x.ndim != 4 or min(x.shape[1:3]) < 3:
        return Lens(notes=("left out: images [H, W, C] of 3×3 pixels or more only",))
    width = max(1, min(x.shape[1:3]) // 7)
    look = metrics.saliency.saliency(
        subject.logits_fn, jnp.asarray(x), jnp.asarray(y), width=width
    )
    numbers = {
        "alignment": mean(
            "alignment of gradient and image, 0 to 1", np.asarray(look.alignment)
        ),
        "autocorrelation": mean(
            "likeness of neighbouring pixels of the gradient, −1 to 1",
            np.asarray(look.autocorrelation),
        ),
        "border": mean(
            "share of the gradient's energy at the border",
            np.asarray(look.border_energy),
            "%",
        ),
    }
    return Lens(numbers, (), {"gradient": np.asarray(look.gradient)[:SAMPLES]})


def background(subject: Subject, budget: Budget, found: Found) -> Lens:
    """Whether predictions rest on the foreground or on the background."""
    if subject.masks is None:
        return Lens(notes=("left out: no masks of the foregrounds were given",))
    if subject.eot is not None:
        return left_out_for_noise()
    x, y = subject.x[: budget.attacked], subject.y[: budget.attacked]
    masks = np.asarray(subject.masks[: budget.attacked], np.float32)
    noise = spurious.noise_sensitivity(
        subject.logits_fn,
        x,
        y,
        masks,
        key=subject.key,
        trials=budget.trials,
        bounds=subject.bounds,
    )
    model = as_logits_fn(subject.logits_fn)
    weights = masks[..., None]
    # what is taken away shows the mean of the image, in each channel
    grey = x.mean(axis=(1, 2), keepdims=True)

    def accuracy(kept: np.ndarray) -> np.ndarray:
        logits = model(jnp.asarray(kept * x + (1 - kept) * grey, x.dtype))
        return np.asarray(jnp.argmax(logits, axis=1)) == y

    numbers = {
        "foreground": share("accuracy on foregrounds alone", accuracy(weights)),
        "background": share("accuracy on backgrounds alone", accuracy(1 - weights)),
        "rfs": Number(
            "relative foreground sensitivity (RFS), −1 to 1",
            float(noise.mean_relative.value),
            float(noise.mean_relative.stderr),
            int(np.sum(~np.asarray(noise.excluded))),
        ),
    }
    return Lens(numbers)


def _cells(shape: tuple[int, ...], grid: int) -> np.ndarray:
    """[H, W] the number of each pixel's part; parts differ by a pixel at most."""
    rows, columns = (np.arange(size) * grid // size for size in shape)
    return rows[:, None] * grid + columns[None, :]


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.asarray(stats.spearmanr(a, b))[0])
