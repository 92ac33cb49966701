"""The report as one HTML file: no other file, no network, no framework.

The template is page.html. It is given strings, numbers and pictures; what is said and
drawn is decided here and in verdicts.py. Figures are SVG whose black follows the colour
of the text, so that they can be read on a dark page, too. Images are PNG in the page.
"""

import base64
import io
import re
from collections.abc import Mapping
from typing import Any

import jinja2
import markupsafe
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from robjax.diagnose import drawings
from robjax.diagnose.lenses import LENSES
from robjax.diagnose.report import ModelReport, Report
from robjax.diagnose.results import Lens, interval
from robjax.reporting.style import STYLE

_COMPARED = (
    ("attacks", "accuracy"),
    ("attacks", "robust"),
    ("proof", "proven"),
    ("distances", "median"),
    ("distances", "arca"),
    ("divergence", "M"),
    ("divergence", "fisher"),
    ("fisher", "spectral"),
    ("orders", "centre"),
    ("gradients", "alignment"),
    ("background", "background"),
)


def render(report: Report) -> str:
    """The whole page.

    Args:
      report: made by `diagnose`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("robjax.diagnose", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["unbroken"] = _unbroken
    template = environment.get_template("page.html")
    models = report.models
    return template.render(
        title=", ".join(models),
        threat=report.settings["threat"],
        models=[_model(name, model) for name, model in models.items()],
        table=_comparison(models),
        figures=[
            {
                "title": d.title,
                "words": d.words,
                "svg": _svg(d.figure, f"figure{number}"),
            }
            for number, d in enumerate(drawings.draw(report))
        ],
        settings=_flat(report.settings),
        versions=_flat(report.versions),
    )


def _model(name: str, model: ModelReport) -> dict[str, Any]:
    return {
        "name": name,
        "verdict": model.verdict,
        "kind": model.verdict.kind.replace(" ", "-"),
        "lenses": [
            {
                "title": LENSES[lens][0],
                "numbers": [
                    {"label": n.label, "shown": n.shown(), "count": n.images}
                    for n in found.numbers.values()
                ],
                "notes": found.notes,
            }
            for lens, found in model.lenses.items()
        ],
        "classes": _classes(model.lenses["attacks"]),
        "samples": _samples(model.lenses),
    }


def _comparison(models: Mapping[str, ModelReport]) -> list[dict[str, Any]]:
    """Rows of label and a cell for each model; rows that no model has are left out."""
    rows = []
    for lens, number in _COMPARED:
        cells = [model.lenses[lens].numbers.get(number) for model in models.values()]
        known = [cell for cell in cells if cell is not None]
        if known:
            shown = ["–" if cell is None else cell.shown() for cell in cells]
            counts = sorted({cell.images for cell in known})
            images = "–".join(map(str, dict.fromkeys([counts[0], counts[-1]])))
            rows.append({"label": known[0].label, "cells": shown, "images": images})
    return rows


def _classes(attacks: Lens) -> list[dict[str, Any]]:
    """Accuracy and robust accuracy of each class, with exact intervals."""
    labels, predictions, fooled_by = (
        attacks.arrays[name] for name in ("labels", "predictions", "fooled_by")
    )
    rows = []
    for label in np.unique(labels):
        of = labels == label
        count = int(of.sum())
        right = int((predictions[of] == label).sum())
        robust = int((fooled_by[of] < 0).sum())
        low, high = interval(robust, count)
        rows.append(
            {
                "label": int(label),
                "count": count,
                "accuracy": f"{100 * right / count:.0f} %",
                "robust": f"{100 * robust / count:.0f} %",
                "share": 100 * robust / count,
                "interval": f"{100 * low:.0f} to {100 * high:.0f} %",
            }
        )
    return rows


def _samples(lenses: Mapping[str, Lens]) -> list[dict[str, Any]]:
    """What the browser of samples shows; empty for what is no image."""
    found = lenses["attacks"].arrays
    x, x_adv = found["x"], found["x_adv"]
    if x.ndim != 4 or x.shape[-1] not in (1, 3):
        return []
    low, high = min(x.min(), x_adv.min()), max(x.max(), x_adv.max())
    gradient = lenses.get("gradients", Lens()).arrays.get("gradient")
    samples = []
    for index in range(len(x)):
        by = int(found["fooled_by"][index])
        outcome = "misclassified" if by == 0 else "robust" if by < 0 else "fooled"
        change = x_adv[index] - x[index]
        largest = np.abs(change).max()
        pictures = [("image", _png(x[index], low, high))]
        if outcome == "fooled" and largest > 0:  # noise alone may fool, too
            factor = (high - low) / (2 * largest)
            pictures += [
                ("adversarial", _png(x_adv[index], low, high)),
                (f"change × {factor:.3g}", _png(change, -largest, largest)),
            ]
        if gradient is not None and index < len(gradient):
            size = np.abs(gradient[index]).max() or 1.0
            pictures.append(("gradient", _png(gradient[index], -size, size)))
        samples.append(
            {
                "number": index,
                "label": int(found["labels"][index]),
                "predicted": int(found["predictions"][index]),
                "adversarial": int(found["adversarial"][index]),
                "outcome": outcome,
                "attack": str(found["attacks"][by - 1]) if by > 0 else "",
                "margin": f"{found['margin'][index]:.3g}",
                "pictures": pictures,
            }
        )
    return samples


def _png(image: np.ndarray, low: float, high: float) -> str:
    """An image [H, W, 1 or 3] as a data URI, `low` black and `high` white."""
    width = max(high - low, np.finfo(np.float32).tiny)
    values = np.clip((np.asarray(image, float) - low) / width, 0, 1)
    pixels = np.round(255 * values).astype(np.uint8)
    buffer = io.BytesIO()
    picture = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _svg(figure: Figure, salt: str) -> markupsafe.Markup:
    """A figure as SVG inside a page; black is the colour of the text around it."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace("#000000", "currentColor")
    # ids must differ between the figures of a page
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{salt}-", text)
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", text, count=1)
    return markupsafe.Markup(text)


def _unbroken(sentence: str) -> str:
    """No line ends between a number and its error or its per cent sign."""
    return re.sub(r"(?<=\d) (?=[%±])|(?<=±) ", "\N{NO-BREAK SPACE}", sentence)


def _flat(values: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Rows of name and value, nested mappings as "budget: attacked"."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        label = f"{above}{name}"
        if isinstance(value, Mapping):
            rows += _flat(value, f"{label}: ")
        else:
            rows.append((label, str(value)))
    return rows
