"""Small models of public libraries, by name, each as a function that makes it and its inputs."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

Made = tuple[nn.Module, Any]


def image(size: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, size, size)


def words() -> dict[str, Any]:
    return {"input_ids": torch.randint(3, 90, (2, 7))}


_VISION = {
    "resnet18": 64, "mobilenet_v2": 64, "mobilenet_v3_small": 64, "vgg11": 64, "densenet121": 64,
    "squeezenet1_1": 64, "shufflenet_v2_x0_5": 64, "efficientnet_b0": 64, "mnasnet0_5": 64,
    "alexnet": 64, "convnext_tiny": 64, "swin_t": 64, "regnet_y_400mf": 64,
}  # fmt: skip
_TIMM = {
    "vit_tiny_patch16_224": {"img_size": 32}, "deit_tiny_patch16_224": {"img_size": 32},
    "mixer_s32_224": {"img_size": 64}, "resmlp_12_224": {"img_size": 32},
    "convnext_atto": {}, "mobilevit_xxs": {}, "levit_128s": {"img_size": 224}, "poolformer_s12": {},
    "ghostnet_050": {}, "dla34": {}, "repvgg_a0": {}, "cait_xxs24_224": {"img_size": 32},
    "hardcorenas_a": {}, "fbnetc_100": {}, "rexnet_100": {}, "seresnet18": {},
    "eva02_tiny_patch14_224": {"img_size": 28},
}  # fmt: skip
_TEXT = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
_GROUPED = {**_TEXT, "num_key_value_heads": 2}
_GPT = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "GPT2": _GPT, "GPTJ": {**_GPT, "rotary_dim": 4}, "Bert": _TEXT, "Roberta": _TEXT,
    "Electra": {**_TEXT, "embedding_size": 32}, "Albert": {**_TEXT, "embedding_size": 32},
    "DistilBert": {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "Llama": _GROUPED, "Mistral": _GROUPED, "Qwen2": _GROUPED, "Phi": _TEXT, "GPTNeoX": _TEXT,
    "Gemma": {**_GROUPED, "head_dim": 8}, "Bloom": {"vocab_size": 99, "hidden_size": 32,
    "n_layer": 2, "n_head": 4}, "OPT": {**_TEXT, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "Falcon": {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4}, "ViT": {"hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32, "patch_size": 8},
}  # fmt: skip


def _torchvision(name: str, size: int) -> Made:
    models = importlib.import_module("torchvision.models")
    return getattr(models, name)(weights=None), image(size)


def _timm(name: str, options: dict[str, Any]) -> Made:
    timm = importlib.import_module("timm")
    model = timm.create_model(name, pretrained=False, **options)
    return model, image(options.get("img_size", 64))


def _transformers(name: str, settings: dict[str, Any]) -> Made:
    library = importlib.import_module("transformers")
    kind = {"OPT": "OPTConfig", "ViT": "ViTConfig"}.get(name, f"{name}Config")
    config = getattr(library, kind)(**settings)
    model = getattr(library, f"{name}Model")(config)
    return model, {"pixel_values": image(32)} if name == "ViT" else words()


def entries() -> Iterator[tuple[str, Callable[[], Made]]]:
    """(library/name, what makes it) of the libraries that are installed."""
    if importlib.util.find_spec("torchvision"):
        for name, size in _VISION.items():
            yield f"torchvision/{name}", lambda name=name, size=size: _torchvision(name, size)  # type: ignore[misc]
    if importlib.util.find_spec("timm"):
        for name, options in _TIMM.items():
            yield f"timm/{name}", lambda name=name, options=options: _timm(name, options)  # type: ignore[misc]
    if importlib.util.find_spec("transformers"):
        for name, settings in _TRANSFORMERS.items():
            yield f"transformers/{name}", lambda name=name, s=settings: _transformers(name, s)  # type: ignore[misc]


def floor(name: str) -> int:
    """How many populations are followed without a reason, at the least."""
    return 0 if "repvgg" in name or "Bloom" in name else 2
