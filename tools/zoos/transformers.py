"""Architectures of the library transformers, from small configurations with random weights."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn

from zoos.entry import Entry, images, tokens

LIBRARY = "transformers"

TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**TEXT, "num_key_value_heads": 2}
EXPERTS = {**GROUPED, "num_experts_per_tok": 2}
GPT = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
SEQ2SEQ = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
T5 = {
    "vocab_size": 99,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
SPEECH = {
    **TEXT,
    "conv_dim": (16, 16),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    # a span needs room in the short input
    "mask_time_length": 2,
}


def words(length: int = 12, **more: Any) -> dict[str, Any]:
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, length // 2 :] = 0
    return {"input_ids": tokens(length), "attention_mask": mask, **more}


def masked() -> dict[str, Any]:
    return words(labels=tokens())


def unmasked(length: int = 12) -> dict[str, Any]:
    return {"input_ids": tokens(length), "labels": tokens(length)}


def classes(make: Callable[[], dict[str, Any]] = words) -> dict[str, Any]:
    return {**make(), "labels": torch.tensor([0, 1])}


def pixels(size: int = 32, channels: int = 3) -> dict[str, Any]:
    return {"pixel_values": images(size, channels)}


def translation() -> dict[str, Any]:
    return words(labels=tokens(7))


def sound(length: int = 800) -> dict[str, Any]:
    return {"input_values": torch.randn(2, length)}


def captions(size: int = 32) -> dict[str, Any]:
    return words(pixel_values=images(size))


def build(name: str, settings: dict[str, Any]) -> nn.Module:
    cls = getattr(transformers, name)
    return cls(cls.config_class(**settings))


MODELS: list[Entry] = []


def add(
    name: str,
    settings: dict[str, Any],
    inputs: Callable[[], Any],
    note: str = "",
    **more: Any,
) -> None:
    MODELS.append(Entry(name, partial(build, name, {**settings, **more}), inputs, note))


# --- encoders of text
add("BertForMaskedLM", TEXT, masked)
add("BertForPreTraining", TEXT, lambda: masked() | {"next_sentence_label": torch.tensor([0, 1])})
add("RobertaForSequenceClassification", TEXT, classes)
add("XLMRobertaForTokenClassification", TEXT, lambda: words(labels=tokens(vocabulary=4) % 2))
add("CamembertForMaskedLM", TEXT, masked)
add("XmodModel", TEXT, words, default_language="en_XX", languages=("en_XX", "de_DE"))
add("DistilBertForMaskedLM", {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4,
                              "hidden_dim": 64, "max_position_embeddings": 64}, masked)  # fmt: skip
add("AlbertForMaskedLM", TEXT, masked, embedding_size=16)
add("ElectraForPreTraining", TEXT, lambda: words(labels=tokens(vocabulary=4) % 2),
    embedding_size=16)  # fmt: skip
add("DebertaModel", TEXT, words, relative_attention=True, pos_att_type=["c2p", "p2c"])
add("DebertaV2ForMaskedLM", TEXT, masked, relative_attention=True, position_buckets=8,
    pos_att_type=["c2p", "p2c"], norm_rel_ebd="layer_norm", share_att_key=True)  # fmt: skip
add("MPNetForMaskedLM", TEXT, masked, max_position_embeddings=66)
add("ErnieModel", TEXT, words)
add("SplinterForQuestionAnswering", TEXT, words)
add("MegatronBertForMaskedLM", TEXT, masked)
add("MobileBertForMaskedLM", TEXT, masked, embedding_size=16, intra_bottleneck_size=16,
    true_hidden_size=16)  # fmt: skip
add("RemBertForMaskedLM", TEXT, masked, input_embedding_size=16, output_embedding_size=24)
add("IBertModel", TEXT, words)
add("SqueezeBertForMaskedLM", TEXT, masked, embedding_size=32)
add("ConvBertForMaskedLM", TEXT, masked, embedding_size=16, head_ratio=2, conv_kernel_size=3)
add("RoFormerForMaskedLM", TEXT, masked, embedding_size=16)
add("NystromformerForMaskedLM", TEXT, lambda: unmasked(16), num_landmarks=4,
    segment_means_seq_len=16, conv_kernel_size=3)  # fmt: skip
add("YosoForMaskedLM", TEXT, masked, use_expectation=True)
add("MraModel", TEXT, lambda: words(64), max_position_embeddings=128, block_per_row=2)
add("FNetForMaskedLM", TEXT, unmasked)
add("FunnelForMaskedLM", {"vocab_size": 99, "d_model": 32, "block_sizes": [1, 1],
                          "num_decoder_layers": 1, "n_head": 4, "d_head": 8, "d_inner": 64},
    masked)  # fmt: skip
add("BigBirdForMaskedLM", TEXT, lambda: words(64, labels=tokens(64)), block_size=4,
    num_random_blocks=2, attention_type="block_sparse")  # fmt: skip
add("LongformerForMaskedLM", TEXT, masked, attention_window=4, max_position_embeddings=66)
add("CanineModel", TEXT, words, downsampling_rate=2, local_transformer_stride=4,
    num_hash_buckets=16)  # fmt: skip
add("EsmForMaskedLM", TEXT, masked, position_embedding_type="rotary", mask_token_id=4)
add("LayoutLMForMaskedLM", TEXT,
    lambda: masked() | {"bbox": torch.tensor([3, 5, 20, 30]).repeat(2, 12, 1)},
    max_2d_position_embeddings=64)  # fmt: skip
add("TapasModel", TEXT, lambda: words(token_type_ids=torch.zeros(2, 12, 7, dtype=torch.long)))
add("ModernBertForMaskedLM", TEXT, masked, global_attn_every_n_layers=2, local_attention=4)
add("PerceiverForMaskedLM", {"vocab_size": 99, "d_model": 32, "num_latents": 8, "d_latents": 16,
                             "num_blocks": 1, "num_self_attends_per_block": 2,
                             "num_self_attention_heads": 2, "num_cross_attention_heads": 2,
                             "max_position_embeddings": 12},
    lambda: {"inputs": tokens(), "labels": tokens()})  # fmt: skip

# --- decoders of text
add("GPT2LMHeadModel", GPT, masked)
add("GPT2DoubleHeadsModel", GPT, lambda: {"input_ids": tokens().view(1, 2, 12)})
add("OpenAIGPTLMHeadModel", GPT, masked)
add("GPTNeoForCausalLM", TEXT, masked, num_layers=2, num_heads=4, window_size=4,
    attention_types=[[["global", "local"], 1]])  # fmt: skip
add("GPTJForCausalLM", GPT, masked, rotary_dim=4)
add("GPTNeoXForCausalLM", TEXT, masked)
add("GPTBigCodeForCausalLM", GPT, masked)
add("CodeGenForCausalLM", GPT, masked, rotary_dim=4)
add("CTRLLMHeadModel", GPT, masked, dff=64)
add("ImageGPTForCausalImageModeling", GPT, unmasked, vocab_size=99)
add("OPTForCausalLM", TEXT, masked, ffn_dim=64, word_embed_proj_dim=16)
add("BloomForCausalLM", {"vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4}, masked)
add("BioGptForCausalLM", TEXT, masked)
add("XGLMForCausalLM", {"vocab_size": 99, "d_model": 32, "num_layers": 2, "attention_heads": 4,
                        "ffn_dim": 64, "max_position_embeddings": 64}, masked)  # fmt: skip
add("MptForCausalLM", {"vocab_size": 99, "d_model": 32, "n_heads": 4, "n_layers": 2,
                       "max_seq_len": 64}, masked)  # fmt: skip
add("LlamaForCausalLM", GROUPED, masked)
add("LlamaForSequenceClassification", GROUPED, classes)
add("MistralForCausalLM", GROUPED, masked, sliding_window=4)
add("MixtralForCausalLM", EXPERTS, masked, num_local_experts=4, output_router_logits=True)
add("Qwen2ForCausalLM", GROUPED, masked)
add("Qwen2MoeForCausalLM", EXPERTS, masked, num_experts=4, moe_intermediate_size=16,
    shared_expert_intermediate_size=16)  # fmt: skip
add("Qwen3ForCausalLM", GROUPED, masked, head_dim=8)
add("GemmaForCausalLM", GROUPED, masked, head_dim=8)
add("Gemma2ForCausalLM", GROUPED, masked, head_dim=8, sliding_window=4)
add("Gemma3ForCausalLM", GROUPED, masked, head_dim=8, sliding_window=4)
add("PhiForCausalLM", GROUPED, masked)
add("Phi3ForCausalLM", GROUPED, masked)
add("FalconForCausalLM", TEXT, masked, multi_query=True, new_decoder_architecture=False)
add("StableLmForCausalLM", GROUPED, masked)
add("CohereForCausalLM", GROUPED, masked)
add("OlmoForCausalLM", GROUPED, masked, clip_qkv=8.0)
add("Olmo2ForCausalLM", GROUPED, masked)
add("OlmoeForCausalLM", EXPERTS, masked, num_experts=4)
add("GraniteForCausalLM", GROUPED, masked)
add("Starcoder2ForCausalLM", GROUPED, masked)
add("SmolLM3ForCausalLM", GROUPED, masked)
add("PersimmonForCausalLM", TEXT, masked)
add("NemotronForCausalLM", GROUPED, masked)
add("DeepseekV3ForCausalLM", EXPERTS, masked, n_routed_experts=4, n_group=2, topk_group=1,
    moe_intermediate_size=16, n_shared_experts=1, first_k_dense_replace=1, kv_lora_rank=8,
    q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
    num_key_value_heads=4)  # fmt: skip
add("GptOssForCausalLM", EXPERTS, masked, num_local_experts=4, head_dim=8, sliding_window=4)
add("MambaForCausalLM", TEXT, unmasked, state_size=4)
add("Mamba2ForCausalLM", TEXT, unmasked, state_size=8, head_dim=8, num_heads=8, n_groups=2,
    chunk_size=4)  # fmt: skip
add("RwkvForCausalLM", TEXT, unmasked, attention_hidden_size=32, context_length=64)
add("RecurrentGemmaForCausalLM", GROUPED, masked, lru_width=32, num_hidden_layers=3,
    attention_window_size=8)  # fmt: skip
add("JambaForCausalLM", EXPERTS, masked, num_experts=2, attn_layer_period=2, attn_layer_offset=1,
    expert_layer_period=2, expert_layer_offset=1, mamba_d_state=4, mamba_dt_rank=4,
    use_mamba_kernels=False)  # fmt: skip
add("XLNetLMHeadModel", {"vocab_size": 99, "d_model": 32, "n_layer": 2, "n_head": 4,
                         "d_inner": 64}, masked)  # fmt: skip
add("XLMWithLMHeadModel", {"vocab_size": 99, "emb_dim": 32, "n_layers": 2, "n_heads": 4,
                           "max_position_embeddings": 64}, masked)  # fmt: skip
add("FlaubertWithLMHeadModel", {"vocab_size": 99, "emb_dim": 32, "n_layers": 2, "n_heads": 4,
                                "max_position_embeddings": 64}, masked)  # fmt: skip
add("ReformerModelWithLMHead", {"vocab_size": 99, "hidden_size": 32, "num_attention_heads": 2,
                                "attention_head_size": 16, "feed_forward_size": 64,
                                "attn_layers": ["local", "lsh"], "is_decoder": True,
                                "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4,
                                "num_buckets": 4, "axial_pos_shape": (4, 4),
                                "axial_pos_embds_dim": (16, 16), "max_position_embeddings": 16,
                                "hash_seed": 0},
    lambda: unmasked(16), note="hashing with a fixed seed")  # fmt: skip

# --- encoders with decoders of text
add("T5ForConditionalGeneration", T5, translation)
add("MT5ForConditionalGeneration", T5, translation)
add("UMT5ForConditionalGeneration", T5, translation)
add("LongT5ForConditionalGeneration", T5, translation, local_radius=4)
add("SwitchTransformersForConditionalGeneration", T5, translation, num_experts=4,
    expert_capacity=8, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1)  # fmt: skip
add("BartForConditionalGeneration", SEQ2SEQ, translation)
add("BartForSequenceClassification", SEQ2SEQ,
    lambda: {"input_ids": torch.cat([tokens(11), torch.full((2, 1), 2)], 1),
             "labels": torch.tensor([0, 1])})  # fmt: skip
add("MBartForConditionalGeneration", SEQ2SEQ, translation)
add("M2M100ForConditionalGeneration", SEQ2SEQ, translation)
add("PegasusForConditionalGeneration", SEQ2SEQ, translation)
add("PegasusXForConditionalGeneration", SEQ2SEQ, translation, block_size=4)
add("MarianMTModel", SEQ2SEQ, translation)
add("BlenderbotForConditionalGeneration", SEQ2SEQ, translation)
add("BigBirdPegasusForConditionalGeneration", SEQ2SEQ, translation,
    attention_type="original_full")  # fmt: skip
add("PLBartForConditionalGeneration", SEQ2SEQ, translation)
add("LEDForConditionalGeneration", SEQ2SEQ, translation, attention_window=4,
    max_encoder_position_embeddings=64, max_decoder_position_embeddings=64)  # fmt: skip
add("ProphetNetForConditionalGeneration",
    {k: v for k, v in TEXT.items() if k != "num_hidden_layers"}, translation, encoder_ffn_dim=64,
    num_encoder_layers=2, num_encoder_attention_heads=4, decoder_ffn_dim=64,
    num_decoder_layers=2, num_decoder_attention_heads=4, ngram=2, num_buckets=8,
    decoder_start_token_id=0)  # fmt: skip

# --- images
add("ViTForImageClassification", VISION, lambda: classes(pixels))
add("ViTMAEForPreTraining", VISION, pixels, decoder_hidden_size=32, decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2, decoder_intermediate_size=64)  # fmt: skip
add("DeiTForImageClassification", VISION, lambda: classes(pixels))
add("BeitForImageClassification", VISION, lambda: classes(pixels))
add("Data2VecVisionModel", VISION, pixels)
add("Dinov2ForImageClassification", VISION, lambda: classes(pixels))
add("SwinForImageClassification", {"image_size": 32, "patch_size": 2, "embed_dim": 16,
                                   "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    lambda: classes(pixels))  # fmt: skip
add("Swinv2ForImageClassification", {"image_size": 32, "patch_size": 2, "embed_dim": 16,
                                     "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    lambda: classes(pixels))  # fmt: skip
add("ConvNextForImageClassification", {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2},
    lambda: classes(pixels))  # fmt: skip
add("ConvNextV2ForImageClassification", {"hidden_sizes": [8, 16], "depths": [1, 2],
                                         "num_stages": 2}, lambda: classes(pixels))  # fmt: skip
add("ResNetForImageClassification", {"embedding_size": 8, "hidden_sizes": [16, 32],
                                     "depths": [1, 2]}, lambda: classes(pixels))  # fmt: skip
add("RegNetForImageClassification", {"embedding_size": 8, "hidden_sizes": [16, 32],
                                     "depths": [1, 2], "groups_width": 8},
    lambda: classes(pixels))  # fmt: skip
add("BitForImageClassification", {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2],
                                  "num_groups": 4}, lambda: classes(pixels))  # fmt: skip
add("EfficientNetForImageClassification", {"width_coefficient": 0.1, "depth_coefficient": 0.1,
                                           "hidden_dim": 128, "image_size": 32},
    lambda: classes(pixels))  # fmt: skip
add("SegformerForSemanticSegmentation", {"num_encoder_blocks": 2, "depths": [1, 1],
                                         "sr_ratios": [2, 1], "hidden_sizes": [16, 32],
                                         "patch_sizes": [7, 3], "strides": [4, 2],
                                         "num_attention_heads": [1, 2], "mlp_ratios": [2, 2],
                                         "decoder_hidden_size": 16},
    lambda: {**pixels(), "labels": torch.randint(0, 2, (2, 32, 32))})  # fmt: skip
add("MobileViTForImageClassification", {"image_size": 32, "hidden_sizes": [16, 24, 32],
                                        "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32],
                                        "num_attention_heads": 4, "last_hidden_size": 32},
    lambda: classes(pixels))  # fmt: skip
add("MobileViTV2ForImageClassification", {"image_size": 32, "width_multiplier": 0.25,
                                          "base_attn_unit_dims": [32, 48, 64],
                                          "n_attn_blocks": [1, 1, 1]},
    lambda: classes(lambda: pixels(128)))  # fmt: skip
add("MobileNetV1ForImageClassification", {"depth_multiplier": 0.25, "min_depth": 8},
    lambda: classes(pixels))  # fmt: skip
add("MobileNetV2ForImageClassification", {"depth_multiplier": 0.25, "min_depth": 8},
    lambda: classes(pixels))  # fmt: skip
add("PoolFormerForImageClassification", {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    lambda: classes(pixels))  # fmt: skip
add("PvtV2ForImageClassification", {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
                                    "num_attention_heads": [1, 1, 2, 2]},
    lambda: classes(lambda: pixels(64)))  # fmt: skip
add("CvtForImageClassification", {"embed_dim": [8, 16, 32], "depth": [1, 2, 3],
                                  "num_heads": [1, 2, 2]},
    lambda: classes(lambda: pixels(64)))  # fmt: skip
add("LevitForImageClassification", {"image_size": 64, "hidden_sizes": [16, 24, 32],
                                    "num_attention_heads": [2, 3, 4], "key_dim": [4, 4, 4],
                                    "depths": [1, 1, 1]},
    lambda: classes(lambda: pixels(64)))  # fmt: skip
add("FocalNetForImageClassification", {"image_size": 32, "embed_dim": 16, "depths": [1, 1],
                                       "hidden_sizes": [16, 32], "focal_levels": [2, 2],
                                       "focal_windows": [3, 3]},
    lambda: classes(pixels))  # fmt: skip
add("HieraForImageClassification", {"image_size": [32, 32], "embed_dim": 8, "depths": [1, 1],
                                    "num_heads": [1, 2], "patch_stride": [4, 4],
                                    "query_stride": [2, 2], "num_query_pool": 1,
                                    "masked_unit_size": [4, 4]},
    lambda: classes(pixels))  # fmt: skip
add("SwiftFormerForImageClassification", {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16],
                                          "num_channels": 3},
    lambda: classes(lambda: pixels(64)))  # fmt: skip
add("DPTForDepthEstimation", VISION, pixels, backbone_out_indices=[0, 1], is_hybrid=False,
    neck_hidden_sizes=[8, 16], fusion_hidden_size=16, reassemble_factors=[2, 1],
    num_hidden_layers=2)  # fmt: skip
add("GLPNForDepthEstimation", {"num_encoder_blocks": 4, "depths": [1, 1, 1, 1],
                               "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2],
                               "decoder_hidden_size": 16},
    lambda: pixels(64))  # fmt: skip
add("VideoMAEForVideoClassification", VISION,
    lambda: {"pixel_values": torch.randn(2, 4, 3, 32, 32), "labels": torch.tensor([0, 1])},
    num_frames=4)  # fmt: skip
add("TimesformerForVideoClassification", VISION,
    lambda: {"pixel_values": torch.randn(2, 4, 3, 32, 32), "labels": torch.tensor([0, 1])},
    num_frames=4)  # fmt: skip
add("VivitForVideoClassification", VISION,
    lambda: {"pixel_values": torch.randn(2, 4, 3, 32, 32), "labels": torch.tensor([0, 1])},
    num_frames=4, tubelet_size=[2, 8, 8])  # fmt: skip
add("YolosModel", VISION, pixels, image_size=[32, 32], num_detection_tokens=4)
add("VitDetModel", VISION, pixels, window_size=2, window_block_indices=[0])

# --- images and text
TOWERS = {
    "text_config": {**TEXT, "num_labels": 2},
    "vision_config": VISION,
    "projection_dim": 16,
}
add("CLIPModel", TOWERS, lambda: captions() | {"return_loss": True})
add("ChineseCLIPModel", TOWERS, captions)
add("SiglipModel", TOWERS, lambda: captions() | {"return_loss": True})
add("BlipModel", TOWERS, lambda: captions() | {"return_loss": True},
    image_text_hidden_size=16)  # fmt: skip
add("BlipForConditionalGeneration", TOWERS, lambda: captions() | {"labels": tokens()})
add("GroupViTModel", {"projection_dim": 16, "projection_intermediate_dim": 16,
                      "text_config": TEXT,
                      "vision_config": {**VISION, "depths": [1, 1], "num_group_tokens": [4, 0],
                                        "num_output_groups": [4, 4]}},
    captions)  # fmt: skip
add("ViltModel", {**VISION, **TEXT}, captions, image_size=32)
add("VisualBertModel", TEXT, lambda: words(
        visual_embeds=torch.randn(2, 3, 16),
        visual_attention_mask=torch.ones(2, 3, dtype=torch.long),
        visual_token_type_ids=torch.ones(2, 3, dtype=torch.long)),
    visual_embedding_dim=16)  # fmt: skip
add("LxmertModel", TEXT, lambda: words(
        visual_feats=torch.randn(2, 3, 16), visual_pos=torch.rand(2, 3, 4)),
    visual_feat_dim=16, l_layers=1, x_layers=1, r_layers=1)  # fmt: skip
add("GitForCausalLM", TEXT, lambda: words(labels=tokens()) | pixels(),
    vision_config=VISION)  # fmt: skip

# --- sound
add("Wav2Vec2ForCTC", SPEECH, lambda: {**sound(), "labels": tokens(3)})
add(
    "Wav2Vec2ForSequenceClassification", SPEECH, lambda: {**sound(), "labels": torch.tensor([0, 1])}
)
add("Wav2Vec2ConformerModel", SPEECH, sound)
add("HubertForCTC", SPEECH, lambda: {**sound(), "labels": tokens(3)})
add("WavLMModel", SPEECH, sound)
add("UniSpeechModel", SPEECH, sound)
add("UniSpeechSatModel", SPEECH, sound)
add("Data2VecAudioModel", SPEECH, sound)
add("SEWModel", SPEECH, sound, squeeze_factor=2)
add("WhisperForConditionalGeneration", SEQ2SEQ,
    lambda: {"input_features": torch.randn(2, 16, 40), "labels": tokens(6)},
    num_mel_bins=16, max_source_positions=20, max_target_positions=32)  # fmt: skip
add("Speech2TextForConditionalGeneration", SEQ2SEQ,
    lambda: {"input_features": torch.randn(2, 40, 16), "labels": tokens(6)},
    input_feat_per_channel=16, conv_channels=16, num_conv_layers=2, conv_kernel_sizes=(3, 3),
    max_source_positions=40, max_target_positions=32)  # fmt: skip
add("SpeechT5ForSpeechToText", {**SPEECH, "encoder_layers": 2, "decoder_layers": 2,
                                "encoder_attention_heads": 4, "decoder_attention_heads": 4,
                                "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
                                "decoder_start_token_id": 2},
    lambda: {**sound(), "labels": tokens(6)})  # fmt: skip
add("ASTForAudioClassification", {**VISION, "num_mel_bins": 16, "max_length": 32},
    lambda: {"input_values": torch.randn(2, 32, 16), "labels": torch.tensor([0, 1])})  # fmt: skip
add("EncodecModel", {"num_filters": 4, "hidden_size": 16, "codebook_size": 16, "codebook_dim": 16,
                     "num_residual_layers": 1, "upsampling_ratios": [4, 2],
                     "num_lstm_layers": 1, "target_bandwidths": [24.0]},
    lambda: {"input_values": torch.randn(2, 1, 64)})  # fmt: skip
add("VitsModel", {"vocab_size": 38, "hidden_size": 16, "num_hidden_layers": 1,
                  "num_attention_heads": 2, "ffn_dim": 16, "flow_size": 16,
                  "spectrogram_bins": 9, "upsample_initial_channel": 16,
                  "upsample_rates": [4, 2], "upsample_kernel_sizes": [8, 4],
                  "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3]],
                  "prior_encoder_num_flows": 1, "prior_encoder_num_wavenet_layers": 1,
                  "posterior_encoder_num_wavenet_layers": 1, "duration_predictor_num_flows": 1},
    lambda: {"input_ids": tokens(8, 38)})  # fmt: skip

# --- time series
SERIES = {
    "prediction_length": 4,
    "context_length": 8,
    "lags_sequence": [1, 2],
    "num_time_features": 2,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}


def series() -> dict[str, Any]:
    return {
        "past_values": torch.randn(2, 10),
        "past_time_features": torch.randn(2, 10, 2),
        "past_observed_mask": torch.ones(2, 10),
        "future_values": torch.randn(2, 4),
        "future_time_features": torch.randn(2, 4, 2),
    }


def patches() -> dict[str, Any]:
    return {"past_values": torch.randn(2, 16, 3), "future_values": torch.randn(2, 4, 3)}


PATCHES = {
    "num_input_channels": 3,
    "context_length": 16,
    "prediction_length": 4,
    "patch_length": 4,
    "patch_stride": 4,
    "d_model": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 32,
}
add("TimeSeriesTransformerForPrediction", SERIES, series)
add("InformerForPrediction", SERIES, series)
add("AutoformerForPrediction", SERIES, series, label_length=4, moving_average=3)
add("PatchTSTForPrediction", PATCHES, patches)
add("PatchTSTForPretraining", PATCHES, lambda: {"past_values": torch.randn(2, 16, 3)})
add("PatchTSMixerForPrediction", {k: v for k, v in PATCHES.items() if k != "num_hidden_layers"},
    patches, num_layers=2)  # fmt: skip
add("DecisionTransformerModel", {"state_dim": 4, "act_dim": 2, "hidden_size": 32, "n_layer": 2,
                                 "n_head": 4, "max_ep_len": 16},
    lambda: {"states": torch.randn(2, 6, 4), "actions": torch.randn(2, 6, 2),
             "rewards": torch.randn(2, 6, 1), "returns_to_go": torch.randn(2, 6, 1),
             "timesteps": torch.arange(6).repeat(2, 1),
             "attention_mask": torch.ones(2, 6)})  # fmt: skip
