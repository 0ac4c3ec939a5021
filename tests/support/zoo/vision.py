"""Models that read images: ViT, DeiT, DINOv2, CLIP."""

from __future__ import annotations

from support.zoo import Tiny

VIT = {
    "hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 34, "num_hidden_layers": 3,
    "image_size": 8, "patch_size": 2, "num_channels": 3, "num_labels": 7, "encoder_stride": 2,
}  # fmt: skip
TEXT = {
    "vocab_size": 29, "hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 34,
    "num_hidden_layers": 3, "max_position_embeddings": 23, "projection_dim": 15,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 28,
}  # fmt: skip
SIGHT = {
    "hidden_size": 40, "num_attention_heads": 4, "intermediate_size": 38, "num_hidden_layers": 2,
    "image_size": 8, "patch_size": 2, "num_channels": 3, "projection_dim": 15,
}  # fmt: skip
CLIP = {"text_config": TEXT, "vision_config": SIGHT, "projection_dim": 15, "num_labels": 7}
DINO = {**VIT, "mlp_ratio": 2, "layerscale_value": 0.7}
DINO.pop("intermediate_size")
MODELS = {
    "vit/model": Tiny("ViTModel", VIT),
    "vit/image": Tiny("ViTForImageClassification", {**VIT, "qkv_bias": False}),
    "vit/masked": Tiny("ViTForMaskedImageModeling", VIT),
    "vit/deit-model": Tiny("DeiTModel", VIT),
    "vit/deit-image": Tiny("DeiTForImageClassification", VIT),
    "vit/deit-teacher": Tiny("DeiTForImageClassificationWithTeacher", VIT),
    "vit/deit-masked": Tiny("DeiTForMaskedImageModeling", VIT),
    "dinov2/model": Tiny("Dinov2Model", DINO),
    "dinov2/image": Tiny("Dinov2ForImageClassification", DINO),
    "dinov2/swiglu": Tiny("Dinov2ForImageClassification", {**DINO, "use_swiglu_ffn": True}),
    "dinov2/registers": Tiny(
        "Dinov2WithRegistersForImageClassification", {**DINO, "num_register_tokens": 4}
    ),
    "clip/both": Tiny("CLIPModel", CLIP),
    "clip/image": Tiny("CLIPForImageClassification", CLIP),
    "clip_text/model": Tiny("CLIPTextModel", TEXT),
    "clip_text/projection": Tiny("CLIPTextModelWithProjection", TEXT),
    "clip_vision/model": Tiny("CLIPVisionModel", SIGHT),
    "clip_vision/projection": Tiny("CLIPVisionModelWithProjection", SIGHT),
}
