"""Miniatures in the layout of the original LLaVA code, and what they compute, in plain torch."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_backbones import llama_tokenizer
from torch import Tensor
from torch.nn import functional as F

WIDTH, MLP, LAYERS, HEADS, EPS, THETA = 32, 48, 2, 2, 1e-5, 10000.0
VISION, VISION_MLP, VISION_LAYERS, VISION_HEADS, SIZE, PATCH = 16, 24, 3, 2, 42, 14
RANK, ALPHA = 4, 8
LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
           "mlp.up_proj", "mlp.down_proj")
CONFIG = {
    "model_type": "llava_llama", "architectures": ["LlavaLlamaForCausalLM"], "hidden_size": WIDTH,
    "intermediate_size": MLP, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
    "rms_norm_eps": EPS, "max_position_embeddings": 2048, "hidden_act": "silu", "mm_hidden_size": VISION,
    "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
    "mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False, "image_aspect_ratio": "pad", "use_mm_proj": True, "torch_dtype": "float32",
}
CLIP_CONFIG = {
    "model_type": "clip", "projection_dim": 16, "vision_config": {
        "model_type": "clip_vision_model", "hidden_size": VISION, "intermediate_size": VISION_MLP,
        "num_hidden_layers": VISION_LAYERS, "num_attention_heads": VISION_HEADS, "image_size": SIZE,
        "patch_size": PATCH, "hidden_act": "quick_gelu", "projection_dim": 16,
    },
}


def _random(generator: torch.Generator, *shape: int) -> Tensor:
    values = torch.randn(shape, generator=generator)
    return values / math.sqrt(shape[-1]) if len(shape) > 1 else values * 0.3 + 1


def text_tensors(vocabulary: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A Vicuna's tensors by their names."""
    shapes = {"q_proj": (WIDTH, WIDTH), "k_proj": (WIDTH, WIDTH), "v_proj": (WIDTH, WIDTH), "o_proj": (WIDTH, WIDTH),
              "gate_proj": (MLP, WIDTH), "up_proj": (MLP, WIDTH), "down_proj": (WIDTH, MLP)}
    found = {"model.embed_tokens.weight": torch.randn((vocabulary, WIDTH), generator=generator),
             "model.norm.weight": _random(generator, WIDTH), "lm_head.weight": _random(generator, vocabulary, WIDTH)}
    for k in range(LAYERS):
        for linear in LINEARS:
            found[f"model.layers.{k}.{linear}.weight"] = _random(generator, *shapes[linear.split(".")[1]])
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{k}.{norm}.weight"] = _random(generator, WIDTH)
        found[f"model.layers.{k}.self_attn.rotary_emb.inv_freq"] = torch.zeros(WIDTH // HEADS // 2)
    return found


def projector_tensors(generator: torch.Generator) -> dict[str, Tensor]:
    """The projector's tensors by their original names."""
    return {"model.mm_projector.0.weight": _random(generator, WIDTH, VISION),
            "model.mm_projector.0.bias": _random(generator, WIDTH),
            "model.mm_projector.2.weight": _random(generator, WIDTH, WIDTH),
            "model.mm_projector.2.bias": _random(generator, WIDTH)}


def clip_tensors(generator: torch.Generator) -> dict[str, Tensor]:
    """A CLIP's tensors by their names, with some of its text side."""
    patches = (SIZE // PATCH) ** 2
    found = {"vision_model.embeddings.class_embedding": _random(generator, VISION),
             "vision_model.embeddings.patch_embedding.weight": torch.randn((VISION, 3, PATCH, PATCH),
                                                                           generator=generator) * 0.05,
             "vision_model.embeddings.position_embedding.weight": _random(generator, patches + 1, VISION),
             "vision_model.embeddings.position_ids": torch.arange(patches + 1)[None],
             "text_model.final_layer_norm.weight": torch.ones(3), "logit_scale": torch.tensor(1.0),
             "visual_projection.weight": torch.ones(3, 3), "text_projection.weight": torch.ones(3, 3)}
    for norm in ("pre_layrnorm", "post_layernorm"):
        for part in ("weight", "bias"):
            found[f"vision_model.{norm}.{part}"] = _random(generator, VISION)
    for k in range(VISION_LAYERS):
        layer = f"vision_model.encoder.layers.{k}."
        for name, out, width in [*((f"self_attn.{x}_proj", VISION, VISION) for x in ("q", "k", "v", "out")),
                                 ("mlp.fc1", VISION_MLP, VISION), ("mlp.fc2", VISION, VISION_MLP)]:
            found[layer + name + ".weight"] = _random(generator, out, width)
            found[layer + name + ".bias"] = _random(generator, out)
        for norm in ("layer_norm1", "layer_norm2"):
            for part in ("weight", "bias"):
                found[f"{layer}{norm}.{part}"] = _random(generator, VISION)
    return found


def lora_tensors(generator: torch.Generator, text: dict[str, Tensor]) -> dict[str, Tensor]:
    """A LoRA on every linear layer of the text model, as peft names it."""
    found = {}
    for k in range(LAYERS):
        for linear in LINEARS:
            out, width = text[f"model.layers.{k}.{linear}.weight"].shape
            name = f"base_model.model.model.layers.{k}.{linear}"
            found[f"{name}.lora_A.weight"] = _random(generator, RANK, width)
            found[f"{name}.lora_B.weight"] = _random(generator, out, RANK) * 0.2
    return found


def save(tensors: dict[str, Tensor], folder: Path, stem: str, end: str, shards: int = 1) -> None:
    """Write tensors as one file or as shards with an index, pickled (".bin") or not (".safetensors")."""
    folder.mkdir(parents=True, exist_ok=True)
    names, places = list(tensors), {}
    for k in range(shards):
        part = {name: tensors[name].clone() for name in names[k::shards]}
        file = f"{stem}{end}" if shards == 1 else f"{stem}-{k + 1:05}-of-{shards:05}{end}"
        save_file(part, folder / file) if end == ".safetensors" else torch.save(part, folder / file)
        places |= dict.fromkeys(part, file)
    if shards > 1:
        (folder / f"{stem}{end}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def write_clip(folder: Path, tensors: dict[str, Tensor], end: str = ".bin") -> Path:
    """A CLIP folder."""
    save(tensors, folder, "pytorch_model" if end == ".bin" else "model", end)
    (folder / "config.json").write_text(json.dumps(CLIP_CONFIG))
    return folder


def write_text_files(folder: Path, **changes: object) -> None:
    """LLaVA's config.json and its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    llama_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": len(llama_tokenizer()), **changes}))


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:-1], heads, -1).transpose(-2, -3)


def _attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    return (scores.softmax(-1) @ v).transpose(-2, -3).flatten(-2)


def see(pixels: Tensor, clip: dict[str, Tensor], projector: dict[str, Tensor]) -> Tensor:
    """Image tokens [patches, WIDTH] of normalised `pixels` [3, H, W]: all layers but the last, no class token."""
    clip = {name.removeprefix("vision_model."): tensor for name, tensor in clip.items()}
    patches = F.conv2d(pixels[None], clip["embeddings.patch_embedding.weight"], stride=PATCH)[0].flatten(1).T
    x = torch.cat([clip["embeddings.class_embedding"][None], patches]) + clip["embeddings.position_embedding.weight"]
    x = F.layer_norm(x, (VISION,), clip["pre_layrnorm.weight"], clip["pre_layrnorm.bias"])
    for k in range(VISION_LAYERS - 1):
        p = {n.removeprefix(f"encoder.layers.{k}."): t for n, t in clip.items() if n.startswith(f"encoder.layers.{k}.")}
        h = F.layer_norm(x, (VISION,), p["layer_norm1.weight"], p["layer_norm1.bias"])
        q, key, v = (_heads(F.linear(h, p[f"self_attn.{n}_proj.weight"], p[f"self_attn.{n}_proj.bias"]), VISION_HEADS)
                     for n in "qkv")
        x = x + F.linear(_attention(q, key, v, False), p["self_attn.out_proj.weight"], p["self_attn.out_proj.bias"])
        h = F.layer_norm(x, (VISION,), p["layer_norm2.weight"], p["layer_norm2.bias"])
        h = F.linear(h, p["mlp.fc1.weight"], p["mlp.fc1.bias"])
        x = x + F.linear(h * torch.sigmoid(1.702 * h), p["mlp.fc2.weight"], p["mlp.fc2.bias"])
    h = F.linear(x[1:], projector["model.mm_projector.0.weight"], projector["model.mm_projector.0.bias"])
    return F.linear(F.gelu(h), projector["model.mm_projector.2.weight"], projector["model.mm_projector.2.bias"])


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + EPS) * weight


def _turn(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[-2])[:, None] * THETA ** (-torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def logits(
    ids: list[int], image: Tensor, text: dict[str, Tensor], lora: dict[str, Tensor] | None = None, mark: int = -200
) -> Tensor:
    """Logits [L, vocabulary] after `ids`, in which `mark` stands once for the image tokens `image`."""
    place = ids.index(mark)
    table = text["model.embed_tokens.weight"]
    x = torch.cat([table[torch.tensor(ids[:place], dtype=torch.long)], image, table[torch.tensor(ids[place + 1 :])]])

    def linear(h: Tensor, name: str) -> Tensor:
        out = h @ text[f"{name}.weight"].T
        if lora:
            a, b = (lora[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
            out = out + ALPHA / RANK * (h @ a.T) @ b.T
        return out

    for k in range(LAYERS):
        layer = f"model.layers.{k}."
        h = _norm(x, text[layer + "input_layernorm.weight"])
        q, key, v = (_heads(linear(h, f"{layer}self_attn.{n}_proj"), HEADS) for n in "qkv")
        x = x + linear(_attention(_turn(q), _turn(key), v, True), layer + "self_attn.o_proj")
        h = _norm(x, text[layer + "post_attention_layernorm.weight"])
        x = x + linear(F.silu(linear(h, layer + "mlp.gate_proj")) * linear(h, layer + "mlp.up_proj"),
                       layer + "mlp.down_proj")
    return _norm(x, text["model.norm.weight"]) @ text["lm_head.weight"].T
