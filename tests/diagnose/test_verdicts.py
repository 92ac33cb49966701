"""The sentences of a verdict follow from the numbers, whatever measured them."""

import re

import numpy as np
import pytest
from scipy import stats

from robjax.balls import Linf
from robjax.diagnose.results import Lens, Number, interval, mean, resampled, share
from robjax.diagnose.verdicts import LEVELS, judge

N = 200


def attacked(right, robust, warnings=(), classes=10):
    verdicts = np.arange(N)
    numbers = {
        "accuracy": share("accuracy", verdicts < right),
        "robust": share("robust accuracy", verdicts < robust),
    }
    return Lens(numbers, tuple(warnings), {"labels": verdicts % classes})


def masking(*raised):
    numbers = {"square": share("", np.zeros(64))}
    notes = tuple(f"{name}: it hides. Do something." for name in raised)
    return Lens(numbers, notes, {"raised": np.asarray(raised, dtype=str)})


def background(foreground, on_background):
    shares = {"foreground": foreground, "background": on_background}
    return Lens({k: Number(k, v, 0.01, N, "%") for k, v in shares.items()})


@pytest.mark.parametrize(
    ("right", "robust", "raised", "warnings", "kind"),
    [
        (190, 0, (), (), "not robust"),
        (190, 18, (), (), "not robust"),  # 18 of 190 is less than a tenth
        (190, 19, (), (), "weakly robust"),
        (190, 94, (), (), "weakly robust"),
        (190, 95, (), (), "partly robust"),
        (190, 170, (), (), "partly robust"),
        (190, 171, (), (), "robust"),
        (200, 200, (), (), "robust"),
        # a success is a fact, whatever hides the gradient
        (190, 0, ("square",), (), "not robust"),
        (190, 190, ("square",), (), "hidden gradient"),
        (190, 95, ("zero_gradient", "square"), ("odd",), "hidden gradient"),
        (190, 190, (), ("odd",), "doubtful"),
        # 10 % of the labels are the commonest; chance alone gives up to 29 of 200
        (20, 20, (), (), "no classifier"),
        (28, 28, (), (), "no classifier"),
        (35, 35, (), (), "robust"),
        (0, 0, (), (), "no classifier"),
    ],
)
def test_the_verdict_is_the_level_that_the_numbers_reach(
    right, robust, raised, warnings, kind
):
    found = {"attacks": attacked(right, robust, warnings), "masking": masking(*raised)}
    verdict = judge(found, Linf(0.1))
    assert verdict.kind == kind
    positive = "Robust:" in verdict.sentence
    assert positive == (kind == "robust")
    assert verdict.next
    for warning in warnings:
        assert warning in verdict.sure
    if kind == "hidden gradient":
        assert all(name in verdict.sentence for name in raised)
        assert any(name in sentence for sentence in verdict.sure for name in raised)


def test_a_model_of_one_common_class_is_no_classifier():
    labels = np.array([0] * 150 + [1] * 50)
    found = attacked(150, 150)
    found = found._replace(arrays={"labels": labels})
    assert judge({"attacks": found}, Linf(0.1)).kind == "no classifier"


@pytest.mark.parametrize(
    ("right", "labels", "words", "advice"),
    [
        (5, [0, 0, 0, 1, 1], "Not shown to classify", "more images"),  # may be luck
        (3, [0, 0, 0, 1, 1], "no better than .*60%", "weights"),
        (5, [0] * 5, "No verdict: all 5 images have one label", "several classes"),
        (0, [0] * 5, "gets 0 of 5 right, no better than", "weights"),
    ],
)
def test_few_or_equal_labels_give_no_verdict(right, labels, words, advice):
    verdicts = np.arange(5) < right
    numbers = {"accuracy": share("", verdicts), "robust": share("", verdicts)}
    found = {"attacks": Lens(numbers, (), {"labels": np.array(labels)})}
    verdict = judge(found, Linf(0.1))
    assert verdict.kind in ("no classifier", "doubtful")
    assert re.search(words, verdict.sentence) and advice in " ".join(verdict.next)
    # an attack that succeeds is a fact, whatever the labels
    if right:
        found["attacks"] = found["attacks"]._replace(
            numbers=numbers | {"robust": share("", verdicts & False)}
        )
        kind = "not robust" if len(set(labels)) == 1 else "no classifier"
        assert judge(found, Linf(0.1)).kind == kind


def test_levels_leave_no_gap():
    least = [level[0] for level in LEVELS]
    assert least == sorted(least, reverse=True) and least[-1] == 0


