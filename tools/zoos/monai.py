"""Networks of the library monai."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from monai.networks import nets
from torch import nn

from zoos.entry import Entry, images

LIBRARY = "monai"
MODELS: list[Entry] = []


def add(name: str, inputs: Callable[[], Any], *args: Any, **settings: Any) -> None:
    make: Callable[[], nn.Module] = partial(getattr(nets, name), *args, **settings)
    MODELS.append(Entry(name, make, inputs))


def grey(size: int = 32) -> torch.Tensor:
    return images(size, 1)


PLANE = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
STEPS = {"channels": (4, 8, 16), "strides": (2, 2)}
add("UNet", grey, **PLANE, **STEPS, num_res_units=2)
add("AttentionUnet", grey, **PLANE, **STEPS)
add("BasicUNet", grey, **PLANE, features=(4, 4, 8, 8, 16, 4))
add("BasicUNetPlusPlus", grey, **PLANE, features=(4, 4, 8, 8, 16, 4))
add("DynUNet", grey, **PLANE, kernel_size=[3, 3, 3], strides=[1, 2, 2],
    upsample_kernel_size=[2, 2], filters=[4, 8, 16], deep_supervision=True)  # fmt: skip
add("SegResNet", grey, **PLANE, init_filters=8, dropout_prob=0.1)
add("SegResNetDS", grey, **PLANE, init_filters=8, dsdepth=2)
add("SegResNetVAE", grey, **PLANE, input_image_size=[32, 32], init_filters=8)
add("VNet", grey, **PLANE)
add("HighResNet", grey, **PLANE)
add("DenseNet121", grey, **PLANE, init_features=8, growth_rate=4)
add("SEResNet50", grey, spatial_dims=2, in_channels=1, num_classes=2)
add("ResNet", grey, "basic", [1, 1, 1, 1], [4, 8, 16, 32], spatial_dims=2, n_input_channels=1,
    num_classes=2)  # fmt: skip
add("EfficientNetBN", grey, "efficientnet-b0", pretrained=False, spatial_dims=2, in_channels=1,
    num_classes=2)  # fmt: skip
add("ViT", grey, in_channels=1, img_size=(32, 32), patch_size=(8, 8), hidden_size=32, mlp_dim=64,
    num_layers=2, num_heads=4, spatial_dims=2, classification=True, num_classes=2)  # fmt: skip
add("ViTAutoEnc", grey, in_channels=1, img_size=(32, 32), patch_size=(4, 4), hidden_size=32,
    mlp_dim=64, num_layers=2, num_heads=4, spatial_dims=2)  # fmt: skip
add("MaskedAutoEncoderViT", grey, in_channels=1, img_size=(32, 32), patch_size=(8, 8),
    hidden_size=32, mlp_dim=64, num_layers=2, num_heads=4, spatial_dims=2, decoder_hidden_size=16,
    decoder_mlp_dim=32, decoder_num_layers=1, decoder_num_heads=2)  # fmt: skip
add("UNETR", grey, 1, 2, (32, 32), feature_size=4, hidden_size=24, mlp_dim=48, num_heads=4,
    spatial_dims=2)  # fmt: skip
add("SwinUNETR", partial(grey, 64), 1, 2, spatial_dims=2, feature_size=12, depths=(1, 1, 1, 1),
    num_heads=(1, 2, 2, 4))  # fmt: skip
add("MedNeXt", grey, spatial_dims=2, in_channels=1, out_channels=2, init_filters=4,
    encoder_expansion_ratio=2, decoder_expansion_ratio=2, bottleneck_expansion_ratio=2,
    blocks_down=(1, 1, 1, 1), blocks_up=(1, 1, 1, 1), blocks_bottleneck=1)  # fmt: skip
add("AutoEncoder", grey, **PLANE, channels=(4, 8), strides=(2, 2))
add("VarAutoEncoder", grey, 2, (1, 32, 32), 1, 4, (4, 8), (2, 2))
add("AutoencoderKL", grey, **PLANE, channels=(8, 16), attention_levels=(False, True),
    num_res_blocks=(1, 1), latent_channels=4, norm_num_groups=4)  # fmt: skip
add("VQVAE", grey, **PLANE, channels=(8, 8), num_res_layers=1, num_res_channels=(8, 8),
    downsample_parameters=((2, 4, 1, 1),) * 2, upsample_parameters=((2, 4, 1, 1, 0),) * 2,
    num_embeddings=8, embedding_dim=8)  # fmt: skip
add("DiffusionModelUNet", lambda: (grey(), torch.tensor([3, 5])), spatial_dims=2, in_channels=1,
    out_channels=1, channels=(8, 16), attention_levels=(False, True), num_res_blocks=1,
    num_head_channels=8, norm_num_groups=4)  # fmt: skip
add("PatchDiscriminator", grey, spatial_dims=2, channels=8, in_channels=1, num_layers_d=2)
add("Discriminator", grey, (1, 32, 32), (4, 8), (2, 2))
add("Generator", lambda: torch.randn(2, 16), 16, (8, 4, 4), (8, 4, 1), (2, 2, 2))
add("Regressor", grey, (1, 32, 32), (2,), (4, 8), (2, 2))
add("GlobalNet", grey, image_size=[32, 32], spatial_dims=2, in_channels=1, num_channel_initial=4,
    depth=2)  # fmt: skip
add("LocalNet", grey, spatial_dims=2, in_channels=1, num_channel_initial=4,
    extract_levels=(0, 1, 2))  # fmt: skip
add("DecoderOnlyTransformer", lambda: torch.randint(0, 20, (2, 8)), num_tokens=20, max_seq_len=16,
    attn_layers_dim=16, attn_layers_depth=2, attn_layers_heads=4)  # fmt: skip
add("FullyConnectedNet", lambda: torch.randn(2, 8), 8, 3, [16, 16], dropout=0.1)
