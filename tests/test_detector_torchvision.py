"""Gradients of torchvision's detectors, of random weights, are those of autograd in float64."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torchvision.models import detection
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from whycam.export import Overrides, to_onnx
from whycam.runtime.engines.opening import open_engine
from whycam.runtime.onnxfile import read_manifest

pytestmark = pytest.mark.slow
SIZE, CLASSES = 128, 5


class Dense(nn.Module):
    """A detector of torchvision up to its scores, with boxes as corners in pixels."""

    def __init__(self, model: nn.Module, example: torch.Tensor) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.head
        features = self.levels(example)
        images = detection.image_list.ImageList(example, [(SIZE, SIZE)] * len(example))
        anchors = model.anchor_generator(images, features)[0]
        low, high = anchors[:, :2], anchors[:, 2:]
        self.register_buffer("centres", (low + high) / 2)
        self.register_buffer("sizes", high - low)
        self.is_fcos = isinstance(model, detection.FCOS)
        self.is_softmax = isinstance(model, detection.ssd.SSD)

    def levels(self, x: torch.Tensor) -> list[torch.Tensor]:
        return list(self.backbone(x).values())

    def predict(self, levels: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.head(levels)
        logits, offsets = out["cls_logits"], out["bbox_regression"]
        if self.is_fcos:
            scores = logits.sigmoid() * out["bbox_ctrness"].sigmoid()
            offsets = offsets * self.sizes[:, :1].repeat(1, 4)
            boxes = torch.cat([self.centres - offsets[..., :2], self.centres + offsets[..., 2:]], 2)
            return scores, boxes
        scores = logits.softmax(-1) if self.is_softmax else logits.sigmoid()
        centres = self.centres + offsets[..., :2] * 0.1 * self.sizes
        half = self.sizes * (offsets[..., 2:] * 0.2).clamp(max=4).exp() / 2
        return scores, torch.cat([centres - half, centres + half], 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.predict(self.levels(x))


def build(name: str) -> Dense:
    torch.manual_seed(0)
    if name == "SSDlite":
        make = detection.ssdlite320_mobilenet_v3_large
        model = make(weights=None, weights_backbone=None, num_classes=CLASSES).eval()
    else:
        backbone = detection.backbone_utils.resnet_fpn_backbone(
            backbone_name="resnet18",
            weights=None,
            returned_layers=[2, 3, 4],
            extra_blocks=LastLevelP6P7(256, 256),
        )
        model = getattr(detection, name)(backbone, CLASSES).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        for part in (model.head.classification_head, model.head.regression_head):
            for weights in part.parameters():  # scores that differ and are not saturated
                if weights.ndim == 4:
                    weights *= 0.3
    return Dense(model, torch.zeros(1, 3, SIZE, SIZE)).eval()


@pytest.mark.parametrize(
    ("name", "count", "score"),  # levels of more than one place
    [("SSDlite", 3, "class"), ("SSDlite", 3, "right"), ("RetinaNet", 4, "class"),
     ("FCOS", 4, "class")],
)  # fmt: skip
def test_gradients_are_those_of_autograd(name, count, score, tmp_path):
    model = build(name)
    path = tmp_path / "a.onnx"
    result = to_onnx(
        model,
        path,
        format="ssd",
        score=score,
        methods=["hirescam"],
        overrides=Overrides(image_size=SIZE, preprocess="imagenet"),
    )
    levels = result.manifest.detector.levels
    assert len(levels) == count
    assert result.verification.worst["differences"] < 1e-3
    image = np.random.default_rng(1).normal(size=(1, 3, SIZE, SIZE)).astype(np.float32)
    engine = open_engine(path, read_manifest(path), "onnxruntime")
    found = engine.run(
        {"image": image, "target": np.array([[[7, 1], [200, 2]]])}, ["maps", "candidate_scores"]
    )
    model = model.double()
    size = tuple(result.manifest.detector.map_size)
    for place, (candidate, index) in enumerate([(7, 1), (200, 2)]):
        features = [
            level.detach().requires_grad_()
            for level in model.levels(torch.from_numpy(image).double())
        ]
        scores, boxes = model.predict(features)
        first = index + (1 if model.is_softmax else 0)  # after the background
        value = scores[0, candidate, first] if score == "class" else boxes[0, candidate, 2]
        value.backward()
        total = sum(
            nn.functional.interpolate(
                (level.grad * level).sum(1, keepdim=True).relu().detach(),
                size,
                mode="bilinear",
            )
            for level in features
            if level.grad is not None
        )[0, 0].numpy()
        spread = total.max() - total.min()
        assert_allclose(found["maps"][0, place], (total - total.min()) / spread, atol=1e-4)
