"""Transformers of the library x-transformers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from x_transformers import (
    AutoregressiveWrapper,
    ContinuousTransformerWrapper,
    CrossAttender,
    Decoder,
    Encoder,
    TransformerWrapper,
    ViTransformerWrapper,
    XTransformer,
)

from zoos.entry import Entry, images, tokens

LIBRARY = "x-transformers"
SIZE = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8}
MODELS: list[Entry] = []


def language(kind: Callable[..., nn.Module], **settings: Any) -> nn.Module:
    return TransformerWrapper(num_tokens=99, max_seq_len=16, attn_layers=kind(**SIZE, **settings))


def add(name: str, make: Callable[[], nn.Module], inputs: Callable[[], Any] = tokens) -> None:
    MODELS.append(Entry(name, make, inputs))


VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "rotary": {"rotary_pos_emb": True},
    "alibi": {"alibi_pos_bias": True, "alibi_num_heads": 2},
    "relative positions": {"rel_pos_bias": True},
    "gated linear units": {"ff_glu": True, "ff_swish": True, "ff_no_bias": True},
    "RMS norm": {"use_rmsnorm": True},
    "sandwich norm": {"sandwich_norm": True},
    "dropout": {"attn_dropout": 0.1, "ff_dropout": 0.1, "layer_dropout": 0.1},
    "memory keys": {"attn_num_mem_kv": 4},
    "gated residual": {"gate_residual": True},
    "talking heads": {"attn_pre_talking_heads": True},
    "one write head": {"attn_one_kv_head": True},
    "normalised queries": {"attn_qk_norm": True},
    "fused attention": {"attn_flash": True},
    "macaron": {"macaron": True},
    "hybrid sandwich": {"sandwich_coef": 1},
}
for title, settings in VARIANTS.items():
    add(f"Decoder {title}".strip(), partial(language, Decoder, **settings))
add("Encoder", partial(language, Encoder))
add("AutoregressiveWrapper", lambda: AutoregressiveWrapper(language(Decoder)))
add(
    "XTransformer",
    lambda: XTransformer(
        dim=32, enc_num_tokens=99, enc_depth=1, enc_heads=4, enc_max_seq_len=16,
        dec_num_tokens=99, dec_depth=1, dec_heads=4, dec_max_seq_len=16,
    ),
    lambda: (tokens(), tokens(8)),
)  # fmt: skip
add(
    "ViTransformerWrapper",
    lambda: ViTransformerWrapper(
        image_size=32, patch_size=8, num_classes=5, attn_layers=Encoder(**SIZE)
    ),
    images,
)
add(
    "ContinuousTransformerWrapper",
    lambda: ContinuousTransformerWrapper(
        dim_in=8, dim_out=4, max_seq_len=16, attn_layers=Encoder(**SIZE)
    ),
    lambda: torch.randn(2, 12, 8),
)
add(
    "CrossAttender",
    lambda: CrossAttender(**SIZE),
    lambda: ((torch.randn(2, 6, 32),), {"context": torch.randn(2, 9, 32)}),
)
