"""Models with an image and a text encoder, as open_clip and transformers build them, but small."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import torch
from torch import nn

LENGTH = 12  # of embeddings
WORDS = 8  # in a text at most
VOCABULARY = ("<pad>", "<s>", "</s>", "<unk>", "a", "cat", "dog", "photo", "of", "bird", "猫")
TEXT = {"context_length": WORDS, "vocab_size": 60, "width": 16, "heads": 2, "layers": 1}
CLASSES = 4


@dataclass(frozen=True)
class Tower:
    """An image encoder of open_clip, made small.

    Attributes:
        layer: whose output is explained, as a module of the image encoder.
        before: how many tokens precede those of places there; None: it is a feature map; -1: its
            channels are last.
        vision: open_clip's ``vision_cfg``.
        sizes: replace arguments of the timm model that it names.
        side: of images.
        is_siglip: whether it is scored by sigmoids with a bias.
        has_captions: whether it is CoCa, which also writes captions.
        is_default: whether the layer is chosen, and not named (as it is no module's output).
    """

    layer: str
    before: int | None
    vision: dict[str, Any]
    sizes: dict[str, Any] = field(default_factory=dict)
    side: int = 32
    is_siglip: bool = False
    has_captions: bool = False
    is_default: bool = True

    def build(self) -> Any:
        """Build the model with random weights, the same each time."""
        import open_clip
        import timm

        create = timm.create_model
        options: dict[str, Any] = {"init_logit_bias": -3.0} if self.is_siglip else {}
        kind = open_clip.CustomTextCLIP if self.is_siglip else open_clip.CLIP
        if self.has_captions:
            kind, options = open_clip.CoCa, {"multimodal_cfg": {**TEXT, "width": LENGTH}}
        torch.manual_seed(0)
        with mock.patch.object(
            timm, "create_model", lambda name, **given: create(name, **given, **self.sizes)
        ):
            vision = {"image_size": self.side, **self.vision}
            text = {**TEXT, "output_tokens": self.has_captions, "embed_cls": self.has_captions}
            model = kind(embed_dim=LENGTH, vision_cfg=vision, text_cfg=text, **options)
        return scatter(model)


def scatter(model: nn.Module) -> Any:
    """Draw weights as large as trained ones, so that places and classes differ."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim > 1:
                weights.normal_(std=weights[0].numel() ** -0.5, generator=generator)
            elif "logit" not in name and not name.endswith("bias"):
                weights.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def timm_tower(name: str, pool: str, projection: str | None) -> dict[str, Any]:
    return {
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": pool,
        "timm_proj": projection,
    }


PATCHES = {"layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
AVERAGED = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
CAPTIONS = {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
VIT = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8}
GRID = {"ref_feat_shape": (4, 4)}
# The architectures of all of open_clip's configurations but for texts, each in small.
TOWERS = {
    "RN50": Tower("layer4.0.act3", None, {"layers": (1, 1, 1, 1), "width": 8}, side=64),
    "ViT": Tower("transformer.resblocks.1.ln_1", 1, PATCHES),
    "ViT-CLIPA": Tower("transformer.resblocks.1", 1, {**PATCHES, **AVERAGED}),
    "CoCa": Tower("attn_pool.ln_k", 1, {**PATCHES, **CAPTIONS}, has_captions=True),
    "SigLIP": Tower(
        "trunk.norm",
        0,
        timm_tower("vit_base_patch16_siglip_224", "map", "none"),
        {**VIT, "embed_dim": LENGTH},
        is_siglip=True,
    ),
    "EVA01": Tower(
        "trunk.blocks.1.norm1", 1, timm_tower("eva_giant_patch14_224", "token", None), VIT
    ),
    "EVA02": Tower(
        "trunk.blocks.1.norm1",
        1,
        timm_tower("eva02_base_patch16_clip_224", "token", None),
        {**VIT, **GRID},
    ),
    "PE": Tower(
        "trunk.norm",
        1,
        timm_tower("vit_pe_core_tiny_patch16_384", "map", None),
        {**VIT, **GRID, "attn_pool_num_heads": 2},
    ),
    "MobileCLIP": Tower(
        "trunk.final_conv.act",
        None,
        timm_tower("fastvit_mci0", "avg", None),
        {"layers": (1, 1, 1, 1), "embed_dims": (8, 16, 16, 32)},
        side=64,
        is_default=False,
    ),
    "ConvNeXt": Tower(
        "trunk.stages.3.blocks.0",
        None,
        timm_tower("convnext_tiny", "", "linear"),
        {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
        side=64,
    ),
    "ViTamin": Tower(
        "trunk.blocks.2",
        0,
        timm_tower("vitamin_small_224", "", "linear"),
        {"depth": 3, "img_size": 64},
        side=64,
    ),
    "relative positions": Tower(
        "trunk.blocks.1.norm1",
        1,
        timm_tower("vit_relpos_medium_patch16_cls_224", "", "linear"),
        VIT,
    ),
    "averaged": Tower("trunk.norm", 0, timm_tower("vit_medium_patch16_gap_256", "", "linear"), VIT),
    "Swin": Tower(
        "trunk.norm",
        -1,
        timm_tower("swin_base_patch4_window7_224", "", "linear"),
        {"img_size": 112, "embed_dim": 8, "depths": (1, 1, 2), "num_heads": (1, 2, 4)},
        side=112,
    ),
}


def random_texts(count: int = CLASSES) -> torch.Tensor:
    """Draw tokens [count, WORDS]; the largest one, which CLIP reads at, is the last."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, 50, (count, WORDS), generator=generator)
    tokens[:, -1] = 59
    return tokens


def save_transformers(folder: Path, kind: str) -> Any:
    """Write a small CLIP or SigLIP as ``save_pretrained`` does, with processor and tokenizer.

    Args:
        folder: to write to.
        kind: ``CLIP`` or ``Siglip``.

    Returns:
        The model.
    """
    import transformers

    small = {
        "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2,
        "num_hidden_layers": 2,
    }  # fmt: skip
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text = {**small, **tokens, "vocab_size": 60, "max_position_embeddings": WORDS}
    config = getattr(transformers, f"{kind}Config")(
        vision_config={**small, "image_size": 32, "patch_size": 8},
        text_config=text,
        **({"projection_dim": LENGTH} if kind == "CLIP" else {}),
    )
    model = scatter(getattr(transformers, f"{kind}Model")(config))
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        if kind == "Siglip":
            model.logit_bias.fill_(-3.0)
    model.save_pretrained(folder)
    save_tokenizer(folder, has_mask=kind == "CLIP")
    settings = {
        "image_processor_type": f"{kind}ImageProcessor", "size": {"height": 32, "width": 32},
        "do_resize": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3,
        "resample": 3,
    }  # fmt: skip
    document = {"processor_class": f"{kind}Processor", "image_processor": settings}
    (folder / "processor_config.json").write_text(json.dumps(document))
    return model


def save_tokenizer(folder: Path, has_mask: bool) -> None:
    """Write a tokenizer of a few words."""
    import tokenizers
    import transformers

    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, "<unk>")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=WORDS,
        model_input_names=["input_ids", "attention_mask"] if has_mask else ["input_ids"],
    ).save_pretrained(folder)


def random_images(count: int, side: int) -> np.ndarray:
    generator = np.random.default_rng(5)
    return generator.standard_normal((count, 3, side, side)).astype(np.float32)


class TwoEncoders(nn.Module):
    """A model of transformers with the inputs and outputs of optimum's ONNX files."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, pixel_values: Any, attention_mask: Any = None) -> Any:
        found = self.model(
            input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask
        )
        return (
            found.logits_per_image,
            found.logits_per_text,
            found.text_embeds,
            found.image_embeds,
        )


OUTPUTS = ["logits_per_image", "logits_per_text", "text_embeds", "image_embeds"]


def write_both_encoders(
    model: nn.Module,
    path: Path,
    has_mask: bool,
    outputs: list[str],
    is_traced: bool = True,
    is_free: bool = True,
) -> None:
    """Write an ONNX file with both encoders, as optimum does; or as PyTorch's newer exporter.

    Args:
        model: of transformers.
        path: to write to.
        has_mask: whether a mask tells which tokens count.
        outputs: which of ``OUTPUTS`` to keep.
        is_traced: write it as optimum does.
        is_free: any number of images, texts and tokens; else two of each and ``WORDS``.
    """
    names = ["input_ids", "pixel_values", "attention_mask"][: 3 if has_mask else 2]
    text = torch.ones(2, WORDS, dtype=torch.long)
    inputs = (text, torch.zeros(2, 3, 32, 32), text)[: len(names)]
    rows = {"input_ids": "texts", "attention_mask": "texts"}
    axes: dict[str, Any] = {name: {0: rows.get(name, "images")} for name in names}
    for name in rows.keys() & set(names):
        axes[name][1] = "tokens"
    if is_traced:
        torch.onnx.export(
            TwoEncoders(model).eval(), inputs, path, dynamo=False, input_names=names,
            output_names=OUTPUTS, dynamic_axes=axes if is_free else {}, opset_version=18,
        )  # fmt: skip
    else:
        free = tuple({k: torch.export.Dim(v) for k, v in axes[name].items()} for name in names)
        torch.onnx.export(
            TwoEncoders(model).eval(), inputs, path, dynamo=True, input_names=names,
            output_names=OUTPUTS, verbose=False, dynamic_shapes=free,
        )  # fmt: skip
    proto = onnx.load(path)
    for value in [value for value in proto.graph.output if value.name not in outputs]:
        proto.graph.output.remove(value)
    onnx.save(proto, path)