def test_nobody_who_looked_for_masking_is_said_so():
    found = {"attacks": attacked(200, 190)}
    assert any("not checked" in line for line in judge(found, Linf(0.1)).sure)
    found["masking"] = masking()
    assert not any("not checked" in line for line in judge(found, Linf(0.1)).sure)


@pytest.mark.parametrize(
    ("foreground", "on_background", "relies"),
    [
        (0.95, 0.1, False),
        (0.95, 0.5, False),  # less than half of 0.85 above chance
        (0.95, 0.6, True),
        (0.3, 0.1, True),  # lost three quarters without the background
        (0.6, 0.1, False),
    ],
)
def test_reliance_on_backgrounds_is_part_of_the_sentence(
    foreground, on_background, relies
):
    found = {
        "attacks": attacked(190, 0),
        "background": background(foreground, on_background),
    }
    verdict = judge(found, Linf(0.1))
    assert ("relies on backgrounds" in verdict.sentence) == relies
    assert any("group_dro" in line for line in verdict.next) == relies


def test_reasons_name_their_numbers():
    numbers = {"fisher": Number("", 0.62, 0.05, 50, "%")}
    found = {
        "attacks": attacked(190, 0),
        "divergence": Lens(numbers),
        "orders": Lens({"centre": Number("", 0.7, 0.08, 8)}),
        "distances": Lens({"median": Number("", 0.0312, 0.004, 40, "in L∞")}),
    }
    why = " ".join(judge(found, Linf(0.1)).why)
    assert "62.0 ± 5.0 % (50 images)" in why and "Most of" in why
    assert "high order" in why and "0.700 ± 0.080 on" in why and "(8 images)" in why
    assert "0.0312 ± 0.0040 in L∞" in why and "(40 images)" in why


@pytest.mark.parametrize(
    ("value", "stderr", "much", "order"),
    [
        (0.62, 0.05, "Most", "high"),
        (0.58, 0.05, "About half", "middle"),
        (0.42, 0.05, "About half", "middle"),
        (0.38, 0.05, "Less than half", "low"),
        (0.62, np.nan, "Most", "high"),
    ],
)
def test_a_number_that_may_be_a_half_is_called_so(value, stderr, much, order):
    found = {
        "attacks": attacked(190, 0),
        "divergence": Lens({"fisher": Number("", value, stderr, 50, "%")}),
        "orders": Lens({"centre": Number("", value, stderr, 8)}),
    }
    divergence, orders = judge(found, Linf(0.1)).why
    assert divergence.startswith(much) and f"{order} order" in orders


def test_unknown_numbers_are_no_reasons():
    found = {
        "attacks": attacked(190, 190),
        "orders": Lens({"centre": Number("", np.nan, np.nan, 0)}),
        "distances": Lens({"median": resampled("", np.median, np.full(4, np.inf))}),
    }
    (why,) = judge(found, Linf(0.1)).why
    assert "no change to another prediction was found" in why and "4 images" in why


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (57, 200)])
def test_intervals_are_those_of_clopper_and_pearson(k, n):
    low, high = interval(k, n)
    # by definition: a share at the end makes as many, or as few, successes 2.5 % likely
    if k:
        assert stats.binom.sf(k - 1, n, low) == pytest.approx(0.025)
    else:
        assert low == 0
    if k < n:
        assert stats.binom.cdf(k, n, high) == pytest.approx(0.025)
    else:
        assert high == 1


def test_errors_of_numbers():
    values = np.array([1.0, 2.0, 4.0, np.nan])
    found = mean("", values)
    assert found.images == 3 and found.value == pytest.approx(7 / 3)
    assert found.stderr == pytest.approx(stats.sem([1, 2, 4]))
    draws = np.random.default_rng(1).normal(size=400)
    median = resampled("", np.median, draws)
    # of a normal law, the median's variance is π/2 of the mean's
    assert median.stderr == pytest.approx(np.sqrt(np.pi / 2 / 400), rel=0.3)
    assert np.isnan(mean("", values[3:]).value) and mean("", values[3:]).images == 0


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (Number("", 0.5, 0.05, 9, "%"), "50.0 ± 5.0 %"),
        (Number("", 0.123456, 0.00321, 9), "0.1235 ± 0.0032"),
        (Number("", 12.3, np.nan, 9, "nats"), "12.3 nats"),
        (Number("", 0.0, 0.0, 9, "%"), "0.0 ± 0.0 %"),
        (Number("", np.nan, np.nan, 0), "unknown"),
        (Number("", np.inf, np.nan, 5, "in L2"), "unknown"),
    ],
)
def test_numbers_are_shown_with_two_digits_of_their_error(number, shown):
    assert number.shown() == shown
