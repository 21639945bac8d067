"""Small models whose answers are hard to guess, questions to them, and what the library's own generation answers."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from llarva.decoding import Decoder, plain_generate, untrained_checkpoint
from llarva.instructions.format import InstructionFormat
from llarva.instructions.numbers import BinNumbers, DecimalNumbers, Range
from llarva.models.checkpoints import Checkpoint
from llarva.models.tiny import TinySize
from llarva.prefill import image_features

MODE = "end_effector_delta"
TEXTS = ["push the red button", "open the top drawer"]
SMALL = TinySize(width=64, mlp_width=96, heads=4, vision_layers=1, text_layers=2, image_size=64)
FORMAT = InstructionFormat(
    "llarva-workbench-v1",
    BinNumbers(64, {"trace": Range((0.0,) * 2, (64.0,) * 2), f"state:{MODE}": Range((-1.0,) * 7, (1.0,) * 7),
                    f"action:{MODE}": Range((-1.0,) * 7, (1.0,) * 7)}),
    "panda", history=1, n=3, trace_points=4, image_size=(64, 64),
)
DECIMAL = replace(FORMAT, numbers=DecimalNumbers(), n=2, trace_points=2)
RUNNERS = ("lean", "library", "static")
WORDS = ("push the red button", "go", "open the top drawer, then wait", "it", "take the block that is not blue")


def make_checkpoint(format: InstructionFormat = FORMAT, seed: int = 0) -> Checkpoint:
    checkpoint = untrained_checkpoint(format, TEXTS, seed, SMALL)
    _tell_images_apart(checkpoint)
    with torch.no_grad():  # large output weights: the answers of a fresh model would repeat one number
        generator = torch.Generator().manual_seed(seed)
        head = checkpoint.model.lm_head.weight
        head.copy_(torch.randn(head.shape, generator=generator))
        for layer in checkpoint.model.model.language_model.layers:  # and sharp attention: rows should differ
            layer.self_attn.q_proj.weight.mul_(6)
    return checkpoint


def pictures(rng: np.random.Generator, count: int) -> np.ndarray:
    """Images [count, 64, 64, 3] of coloured squares; noise would look the same to a tower that nobody trained."""
    return rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)


def _tell_images_apart(checkpoint: Checkpoint) -> None:
    """A fresh projector says nearly the same of all images: take away what they have in common."""
    projector, said = checkpoint.model.model.multi_modal_projector, list[torch.Tensor]()
    hook = projector.linear_2.register_forward_hook(lambda layer, inputs, output: said.append(output))
    image_features(checkpoint.model, checkpoint.processor, pictures(np.random.default_rng(0), 8))
    hook.remove()
    with torch.no_grad():
        projector.linear_2.bias -= said[0].mean((0, 1))
        projector.positions.mul_(0.2)


class Asker:
    """One checkpoint, its decoders by way of decoding, and the library's answers to what was asked already."""

    def __init__(self, format: InstructionFormat, seed: int) -> None:
        self.checkpoint, self.decoders, self.said = make_checkpoint(format, seed), {}, {}

    def decoder(self, runner: str, draft: bool, with_trace: bool, steps: int | None = None) -> Decoder:
        key = runner, draft, with_trace, steps
        if key not in self.decoders:
            self.decoders[key] = Decoder(self.checkpoint, MODE, with_trace, runner=runner, draft=draft, steps=steps)
        return self.decoders[key]

    def question(self, number: int, with_trace: bool = True) -> tuple[np.ndarray, str]:
        image = pictures(np.random.default_rng(number // 2), 1)[0]  # two questions about each picture
        state = np.random.default_rng(number).uniform(-1, 1, (1, 7))
        return image, self.checkpoint.format.prompt(WORDS[number % len(WORDS)], state, MODE, with_trace)

    def questions(self, numbers: Sequence[int], with_trace: bool = True) -> tuple[np.ndarray, list[str]]:
        images, prompts = zip(*(self.question(number, with_trace) for number in numbers), strict=True)
        return np.stack(images), list(prompts)

    def plain(self, decoder: Decoder, numbers: Sequence[int], with_trace: bool = True) -> list[list[int]]:
        """What plain generation answers."""
        for number in numbers:
            if (number, with_trace) not in self.said:
                question = self.question(number, with_trace)
                self.said[number, with_trace] = plain_generate(self.checkpoint, decoder.grammar, *question,
                                                               numbers=decoder.numbers)
        return [self.said[number, with_trace] for number in numbers]

    def check(self, numbers: list[int], runner: str, draft: bool, with_trace: bool, likely: int | None) -> None:
        """Ask, with drafts that are the right answers, spoiled from character `likely` on by another row's."""
        decoder = self.decoder(runner, draft, with_trace)
        expected = self.plain(decoder, numbers, with_trace)
        texts = [spelled(decoder, ids) for ids in expected]
        spoiled = [text[:likely] + other[likely:] for text, other in zip(texts, texts[1:] + texts[:1], strict=True)]
        decoded = decoder.generate(*self.questions(numbers, with_trace), spoiled if likely is not None else None)
        assert decoded.token_ids == expected


def plain_answers(
    checkpoint: Checkpoint, decoder: Decoder, images: np.ndarray, prompts: Sequence[str]
) -> list[list[int]]:
    """What plain generation says by the rules of `decoder`."""
    return [plain_generate(checkpoint, decoder.grammar, *pair, numbers=decoder.numbers)
            for pair in zip(images, prompts, strict=True)]


def spelled(decoder: Decoder, ids: Sequence[int]) -> str:
    """The text of an answer's tokens, without the closing one."""
    return "".join(decoder.vocabulary[token] for token in ids[:-1])


def wrong_here_and_there(decoder: Decoder, truth: Sequence[int], wrong: float, rng: np.random.Generator) -> str:
    """A legal answer that has the token of `truth` in each of its states, or with probability `wrong` another one."""
    grammar = decoder.grammar
    right, state = {}, grammar.start
    for token in truth:
        right[state], state = token, grammar.advance(state, token)
    ids, state = list[int](), grammar.start
    while state != grammar.end:
        token = right.get(state)
        if token is None or rng.random() < wrong:
            token = int(rng.choice(grammar.allowed(state)))
        ids.append(token)
        state = grammar.advance(state, token)
    return spelled(decoder, ids)
