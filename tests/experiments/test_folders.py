"""Experiments on released sets: layouts, what each can answer, and numbers by hand."""

import json

import jax
import numpy as np
import pytest
from jax.tree_util import Partial

from experiments import (
    background_reliance,
    common,
    folders,
    group_robustness,
    preserved_correlation,
    scene_networks,
    scenes,
)
from robjax import data
from robjax.reporting import figures
from tests.data.test_released_layouts import draw

DARK, BRIGHT = 40, 200


def waterbirds(root):
    """Bright images, which are on water, but for one water bird on land of three."""
    groups = [(0, 0, 12, 0), (0, 1, 2, 0), (1, 0, 2, 0), (1, 1, 8, 0)]
    groups += [(0, 0, 4, 2), (0, 1, 4, 2), (1, 0, 2, 2), (1, 1, 3, 2)]
    lines = ["img_filename,y,split,place"]
    values = []
    for y, place, count, split in groups:
        values += [BRIGHT if place else DARK] * count
        lines += [f"{len(lines) + n - 1}.png,{y},{split},{place}" for n in range(count)]
    values.append(BRIGHT)
    lines.append(f"{len(values) - 1}.png,1,2,0")
    for number, value in enumerate(values):
        draw(root / f"{number}.png", value)
    (root / "metadata.csv").write_text("\n".join(lines))


def imagenet9(root, variants):
    for variant in variants:
        for label, folder in enumerate(["00_dog", "01_bird"]):
            # a random background is bright, whatever the class
            value = BRIGHT if label or "rand" in variant else DARK
            for number in range(7):
                draw(root / variant / folder / f"{number}.JPEG", value)


def rival10(root):
    """The object is on the left, the right shows the class as well."""
    root.mkdir(exist_ok=True)
    (root / "wnid_to_class.json").write_text(json.dumps({"n1": "a", "n2": "b"}))
    table = {"a": ["a", 0], "b": ["b", 1]}
    (root / "label_mappings.json").write_text(json.dumps(table))
    for split in ("train", "test"):
        for wnid, value in (("n1", 120), ("n2", 135)):
            for number in range(7):
                name = root / split / "ordinary" / f"{wnid}_{number}.png"
                draw(name, value)
                mask = np.zeros((6, 5), np.uint8)
                mask[:, :2] = 255
                draw(name.with_name(f"{name.stem}_merged_mask.png"), mask)


def salient_imagenet(root):
    (root).mkdir(exist_ok=True)
    (root / "core_features.json").write_text(json.dumps({"n1": [3], "n2": [3]}))
    for wnid in ("n1", "n2"):
        for number in range(6):
            folder = root / wnid / "feature_3"
            draw(folder / "images" / f"{number}.jpeg", 90)
            draw(folder / "cams" / f"{number}.jpeg", 100, mode="L")


def objectnet(root):
    plain(root)
    (root / "class_map.json").write_text(json.dumps({"a": 3, "b": [1, 2]}))


def plain(root):
    for name in ("a", "b"):
        for number in range(6):
            draw(root / name / f"{number}.png", 10)


CHALLENGE = [f"{v}/val" for v in ("original", "mixed_same", "mixed_rand")]
WRITERS = {
    "Waterbirds": waterbirds,
    "ImageNet-9": lambda root: imagenet9(root, CHALLENGE),
    "RIVAL10": rival10,
    "Salient ImageNet": salient_imagenet,
    "ObjectNet": objectnet,
    folders.PLAIN: plain,
}
# which of BG-Gap, the images whose background does not fit and RFS can be measured
MEASURED = {
    "Waterbirds": {"minority"},
    "ImageNet-9": {"gap"},
    "RIVAL10": {"relative"},
    "Salient ImageNet": {"relative"},
    "ObjectNet": set(),
    folders.PLAIN: set(),
}
CLAIMS = {name: f"({name})" for name in background_reliance.MEASURES}


def brightness(x):
    """Class 1 if the mean on the right is above a half."""
    mean = x[:, :, 3:].mean((1, 2, 3))
    return 50 * jax.numpy.stack([0.5 - mean, mean - 0.5], axis=1)


