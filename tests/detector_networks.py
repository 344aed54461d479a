"""Detectors of each format, small and of random weights, as their exporters write the outputs."""

import torch
from torch import nn

SIZE, CLASSES = 64, 3
STRIDES = (8, 16, 32)


def fill(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give weights that spread the scores, so that classes and candidates differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            spread = 0.3 if weights.ndim == 1 else 1.4 * weights[0].numel() ** -0.5
            weights.normal_(std=spread, generator=generator)
        for part in model.modules():
            if isinstance(part, YoloX):  # the logarithms of widths and heights
                for predict in part.box:
                    predict.weight *= 0.1
    return model.eval()


class Pyramid(nn.Module):
    """A backbone with a path down and up again: three levels of 8, 12 and 16 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.SiLU())
        self.fine = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.SiLU())
        self.middle = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.SiLU())
        self.coarse = nn.Sequential(nn.Conv2d(12, 16, 3, 2, 1), nn.SiLU())
        self.up = nn.Sequential(nn.Conv2d(8 + 12, 8, 1), nn.SiLU())
        self.down = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.SiLU())
        self.last = nn.Sequential(nn.Conv2d(12 + 16, 16, 1), nn.SiLU())

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        fine = self.fine(self.stem(x))
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        up = nn.functional.interpolate(middle, scale_factor=2.0, mode="nearest")
        fine = self.up(torch.cat([fine, up], 1))
        middle = middle + self.down(fine)
        shrunk = nn.functional.max_pool2d(middle, 3, 2, 1)
        return [fine, middle, self.last(torch.cat([shrunk, coarse], 1))]


WIDTHS = (8, 12, 16)


def centres(sides: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres of the cells of each level, [A, 2], and strides, [A, 1]."""
    points, steps = [], []
    for feature, stride in zip(sides, STRIDES, strict=True):
        height, width = feature.shape[2:]
        rows, columns = torch.meshgrid(
            torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij"
        )
        points.append(torch.stack([columns, rows], -1).reshape(-1, 2) * stride)
        steps.append(torch.full((height * width, 1), float(stride)))
    return torch.cat(points), torch.cat(steps)


class Yolo8(nn.Module):
    """Branches for boxes, as a distribution of distances, and classes at each level."""

    bins = 4

    def __init__(self) -> None:
        super().__init__()
        self.pyramid = Pyramid()
        self.box = nn.ModuleList(
            nn.Sequential(nn.Conv2d(w, 8, 3, 1, 1), nn.SiLU(), nn.Conv2d(8, 4 * self.bins, 1))
            for w in WIDTHS
        )
        self.cls = nn.ModuleList(
            nn.Sequential(nn.Conv2d(w, 8, 3, 1, 1), nn.SiLU(), nn.Conv2d(8, CLASSES, 1))
            for w in WIDTHS
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.predict(self.pyramid(x))

    def predict(self, levels: list[torch.Tensor]) -> torch.Tensor:
        both = [
            torch.cat([box(f), cls(f)], 1).flatten(2)
            for f, box, cls in zip(levels, self.box, self.cls, strict=True)
        ]
        box, cls = torch.cat(both, 2).split((4 * self.bins, CLASSES), 1)
        n, _, a = box.shape
        weights = box.view(n, 4, self.bins, a).softmax(2)
        distance = (weights * torch.arange(self.bins).view(1, 1, -1, 1).float()).sum(2)
        points, steps = centres(levels)
        low = points.T / steps.T - distance[:, :2]
        high = points.T / steps.T + distance[:, 2:]
        boxes = torch.cat([(low + high) / 2, high - low], 1) * steps.T
        return torch.cat([boxes, cls.sigmoid()], 1)


class Block(nn.Module):
    """Two branches that are joined, one with a convolution of 3 x 3, as in the necks of YOLO 5."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Sequential(
            nn.Conv2d(width, 4, 1), nn.SiLU(), nn.Conv2d(4, 4, 3, 1, 1), nn.SiLU()
        )
        self.near = nn.Sequential(nn.Conv2d(width, 4, 1), nn.BatchNorm2d(4), nn.SiLU())
        self.joined = nn.Sequential(nn.Conv2d(8, width, 1), nn.SiLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.joined(torch.cat([self.wide(x), self.near(x)], 1))


class Yolo5(nn.Module):
    """One convolution at each level predicts boxes, objectness and classes of three anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.pyramid = Pyramid()
        self.block = nn.ModuleList(Block(w) for w in WIDTHS)
        self.predict = nn.ModuleList(nn.Conv2d(w, 3 * (5 + CLASSES), 1) for w in WIDTHS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = []
        levels = [block(level) for block, level in zip(self.block, self.pyramid(x), strict=True)]
        for feature, predict, stride in zip(levels, self.predict, STRIDES, strict=True):
            n, _, h, w = feature.shape
            y = predict(feature).view(n, 3, 5 + CLASSES, h, w).permute(0, 1, 3, 4, 2).contiguous()
            place, size, rest = y.sigmoid().split((2, 2, 1 + CLASSES), 4)
            grid = torch.stack(
                torch.meshgrid(torch.arange(w), torch.arange(h), indexing="xy"), -1
            ).view(1, 1, h, w, 2)
            anchors = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1, 1) * stride
            y = torch.cat([(place * 2 - 0.5 + grid) * stride, (size * 2) ** 2 * anchors, rest], 4)
            rows.append(y.view(n, 3 * h * w, 5 + CLASSES))
        return torch.cat(rows, 1)


class YoloX(nn.Module):
    """A stem, then towers for classes and for boxes with objectness; offsets in cells."""

    def __init__(self) -> None:
        super().__init__()
        self.pyramid = Pyramid()
        self.stem = nn.ModuleList(nn.Sequential(nn.Conv2d(w, 8, 1), nn.SiLU()) for w in WIDTHS)
        self.cls = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.SiLU(), nn.Conv2d(8, CLASSES, 1))
            for _ in WIDTHS
        )
        self.tower = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.SiLU()) for _ in WIDTHS
        )
        self.box = nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in WIDTHS)
        self.obj = nn.ModuleList(nn.Conv2d(8, 1, 1) for _ in WIDTHS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = []
        for index, feature in enumerate(self.pyramid(x / 255)):  # pixels as they are
            stem = self.stem[index](feature)
            tower = self.tower[index](stem)
            parts = [
                self.box[index](tower),
                self.obj[index](tower).sigmoid(),
                self.cls[index](stem).sigmoid(),
            ]
            rows.append(torch.cat(parts, 1).flatten(2))
        return torch.cat(rows, 2).permute(0, 2, 1)


class PicoDet(nn.Module):
    """The branches of ``Yolo8``, undecoded: scores of all levels, then distributions of them."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = Yolo8()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        levels = self.dense.pyramid(x)
        scores = [cls(f).sigmoid() for f, cls in zip(levels, self.dense.cls, strict=True)]
        boxes = [box(f) for f, box in zip(levels, self.dense.box, strict=True)]
        return tuple(each.flatten(2).transpose(1, 2) for each in (*scores, *boxes))


class SharedTower(Yolo8):
    """Scores and boxes from one tower, that part in a convolution of one cell."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.ModuleList(
            nn.Sequential(nn.Conv2d(w, w, 3, 1, 1), nn.BatchNorm2d(w), nn.SiLU()) for w in WIDTHS
        )
        self.box = nn.ModuleList(nn.Conv2d(w, 4 * self.bins, 1) for w in WIDTHS)
        self.cls = nn.ModuleList(nn.Conv2d(w, CLASSES, 1) for w in WIDTHS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.predict([t(f) for t, f in zip(self.tower, self.pyramid(x), strict=True)])


class Untowered(SharedTower):
    """The convolutions of one cell alone, after the pyramid."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.predict(self.pyramid(x))


class TopFirst(nn.Module):
    """Scores of a foreground class after one for the background, and boxes top, left, ..."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = Yolo8()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        levels = self.dense.pyramid(x)
        boxes = self.dense.predict(levels)[:, :4].permute(0, 2, 1)
        low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
        logits = [cls(f).flatten(2) for f, cls in zip(levels, self.dense.cls, strict=True)]
        scores = torch.cat(logits, 2).permute(0, 2, 1).sigmoid()
        return scores[..., 1:], torch.cat([low.flip(-1), high.flip(-1)], 2) / SIZE


class Yolo10(nn.Module):
    """The best candidates of the branches of ``Yolo8``, chosen in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = Yolo8()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        boxes, scores = self.dense(x).permute(0, 2, 1).split((4, CLASSES), 2)
        boxes = torch.cat(
            [boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], 2
        )
        index = scores.amax(2).topk(20, dim=1)[1]
        scores = scores.gather(1, index[..., None].expand(-1, -1, CLASSES))
        boxes = boxes.gather(1, index[..., None].expand(-1, -1, 4))
        values, places = scores.flatten(1).topk(20, dim=1)
        rows, classes = places // CLASSES, places % CLASSES
        boxes = boxes.gather(1, rows[..., None].expand(-1, -1, 4))
        return torch.cat([boxes, values[..., None], classes[..., None].float()], 2)


class Detr(nn.Module):
    """A convolutional backbone, one encoder and two decoder layers with queries."""

    queries = 9

    def __init__(self, is_exclusive: bool = True) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 4, 1)
        )
        self.position = nn.Parameter(torch.zeros(1, 16, 16))
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
        layer = nn.TransformerDecoderLayer(16, 2, 32, 0.0, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2)
        self.query = nn.Parameter(torch.zeros(1, self.queries, 16))
        self.cls = nn.Linear(16, CLASSES + is_exclusive)
        self.box = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.backbone(x).flatten(2).transpose(1, 2) + self.position
        memory = self.encoder(tokens)
        found = self.decoder(self.query.expand(x.shape[0], -1, -1), memory)
        return self.cls(found), self.box(found).sigmoid()
