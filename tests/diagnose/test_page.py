"""The HTML report: what it holds, and that a browser shows it."""

import html.parser
import re
import shutil

import numpy as np
import pytest

from robjax.balls import Linf
from robjax.diagnose import page
from robjax.diagnose.lenses import LENSES
from robjax.diagnose.report import ModelReport, Report
from robjax.diagnose.results import Lens, mean, share
from robjax.diagnose.verdicts import judge

N = 60
RNG = np.random.default_rng(0)


def model_report(robust):
    """Lenses of a model that withstands on the first `robust` of 60 images."""
    number = np.arange(N)
    fooled_by = np.where(number < robust, -1, np.where(number < 54, 1, 0))
    images = RNG.uniform(size=(24, 8, 8, 1))
    moved = 0.1 * (fooled_by[:24] > 0)[:, None, None, None]
    found = {name: Lens(notes=("left out <here>",)) for name in LENSES}
    found["attacks"] = Lens(
        {
            "accuracy": share("accuracy", fooled_by != 0),
            "robust": share("robust", fooled_by < 0),
        },
        (),
        {
            "labels": number % 10,
            "predictions": np.where(fooled_by == 0, (number + 1) % 10, number % 10),
            "fooled_by": fooled_by,
            "margin": RNG.normal(size=N),
            "x": images,
            "x_adv": np.clip(images + moved, 0, 1),
            "adversarial": (number[:24] + 3) % 10,
            "attacks": np.array(["apgd-ce", "square"]),
        },
    )
    radii = np.array([0.1, 0.2])
    rates = share("at 0.1", fooled_by < 0)
    found["curve"] = Lens(
        {"1": rates},
        (),
        {"epsilons": radii, "accuracy": np.array([0.5, 0.2]), "stderr": radii / 10},
    )
    distance = RNG.uniform(0.05, 0.3, size=20)
    found["distances"] = Lens(
        {"median": mean("distance", distance, "in L∞")}, (), {"distance": distance}
    )
    parts = {
        part: share(part, number < 20) for part in ("fisher", "softmax", "network")
    }
    found["divergence"] = Lens({"M": mean("M", RNG.uniform(size=9), "nats"), **parts})
    found["orders"] = Lens(
        {"centre": mean("centre", RNG.uniform(size=8))},
        (),
        {"orders": RNG.normal(size=(8, 7))},
    )
    found["gradients"] = Lens({}, (), {"gradient": RNG.normal(size=(24, 8, 8, 1))})
    return ModelReport(judge(found, Linf(0.1)), found)


@pytest.fixture(scope="module")
def report():
    models = {"plain <b>": model_report(3), "trained": model_report(40)}
    return Report(models, {"threat": "L∞ ε = 0.1", "budget": {"a": 1}}, {"python": "3"})


class Parser(html.parser.HTMLParser):
    """Collects ids and links, and sees that tags close in order."""

    VOID = ("meta", "img", "br", "link", "input", "path", "use", "rect")

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_needs_nothing_else(report):
    text = page.render(report)
    parser = Parser()
    parser.feed(text)
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    assert all(link.startswith(("data:", "#")) for link in parser.links)
    words = " ".join("".join(parser.text).split())
    for name, model in report.models.items():
        assert name in words  # escaped, so not a tag
        assert model.verdict.sentence in words
        for lens in model.lenses.values():
            for number in lens.numbers.values():
                assert number.shown() in words
        for sentence in (*model.verdict.sure, *model.verdict.why):
            assert sentence in words  # split() joins what page._unbroken keeps together
    assert "left out <here>" in words
    assert page._unbroken("6 of 9: 5.0 ± 2.0 %") == "6 of 9: 5.0\xa0±\xa02.0\xa0%"
    assert text.count("<figure ") == 4
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", text)