@pytest.mark.parametrize("layout", WRITERS)
def test_layouts_are_known_by_their_files_and_say_what_they_lack(layout, tmp_path):
    WRITERS[layout](tmp_path)
    found = folders.find(tmp_path)
    assert found.layout == layout
    assert set(found.train.rows).isdisjoint(found.test.rows) == (
        found.train.listing is found.test.listing and layout != "ImageNet-9"
    )
    assert set(found.test.listing.labels[found.test.rows]) == {0, 1}
    assert ("trained on original/val" in found.remark) == (layout == "ImageNet-9")
    if not MEASURED[layout]:
        with pytest.raises(ValueError, match=f"read as {layout}, has none"):
            folders.unanswered(tmp_path, CLAIMS)
        return
    said = folders.unanswered(tmp_path, CLAIMS)
    missing = {name for name, words in CLAIMS.items() if words in said}
    assert missing == CLAIMS.keys() - MEASURED[layout]


def test_training_images_of_imagenet9_and_mixed_classes(tmp_path):
    imagenet9(tmp_path, [*CHALLENGE, "original/train"])
    found = folders.find(tmp_path)
    assert found.remark == "" and "train" in str(found.train.listing.paths[0])
    draw(tmp_path / "mixed_rand" / "val" / "02_cat" / "0.JPEG", 0)
    folders.find.cache_clear()
    with pytest.raises(ValueError, match="class '02_cat' of .* is unknown"):
        folders.find(tmp_path)


def test_folders_name_what_is_wrong(tmp_path):
    with pytest.raises(data.NotPreparedError, match="nowhere: no such folder"):
        folders.find(tmp_path / "nowhere")
    salient_imagenet(tmp_path)
    (tmp_path / "core_features.json").write_text("[]")
    with pytest.raises(ValueError, match=r"core_features.json must be \{wnid: .*\[\]"):
        folders.find(tmp_path)
    (tmp_path / "core_features.json").unlink()
    with pytest.raises(data.NotPreparedError, match="core features of the classes"):
        folders.find(tmp_path)
    (tmp_path / "metadata.csv").write_text("")
    with pytest.raises(ValueError, match="must have one layout, .* Salient ImageNet"):
        folders.find(tmp_path)
    arguments = scenes.Arguments(data=tmp_path, source="mnist")
    with pytest.raises(ValueError, match="images and backgrounds of its own, got --so"):
        scenes.unanswered(arguments, CLAIMS)


def measured(root):
    return folders.measure(root, Partial(brightness), {}, size=4, limit=None, seed=0)


def test_measures_by_hand(tmp_path):
    bird = tmp_path / "bird"
    waterbirds(bird)
    found = measured(bird)
    # accuracies of the groups: 1, 0, 1/3, 1
    assert found["minority"] == pytest.approx(1 / 7)
    assert found["worst_group"] == 0
    # shares in training 12, 2, 2, 8 of 24; in the test 8 land and 6 water birds
    assert found["in_domain"] == pytest.approx((12 + 2 / 3 + 8) / 24)
    assert found["decorrelated"] == pytest.approx((4 + 3 / 3 + 3) / 14)
    assert found.keys() <= {"in_domain", "decorrelated", "minority", "worst_group"}

    nine = tmp_path / "nine"
    imagenet9(nine, CHALLENGE)
    assert measured(nine) == {"in_domain": 1.0, "gap": 0.5}

    rival = tmp_path / "rival"
    rival10(rival)
    found = measured(rival)
    assert found.keys() == {"in_domain", "relative"} and found["in_domain"] == 1
    # noise on the object changes nothing: RFS = −(1 − a_bg) / (1 − a_bg)
    assert found["relative"] == pytest.approx(-1, abs=1e-6)


def test_images_are_resized_and_limited_evenly(tmp_path):
    imagenet9(tmp_path, CHALLENGE)
    few = folders.read(tmp_path, "mixed_same", 9, 2)
    assert few.images.shape == (2, 9, 9, 3) and few.labels.tolist() == [0, 1]


