"""Denoisers and autoencoders of the library diffusers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import torch
from torch import nn

from zoos.entry import Entry, images

LIBRARY = "diffusers"
MODELS: list[Entry] = []


def add(name: str, inputs: Callable[[], Any], **settings: Any) -> None:
    make: Callable[[], nn.Module] = partial(getattr(diffusers, name), **settings)
    MODELS.append(Entry(name, make, inputs))


def steps() -> torch.Tensor:
    return torch.tensor([3, 5])


BLOCKS = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
DOWN, UP = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
add("UNet2DModel", lambda: (images(), steps()), sample_size=32, **BLOCKS, attention_head_dim=8,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"))  # fmt: skip
add("UNet1DModel", lambda: (torch.randn(2, 4, 16), steps()), sample_size=16, in_channels=4,
    out_channels=4, block_out_channels=(16, 16), use_timestep_embedding=True, flip_sin_to_cos=False,
    freq_shift=1.0, out_block_type="OutConv1DBlock", mid_block_type="MidResTemporalBlock1D",
    down_block_types=("DownResnetBlock1D",) * 2, up_block_types=("UpResnetBlock1D",),
    act_fn="swish")  # fmt: skip
add("UNet2DConditionModel", lambda: (images(16, 4), steps(), torch.randn(2, 6, 16)),
    sample_size=16, **BLOCKS, cross_attention_dim=16, attention_head_dim=4,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))  # fmt: skip
add("UNet3DConditionModel", lambda: (torch.randn(2, 4, 3, 16, 16), steps(), torch.randn(2, 6, 16)),
    sample_size=16, **BLOCKS, cross_attention_dim=16, attention_head_dim=4,
    down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
    up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"))  # fmt: skip
add("ControlNetModel", lambda: (images(16, 4), steps(), torch.randn(2, 6, 16), images(128)),
    **BLOCKS, cross_attention_dim=16, attention_head_dim=4,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    conditioning_embedding_out_channels=(4, 4, 8, 8))  # fmt: skip
add("AutoencoderKL", images, **BLOCKS, latent_channels=4,
    down_block_types=DOWN, up_block_types=UP)  # fmt: skip
add("AsymmetricAutoencoderKL", images, latent_channels=4, norm_num_groups=4,
    down_block_types=DOWN, down_block_out_channels=(8, 16),
    layers_per_down_block=1, up_block_types=UP,
    up_block_out_channels=(8, 16), layers_per_up_block=1)  # fmt: skip
add("AutoencoderTiny", images, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
    num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))  # fmt: skip
add("VQModel", images, **BLOCKS, latent_channels=4, num_vq_embeddings=16,
    down_block_types=DOWN, up_block_types=UP)  # fmt: skip
add("DiTTransformer2DModel", lambda: (images(8, 4), steps(), steps()), sample_size=8,
    num_attention_heads=2, attention_head_dim=8, num_layers=2, in_channels=4, out_channels=8,
    norm_num_groups=4)  # fmt: skip
add("PixArtTransformer2DModel", lambda: ((images(8, 4),), {
        "encoder_hidden_states": torch.randn(2, 6, 16), "timestep": steps(),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}),
    sample_size=8, num_attention_heads=2, attention_head_dim=8, num_layers=2, in_channels=4,
    cross_attention_dim=16, caption_channels=16, norm_num_groups=4)  # fmt: skip
add("Transformer2DModel", lambda: (images(8, 16), torch.randn(2, 6, 16)), num_attention_heads=2,
    attention_head_dim=8, in_channels=16, num_layers=2, cross_attention_dim=16,
    norm_num_groups=4)  # fmt: skip
add("SD3Transformer2DModel", lambda: (images(8, 4), torch.randn(2, 6, 16), torch.randn(2, 16),
                                      steps()),
    sample_size=8, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
    joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16,
    out_channels=4, pos_embed_max_size=16)  # fmt: skip
add("FluxTransformer2DModel", lambda: {
        "hidden_states": torch.randn(2, 16, 4), "encoder_hidden_states": torch.randn(2, 6, 16),
        "pooled_projections": torch.randn(2, 16), "timestep": torch.tensor([0.3, 0.6]),
        "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(6, 3)},
    in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
    num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16,
    axes_dims_rope=(4, 4, 8))  # fmt: skip
add("AuraFlowTransformer2DModel", lambda: (images(8, 4), torch.randn(2, 6, 16),
                                           torch.tensor([0.3, 0.6])),
    sample_size=8, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
    num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16,
    pos_embed_max_size=16)  # fmt: skip
add("WanTransformer3DModel", lambda: (torch.randn(1, 4, 2, 8, 8), torch.tensor([3]),
                                      torch.randn(1, 6, 16)),
    patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4,
    out_channels=4, text_dim=16, freq_dim=16, ffn_dim=32, num_layers=2)  # fmt: skip
add("CogVideoXTransformer3DModel", lambda: (torch.randn(1, 2, 4, 8, 8), torch.randn(1, 6, 16),
                                            torch.tensor([3])),
    num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=8,
    text_embed_dim=16, num_layers=2, sample_width=8, sample_height=8, sample_frames=5,
    max_text_seq_length=6)  # fmt: skip