def test_samples_say_what_happened_to_them(report):
    samples = page._samples(report.models["trained"].lenses)
    outcomes = [sample["outcome"] for sample in samples]
    assert outcomes == ["robust"] * 24
    fooled = page._samples(report.models["plain <b>"].lenses)
    assert [s["outcome"] for s in fooled] == ["robust"] * 3 + ["fooled"] * 21
    names = [name for name, _ in fooled[5]["pictures"]]
    assert names[:2] == ["image", "adversarial"] and names[2].startswith("change × ")
    assert fooled[5]["attack"] == "apgd-ce" and fooled[5]["adversarial"] == 8


def test_samples_of_a_randomised_model(report):
    """It has no single prediction, and may be fooled by an image that did not move."""
    found = report.models["plain <b>"]
    arrays = dict(found.lenses["attacks"].arrays)
    arrays |= {"adversarial": np.full(24, -1), "x_adv": arrays["x"]}
    attacks = found.lenses["attacks"]._replace(arrays=arrays)
    lenses = {**found.lenses, "attacks": attacks}
    fooled = page._samples(lenses)[5]
    assert [name for name, _ in fooled["pictures"]] == ["image", "gradient"]
    text = page.render(report._replace(models={"m": found._replace(lenses=lenses)}))
    words = " ".join(text.split())
    assert (
        "Class 5, lost after apgd-ce; margin" in words and "taken for -1" not in words
    )
    assert "Class 5, taken for 8 after apgd-ce" in " ".join(page.render(report).split())


def test_classes_add_up(report):
    rows = page._classes(report.models["trained"].lenses["attacks"])
    assert sum(row["count"] for row in rows) == N
    total = sum(row["count"] * row["share"] / 100 for row in rows)
    assert total == pytest.approx(40)


def test_vectors_have_no_pictures(report):
    lenses = dict(report.models["trained"].lenses)
    arrays = dict(lenses["attacks"].arrays)
    arrays |= {"x": np.ones((24, 5)), "x_adv": np.ones((24, 5))}
    lenses["attacks"] = lenses["attacks"]._replace(arrays=arrays)
    assert page._samples(lenses) == []


def test_a_browser_shows_it(report, tmp_path):
    """No errors or requests, filters work, no sideways scrolling on a phone, a PDF."""
    playwright = pytest.importorskip("playwright.sync_api")
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("needs chromium on the path")
    file = tmp_path / "report.html"
    file.write_text(page.render(report))
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=browser, args=["--no-sandbox"]
        )
        tab = chromium.new_page(viewport={"width": 1280, "height": 800})
        errors, requests = [], []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda line: errors.append(line.text))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(file.as_uri())
        assert errors == []
        assert [url for url in requests if not url.startswith("data:")] == [
            file.as_uri()
        ]
        for model in report.models.values():
            place = tab.get_by_text(model.verdict.sentence).bounding_box()
            assert place is not None and place["y"] + place["height"] < 800

        browsers = tab.locator(".browser")
        first = browsers.nth(0)
        first.locator(".by-outcome").select_option("fooled")
        assert first.locator(".samples li:visible").count() == 21
        assert first.locator(".count").inner_text() == "21 samples"
        first.locator(".by-class").select_option("4")
        shown = first.locator(".samples li:visible")
        assert shown.evaluate_all("all => all.map(e => e.dataset.class)") == ["4"] * 2
        assert browsers.nth(1).locator(".samples li:visible").count() == 24

        for scheme in ("light", "dark"):
            phone = chromium.new_page(
                viewport={"width": 390, "height": 844}, color_scheme=scheme
            )
            phone.goto(file.as_uri())
            assert phone.evaluate("document.documentElement.scrollWidth") <= 390
            fill, behind = phone.evaluate(
                """[getComputedStyle(document.querySelector("figure svg text")).fill,
                    getComputedStyle(document.body).backgroundColor]"""
            )
            light = [sum(map(int, re.findall(r"\d+", c)[:3])) for c in (fill, behind)]
            assert abs(light[0] - light[1]) > 300  # of 765: can be read
        pdf = tab.pdf()
        assert pdf.startswith(b"%PDF") and len(pdf) > 20_000
        chromium.close()