def test_another_content_of_the_folder_is_another_network(tmp_path, monkeypatch):
    imagenet9(tmp_path / "nine", CHALLENGE)
    arguments = scenes.Arguments(data=tmp_path / "nine", image_size=8, smoke=True)
    recipe = scenes.base(arguments, amplitude=0.2, correlation=0.9)(0)
    assert (recipe.amplitude, recipe.image_size, recipe.epochs) == (0, 8, 1)
    trained = scene_networks.training_images(recipe)
    assert trained.images.shape == (14, 8, 8, 3) and trained.num_classes == 2

    def measure(root, logits_fn, attacks, **options):
        assert root == tmp_path / "nine" and not attacks
        assert options == {"size": 8, "limit": 40, "seed": 0}
        return {"gap": float(logits_fn(2))}

    monkeypatch.setattr(scenes, "train", lambda _: float)
    monkeypatch.setattr(folders, "measure", measure)
    assert scenes.measure(recipe, tmp_path) == {"gap": 2}
    monkeypatch.setattr(scenes, "train", None)  # found again
    assert scenes.measure(recipe, tmp_path) == {"gap": 2}
    before = scenes._path(recipe, tmp_path)
    draw(tmp_path / "nine" / "original" / "val" / "00_dog" / "9.JPEG", 0)
    folders.find.cache_clear()
    folders.digest.cache_clear()
    assert scenes._path(recipe, tmp_path) != before


STUDIES = (background_reliance, preserved_correlation, group_robustness)


def test_every_experiment_runs_on_groups(tmp_path, monkeypatch):
    waterbirds(tmp_path / "birds")
    recipes = []

    def train(recipe):
        recipes.append(recipe)
        return Partial(brightness)

    monkeypatch.setattr(scenes, "train", train)
    # drawing is tested elsewhere, writing takes seconds
    monkeypatch.setattr(figures, "save", lambda _, path: [path, path])
    monkeypatch.delitem(group_robustness.TRAININGS, "adversarial, L2 0.5")
    for study in STUDIES:
        study.run(
            study.Arguments(
                data=tmp_path / "birds", image_size=4, smoke=True, results=tmp_path
            )
        )
    radii = {(r.norm, round(r.eps, 3)) for r in recipes}
    assert radii == {("none", 0), ("Linf", 0.063), ("Linf", 0.031)}
    assert {r.balanced for r in recipes} == {False, True}
    reports = {
        study: tmp_path / "smoke" / study.__name__.split(".")[-1] / "birds"
        for study in STUDIES
    }
    texts = {study: (at / "summary.md").read_text() for study, at in reports.items()}
    for text in texts.values():
        assert "Waterbirds" in text and "resized to 4×4" in text
    reliance = texts[background_reliance]
    assert 'Not judged: "BG-Gap is larger". Waterbirds has no images in mixed' in (
        reliance
    )
    assert 'Not judged: "RFS is lower". Waterbirds has no masks' in reliance
    assert "Linf: images whose background does not fit suffer" in reliance
    # brightness is not moved by so small a radius: 20.67 of 24, 8 of 14
    assert "86.1 % against 86.1 %" in texts[preserved_correlation]
    assert "57.1 % against 57.1 %" in texts[preserved_correlation]
    assert "0.00 %, standard 0.00 %" in texts[group_robustness]
    claims = json.loads((reports[group_robustness] / "claims.json").read_text())
    verdicts = {claim["verdict"] for claim in claims["claims"]}
    assert verdicts == {common.UNTESTABLE}  # one seed


@pytest.mark.parametrize("study", STUDIES)
def test_a_folder_that_answers_nothing_is_an_error_before_any_work(study, tmp_path):
    plain(tmp_path)
    with pytest.raises(ValueError, match="this experiment needs .*, has none"):
        study.run(study.Arguments(data=tmp_path, results=tmp_path / "results"))
    assert not (tmp_path / "results").exists()
