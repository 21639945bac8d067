"""Token sequences: special ids belong to the checkpoint, the tiny model's stay what they were."""

from __future__ import annotations

import pytest
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
    encode_prompt,
    encode_row,
    make_processor,
    make_tokenizer,
    special_ids,
    vocabulary_texts,
)

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
