"""One report of all comparisons: what is judged, by which statistic, and what it says."""

import math

import msgspec
import numpy as np
import pytest

from whycam.runtime import comparison
from whycam.runtime.comparison import Comparison, describe_excess, summarise
from whycam.runtime.similarity import (
    largest_difference,
    norm_difference,
    overlap,
    pearson,
    relative_difference,
    top_overlap,
)

ALLOWED = {"probabilities": 0.1, "maps": 0.2}


def test_statistics_are_those_of_numpy_over_all_inputs():
    values = [0.0, 0.01, 0.02, 0.07]
    found = summarise("x", [{"maps": value} for value in values], ALLOWED)
    spread = found.differences["maps"]
    assert found.inputs == 4
    assert (spread.mean, spread.median, spread.worst) == pytest.approx((0.025, 0.015, 0.07))
    assert spread.p95 == pytest.approx(np.percentile(values, 95))


def test_an_input_without_an_output_does_not_count_for_it():
    found = summarise("x", [{"maps": 0.1}, {"maps": 0.1, "own_outputs": 0.4}], ALLOWED)
    assert found.worst == {"maps": 0.1, "own_outputs": 0.4}
    assert found.differences["own_outputs"].mean == 0.4


def test_one_wrong_input_is_a_problem_by_the_worst_and_not_by_the_median():
    samples = [{"maps": 0.0}, {"maps": 0.0}, {"maps": 0.9}]
    (problem,) = summarise("x", samples, ALLOWED).problems
    assert problem == "maps are off by 9.0e-01 (at most 0.2)"
    said = summarise("the float file", samples, ALLOWED).complaint
    assert said == "compared with the float file, maps are off by 9.0e-01 (at most 0.2)"
    assert summarise("x", samples, ALLOWED, judged="median").complaint is None


def test_what_is_just_allowed_is_no_problem():
    assert describe_excess({"maps": 0.2, "probabilities": 0.1}, ALLOWED) == ()


def test_what_has_no_tolerance_is_reported_and_not_judged():
    found = summarise("x", [{"gradients": 5.0}], ALLOWED)
    assert found.worst == {"gradients": 5.0}
    assert found.problems == ()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_a_problem(value):
    assert len(describe_excess({"maps": value}, ALLOWED)) == 1
    assert len(summarise("x", [{"maps": 0.0}, {"maps": value}], ALLOWED).problems) == 1


def test_a_detail_is_judged_by_its_output_and_named():
    (problem,) = describe_excess({"correlation.gradcam": 0.5}, {"correlation": 0.125})
    assert problem == "gradcam maps correlate by 0.5000 (at least 0.875)"
    (problem,) = describe_excess({"output.logits.1": 0.5}, {"output": 0.1})
    assert "output logits.1 is off by 5.0e-01" in problem


def test_a_report_survives_json():
    found = summarise("x", [{"maps": 0.3}], ALLOWED, judged="median")
    again = msgspec.json.decode(msgspec.json.encode(found), type=Comparison)
    assert again == found
    assert again.problems == found.problems


def test_no_tolerance_of_reduced_precision_is_stricter_than_that_of_float32():
    for reduced in (comparison.ENGINE_REDUCED, comparison.ENGINE_INT8):
        assert all(limit > comparison.ENGINE[name] for name, limit in reduced.items())
    for name, limit in comparison.EXPORT_OF_HALF.items():
        assert limit >= comparison.EXPORT[name]


def test_differences_by_hand():
    a, b = np.array([1.0, 2.0, 7.0]), np.array([1.0, 4.0, 4.0])
    assert largest_difference(a, b) == 3
    assert relative_difference(a, b) == 0.75
    assert norm_difference(a, b) == pytest.approx(math.sqrt(13) / math.sqrt(33))
    assert relative_difference(a, np.zeros(3)) == 7


def test_whole_numbers_do_not_wrap_around():
    assert largest_difference(np.uint8([1]), np.uint8([255])) == 254


def test_similarity_by_hand():
    a, b = np.eye(2, dtype=np.float32), np.array([[1, 1], [0, 0]], np.float32)
    assert overlap(a, b) == pytest.approx(1 / 3)
    assert pearson(a, 2 * a + 1) == pytest.approx(1)
    assert pearson(a, b) == pytest.approx(0)
    assert top_overlap(a, b, share=0.5) == pytest.approx(1 / 3)
    assert top_overlap(0 * a, 0 * b) == 1
