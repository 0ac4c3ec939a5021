"""Models that read images: ViT, DeiT, DINOv2, CLIP."""

from __future__ import annotations

from zoo import Tiny

VIT = {
    "hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 34, "num_hidden_layers": 3,
    "image_size": 8, "patch_size": 2, "num_channels": 3, "num_labels": 5, "encoder_stride": 2,
}  # fmt: skip
MODELS = {
    "vit/model": Tiny("ViTModel", VIT, "vit"),
    "vit/image": Tiny("ViTForImageClassification", {**VIT, "qkv_bias": False}, "vit"),
    "vit/masked": Tiny("ViTForMaskedImageModeling", VIT, "vit"),
    "vit/deit-model": Tiny("DeiTModel", VIT, "deit"),
    "vit/deit-image": Tiny("DeiTForImageClassification", VIT, "deit"),
    "vit/deit-teacher": Tiny("DeiTForImageClassificationWithTeacher", VIT, "deit"),
    "vit/deit-masked": Tiny("DeiTForMaskedImageModeling", VIT, "deit"),
}
