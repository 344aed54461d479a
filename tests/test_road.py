"""ROAD imputes as its authors' code does, and tells a right map from a wrong one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer

from whycam.calibrate.road import SHARES, impute, road


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_pixels_are_imputed_as_by_the_authors_code(share):
    rng = np.random.default_rng(1)
    image = rng.standard_normal((3, 17, 23)).astype(np.float32)
    removed = rng.random((17, 23)) < share
    removed[:5, :9] = True  # a whole corner
    kept = torch.from_numpy((~removed).astype(np.float32))
    theirs = NoisyLinearImputer(noise=0.0)(torch.from_numpy(image.copy()), kept).numpy()
    np.testing.assert_allclose(impute(image, removed), theirs, atol=1e-4)


def test_noise_is_added_where_pixels_were_removed_and_nowhere_else():
    image = np.zeros((3, 40, 40), np.float32)
    removed = np.zeros((40, 40), bool)
    removed[10:30] = True
    found = impute(image, removed, np.random.default_rng(0))
    assert (found[:, ~removed] == 0).all()
    assert found[:, removed].std() == pytest.approx(0.01, rel=0.05)
    again = impute(image, removed, np.random.default_rng(0))
    np.testing.assert_array_equal(found, again)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_right_map_removes_the_evidence_first(layout):
    """The class's probability is the contrast of a patch."""
    image = np.full((3, 20, 20), 0.2, np.float32)
    image[:, 2:8, 2:8] = np.indices((6, 6)).sum(0) % 2
    given = image if layout == "NCHW" else image.transpose(1, 2, 0)
    asked = []

    def classify(images: np.ndarray) -> np.ndarray:
        planes = images if layout == "NCHW" else images.transpose(0, 3, 1, 2)
        asked.append(len(planes))
        return 2 * planes[:, 0, 2:8, 2:8].std((1, 2))[:, None]

    right = np.zeros((20, 20), np.float32)
    right[2:8, 2:8] = 1
    most, least = road(classify, given, right, 0, 7, layout)
    assert asked == [2 * len(SHARES)]
    assert most < 0.05
    assert least == pytest.approx(1, abs=0.05)
    assert road(classify, given, 1 - right, 0, 7, layout)[0] > 0.8
    assert road(classify, given, right, 0, 7, layout) == (most, least)
