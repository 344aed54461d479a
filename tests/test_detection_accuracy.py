"""Precision and recall of detections, against counts made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from whycam.calibrate.detection_accuracy import MatchTally, count_matches


def count(detections, annotated):
    """Count matches of (class, score, box) with (class, box)."""
    return count_matches(
        np.array([box for *_, box in detections], np.float32).reshape(-1, 4),
        np.array([index for index, *_ in detections], np.int64),
        np.array([score for _, score, _ in detections], np.float32),
        np.array([box for _, box in annotated], np.float32).reshape(-1, 4),
        np.array([index for index, _ in annotated], np.int64),
    )


def test_two_detections_of_one_object_match_it_once():
    box = (0, 0, 10, 10)
    assert count([(0, 0.9, box), (0, 0.8, box)], [(0, box)]) == [[0, 1, 2, 1]]


def test_the_detection_with_the_highest_score_chooses_first():
    # The better one, listed last, overlaps both boxes by half and takes the left one, which it
    # overlaps more; the other overlaps the left one alone, and is left with nothing.
    left, right = (0, 0, 10, 10), (3, 0, 13, 10)
    detections = [(0, 0.5, (-3, 0, 7, 10)), (0, 0.9, (1, 0, 11, 10))]
    assert count(detections, [(0, left), (0, right)]) == [[0, 1, 2, 2]]
    swapped = [(0, 0.9, detections[0][2]), (0, 0.5, detections[1][2])]
    assert count(swapped, [(0, left), (0, right)]) == [[0, 2, 2, 2]]


def test_boxes_match_from_an_overlap_of_half_and_within_their_class():
    whole = (0, 0, 10, 10)
    assert count([(0, 0.9, (0, 0, 10, 5))], [(0, whole)]) == [[0, 1, 1, 1]]
    assert count([(0, 0.9, (0, 0, 10, 4.9))], [(0, whole)]) == [[0, 0, 1, 1]]
    assert count([(1, 0.9, whole)], [(0, whole)]) == [[0, 0, 0, 1], [1, 0, 1, 0]]
    assert count([], []) == []


def test_detections_of_classes_that_nobody_annotated_do_not_count():
    tally = MatchTally()
    tally.add([[0, 1, 2, 1], [5, 0, 9, 0]])
    tally.add([[0, 1, 1, 3]])
    precision, recall, annotated = tally.figures()
    assert (precision, recall, annotated) == (pytest.approx(2 / 3), pytest.approx(2 / 4), 4)


def test_without_annotations_or_detections_there_is_no_figure():
    tally = MatchTally()
    tally.add([[5, 0, 9, 0]])
    assert tally.figures() == (None, None, None)
    tally.add([[0, 0, 0, 2]])
    assert tally.figures() == (None, 0, 2)
