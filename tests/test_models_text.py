"""Token sequences: special ids belong to the checkpoint, the tiny model's stay what they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlavaProcessor, PreTrainedTokenizerFast

from llarva.errors import LlarvaError
from llarva.models.text import (
    BOS,
    EOS,
    IMAGE,
    PAD,
    POINT_NUMBER,
    PROMPT,
    TEXT,
    SpecialIds,
    Turn,
    add_names,
    encode_prompt,
    encode_row,
    make_processor,
    make_tokenizer,
    relate_names,
    special_ids,
    vocabulary_texts,
)
from llarva.models.tiny import TinySize, make_tiny

SIZE = 32  # pixels: four image tokens


def tiny() -> LlavaProcessor:
    numbers = [f"<{i}>" for i in range(8)]
    return make_processor(make_tokenizer(["push the red button"], ["Can you"], numbers), SIZE)


def like_llava(**without: None) -> LlavaProcessor:
    """As LLaVA-1.5 has it: unknown, bos and eos first, image and padding behind all words."""
    words = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", "push", "it", "<0>", "<1>"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens={"image_token": "<image>"}, **{**special, **without}
    )
    return make_processor(wrapped, SIZE)


def test_the_tiny_models_tokens_stay() -> None:
    processor = tiny()
    assert special_ids(processor) == SpecialIds(PAD, BOS, EOS, IMAGE) == SpecialIds(0, 1, 2, 3)
    assert encode_prompt(processor, "<image>\npush")[:5] == [1, 3, 3, 3, 3]
    texts = vocabulary_texts(processor.tokenizer)
    assert texts[:4] == [""] * 4 and "Can you" in texts and "<7>" in texts


def test_another_tokenizers_ids_are_its_own() -> None:
    processor = like_llava()
    special = special_ids(processor)
    assert (special.bos, special.eos) == (1, 2) and min(special.pad, special.image) >= 7
    assert encode_prompt(processor, "<image>push it") == [1, *[special.image] * 4, 3, 4]
    ids, kinds = encode_row(processor, [Turn("push", "<1> it", (POINT_NUMBER,))], range(5, 7))
    assert ids == [1, *[special.image] * 4, 3, 6, 4, 2]
    assert kinds == [PROMPT] * 6 + [POINT_NUMBER, TEXT, TEXT]
    texts = vocabulary_texts(processor.tokenizer)
    assert [i for i, text in enumerate(texts) if not text] == sorted({0, 1, 2, special.pad, special.image})


@pytest.mark.parametrize("name", ["pad", "bos", "eos"])
def test_a_missing_special_token_is_named(name: str) -> None:
    with pytest.raises(LlarvaError, match=f"no {name} token"):
        special_ids(like_llava(**{f"{name}_token": None}))


def test_names_that_share_a_word_start_alike() -> None:
    names = ["red jar", "blue jar", "red button", "tap"]
    tokenizer = make_tokenizer(names, [], [f"<{k}>" for k in range(16)], names)

    def embeddings(seed: int) -> torch.Tensor:
        model = make_tiny(TinySize(), len(tokenizer), IMAGE, [], seed=0)
        relate_names(model, tokenizer, names, seed)
        table = model.get_input_embeddings().weight.detach()
        return table[[tokenizer.convert_tokens_to_ids(name) for name in names]]

    found = embeddings(1)
    alike = torch.nn.functional.cosine_similarity(found[:, None], found[None], dim=-1)
    assert alike[0, 1] > 0.3 and alike[0, 2] > 0.3 and alike[1, 2].abs() < 0.25 and alike[:3, 3].abs().max() < 0.25
    assert torch.allclose(found.std(dim=1), torch.tensor(0.5), atol=0.1)
    assert torch.equal(found, embeddings(1)) and not torch.equal(found, embeddings(2))


def test_a_new_name_starts_as_the_names_it_resembles(tmp_path: Path) -> None:
    names = ["red button", "blue button", "gripper"]
    tokenizer = make_tokenizer(names, ["press the button "], [f"<{k}>" for k in range(16)], names)
    tokenizer.save_pretrained(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    model = make_tiny(TinySize(), len(tokenizer), IMAGE, [], seed=0)
    before = model.get_input_embeddings().weight.detach().clone()
    alike = before[[tokenizer.convert_tokens_to_ids(name) for name in names[:2]]].mean(dim=0)
    pieces = before[tokenizer.encode("tap", add_special_tokens=False)].mean(dim=0)
    new = add_names(model, tokenizer, ["red button", "pink button", "tap"])
    assert new == [len(before), len(before) + 1]
    assert tokenizer.encode("pink button", add_special_tokens=False) == new[:1]
    after = model.get_input_embeddings().weight.detach()
    assert torch.allclose(after[new[0]], alike) and torch.allclose(after[new[1]], pieces)
    assert torch.equal(after[: len(before)], before) and add_names(model, tokenizer, names) == []
