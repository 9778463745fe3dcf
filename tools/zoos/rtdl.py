"""Networks for tables, of the library rtdl_revisiting_models."""

import rtdl_revisiting_models as rtdl
import torch

from zoos.entry import Entry

LIBRARY = "rtdl_revisiting_models"


def features() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(4, 5), torch.randint(0, 3, (4, 2))


def transformer() -> rtdl.FTTransformer:
    return rtdl.FTTransformer(
        n_cont_features=5, cat_cardinalities=[3, 3], d_out=2, n_blocks=2, d_block=16,
        attention_n_heads=2, attention_dropout=0.1, ffn_d_hidden_multiplier=2.0, ffn_dropout=0.1,
        residual_dropout=0.1,
    )  # fmt: skip


MODELS = [
    Entry(
        "MLP",
        lambda: rtdl.MLP(d_in=5, d_out=2, n_blocks=2, d_block=16, dropout=0.1),
        lambda: torch.randn(4, 5),
    ),
    Entry(
        "ResNet",
        lambda: rtdl.ResNet(
            d_in=5, d_out=2, n_blocks=2, d_block=16, d_hidden=24, d_hidden_multiplier=None,
            dropout1=0.1, dropout2=0.1,
        ),
        lambda: torch.randn(4, 5),
    ),
    Entry("FTTransformer", transformer, features),
]  # fmt: skip
