"""Miniatures of pre-trained image-text models: the real classes and tokenizers' layouts, random weights."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    GemmaConfig,
    LlamaConfig,
    LlavaConfig,
    PaliGemmaConfig,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    SiglipVisionConfig,
    SmolVLMConfig,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from llarva.models.backbones import create, llava_images

MERGES = ["T h", "Th e", "▁ The", "▁ n", "e x", "ex t", "▁n ext", "▁ a", "c t", "i o", "io n", "▁a ct", "▁act ion",
          "▁ ["]
CHARACTERS = string.ascii_letters + string.digits + string.punctuation


def llama_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """As Llama's: "▁" for blanks, a token for every byte, no token behind a special one begins with a blank."""
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    pieces = ["<unk>", "<s>", "</s>", *bytes_, "▁", *CHARACTERS, *(m.replace(" ", "") for m in MERGES)]
    vocabulary = {piece: k for k, piece in enumerate(dict.fromkeys(pieces))}
    merges = [(a, b) for a, b in (m.split(" ") for m in MERGES)]
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    given = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **given)


def byte_tokenizer(specials: Sequence[str], **named: str) -> PreTrainedTokenizerFast:
    """As GPT-2's and Qwen's: bytes as letters, no first token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("T", "h"), ("Th", "e"), ("Ġ", "The"), ("Ġ", "n"), ("e", "x"), ("ex", "t"), ("Ġn", "ext")]
    vocabulary = {piece: k for k, piece in enumerate([*alphabet, *(a + b for a, b in pairs)])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in specials])
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **named)


TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "max_position_embeddings": 2048, "initializer_range": 0.2}
VISION = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}


def llava_parts() -> tuple[Any, Any, Any]:
    tokenizer = llama_tokenizer(extra_special_tokens={"image_token": "<image>"})
    clip = CLIPVisionConfig(**VISION, image_size=42, patch_size=14, hidden_act="quick_gelu", projection_dim=16)
    config = LlavaConfig(
        vision_config=clip,
        text_config=LlamaConfig(**TEXT, vocab_size=-(-len(tokenizer) // 64) * 64, pad_token_id=0, rms_norm_eps=1e-5),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-2,
        vision_feature_select_strategy="default", image_seq_length=9,
    )
    return config, tokenizer, llava_images(42)


def smolvlm_parts() -> tuple[Any, Any, Any]:
    marks = ["<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<global-img>", "<image>"]
    begin, end = "<|im_start|>", "<end_of_utterance>"
    tokenizer = byte_tokenizer(marks, bos_token=begin, eos_token=end, pad_token=begin)
    config = SmolVLMConfig(
        vision_config={**VISION, "image_size": 64, "patch_size": 8},
        text_config={**TEXT, "model_type": "llama", "vocab_size": len(tokenizer), "pad_token_id": 0},
        scale_factor=4, image_token_id=tokenizer.convert_tokens_to_ids("<image>"), tie_word_embeddings=False,
    )
    images = SmolVLMImageProcessorPil(
        do_image_splitting=True, size={"longest_edge": 128}, max_image_size={"longest_edge": 64}
    )
    return config, tokenizer, images


def qwen_parts() -> tuple[Any, Any, Any]:
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
             "<|video_pad|>"]
    tokenizer = byte_tokenizer(marks, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad", "vision_start",
                                                                             "vision_end")}
    config = Qwen2VLConfig(
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2,
                       "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2},
        text_config={**TEXT, "vocab_size": len(tokenizer), "rope_parameters": {"rope_type": "default",
                     "mrope_section": [2, 3, 3], "rope_theta": 10000.0}, "bos_token_id": None, "eos_token_id": None},
        image_token_id=ids["image_pad"], video_token_id=ids["video_pad"], vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"], tie_word_embeddings=False,
    )
    return config, tokenizer, Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=112 * 112)


def paligemma_parts() -> tuple[Any, Any, Any]:
    marks = ["<pad>", "<eos>", "<bos>", "<image>"]
    tokenizer = byte_tokenizer(marks, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**VISION, image_size=28, patch_size=14, vision_use_head=False),
        text_config=GemmaConfig(**TEXT, head_dim=16, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), projection_dim=32, hidden_size=32,
    )
    images = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    images.image_seq_length = 4
    return config, tokenizer, images


PARTS = {"llava": llava_parts, "smolvlm": smolvlm_parts, "qwen-vl": qwen_parts, "paligemma": paligemma_parts}


def write_backbone(family: str, folder: Path, shard: str = "5GB", seed: int = 0) -> Any:
    """Save a miniature as transformers saves its models; returns the model that was saved."""
    config, tokenizer, images = PARTS[family]()
    model = create(config, seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    images.save_pretrained(folder)
    return model
