"""The grammar over tokens: walks read back, constants have one spelling, dead ends are gone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llarva.instructions.automaton import GrammarError, build_grammar
from llarva.instructions.format import InstructionFormat
from llarva.instructions.grammar import compile_grammar
from llarva.instructions.numbers import BinNumbers, DecimalNumbers, Range
from llarva.instructions.reader import AnswerError
from llarva.instructions.template import Constant, Table, Words, read_parts

MODE = "end_effector_delta"
BINS = BinNumbers(256, {"trace": Range((0.0, 0.0), (128.0, 128.0)), f"action:{MODE}": Range((-1.0,) * 7, (1.0,) * 7)})
FORMATS = {
    kind: InstructionFormat("llarva-workbench-v1", numbers, "panda", 2, 2, 3, (128, 128))
    for kind, numbers in (("decimal", DecimalNumbers()), ("bins", BINS))
}
CHARACTERS = [*map(chr, range(32, 127))]
BASE = ["", "</s>", "\ufffd", *CHARACTERS]


def spell(vocabulary, tokens, rng):
    """A random legal walk: its token ids and text."""
    state, ids = tokens.start, []
    while state != tokens.end:
        ids.append(int(rng.choice(tokens.allowed(state))))
        state = tokens.advance(state, ids[-1])
    assert ids[-1] == 1
    return ids[:-1], "".join(vocabulary[i] for i in ids[:-1])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.booleans(),
    st.lists(st.text("[], .-0123456789The<>", min_size=2, max_size=6), max_size=40),
    st.integers(0, 2**32),
)
def test_any_walk_under_any_vocabulary_reads_back(kind, with_trace, extra, seed):
    form, rng = FORMATS[kind], np.random.default_rng(seed)
    vocabulary = [*BASE, *extra, *form.number_tokens(), *form.phrases()]
    tokens = compile_grammar(form.grammar(MODE, with_trace), vocabulary, end_id=1)
    for _ in range(3):
        _, text = spell(vocabulary, tokens, rng)
        back = form.parse(text, MODE, with_trace)
        assert form.answer(back.trace, back.actions, MODE) == text


@pytest.mark.parametrize("kind", FORMATS)
def test_every_answer_can_be_spelled_and_constants_in_one_way(kind):
    form, rng = FORMATS[kind], np.random.default_rng(0)
    vocabulary = [*BASE, " -", ", ", "], [", *form.number_tokens(), *form.phrases()]
    tokens = compile_grammar(form.grammar(MODE), vocabulary, end_id=1)
    order = sorted(set(vocabulary) - {"", "</s>"}, key=len, reverse=True)
    for _ in range(20):
        text = form.answer(rng.uniform(0, 128, (3, 2)), rng.uniform(-1, 1, (2, 7)), MODE)
        state, offset = tokens.start, 0
        while offset < len(text):
            word = next(w for w in order if text.startswith(w, offset) and vocabulary.index(w) in tokens.allowed(state))
            state, offset = tokens.advance(state, vocabulary.index(word)), offset + len(word)
        assert tokens.forced(state) == 1 and tokens.advance(state, 1) == tokens.end
    opening = vocabulary.index("The 2-D visual trace: ")
    assert tokens.allowed(tokens.start).tolist() == [opening] and tokens.forced(tokens.start) == opening


def test_a_number_token_is_never_spelled_by_characters():
    form = FORMATS["bins"]
    vocabulary = [*BASE, *form.number_tokens(), *form.phrases()]
    tokens = compile_grammar(form.grammar(MODE), vocabulary, end_id=1)
    state = tokens.advance(tokens.start, tokens.forced(tokens.start))
    assert [vocabulary[i] for i in tokens.allowed(state)] == list(form.number_tokens())
    assert len(tokens) == 1 + 6 + 1 + 14 + 1 + 1 + 1  # opening, trace, middle, actions, full stop, complete, end


def test_dense_tables_agree_with_the_sparse_ones_and_the_end_waits():
    form = FORMATS["bins"]
    vocabulary = [*BASE, *form.number_tokens(), *form.phrases()]
    tokens = compile_grammar(form.grammar(MODE), vocabulary, end_id=1)
    assert tokens.mask.shape == tokens.next.shape == (len(tokens), len(vocabulary))
    for state in range(len(tokens)):
        assert np.flatnonzero(tokens.mask[state]).tolist() == tokens.allowed(state).tolist() != []
        for token in tokens.allowed(state):
            assert tokens.next[state, token] == tokens.advance(state, int(token))
    assert (tokens.next[~tokens.mask] == -1).all()
    assert tokens.allowed(tokens.end).tolist() == [1] and tokens.advance(tokens.end, 1) == tokens.end
    with pytest.raises(GrammarError, match="Token 0 is not legal"):
        tokens.advance(tokens.start, 0)


def test_the_longest_token_inside_a_fixed_stretch_wins_but_choices_beyond_it_stay():
    grammar = build_grammar((Constant("ab: "), Table("a", "a", 1, 1, 1, flat=True)), DecimalNumbers())
    vocabulary = ["", "</s>", *CHARACTERS, "ab", "ab:", "a", ": [", " [", "[-", " [-", ": [-"]
    tokens = compile_grammar(grammar, vocabulary, end_id=1)
    assert [vocabulary[i] for i in tokens.allowed(tokens.start)] == ["ab:"]
    state = tokens.advance(tokens.start, vocabulary.index("ab:"))
    assert {vocabulary[i] for i in tokens.allowed(state)} == {" [", " [-"}


def test_vocabularies_that_lead_nowhere():
    form = FORMATS["decimal"]
    grammar = form.grammar(MODE)
    with pytest.raises(GrammarError, match="cannot spell"):
        compile_grammar(grammar, ["", "</s>", *(c for c in CHARACTERS if c != ".")], end_id=1)
    with pytest.raises(GrammarError, match="cannot spell"):
        compile_grammar(FORMATS["bins"].grammar(MODE), BASE, end_id=1)
    with pytest.raises(GrammarError, match="outside the vocabulary"):
        compile_grammar(grammar, BASE, end_id=len(BASE))
    no_five = [*(c for c in BASE if c != "5"), "15"]  # a way that exists only sometimes must never be a trap
    tokens = compile_grammar(grammar, no_five, end_id=1)
    rng = np.random.default_rng(0)
    for _ in range(20):
        form.parse(spell(no_five, tokens, rng)[1], MODE)


def test_free_text_and_open_lengths_have_no_grammar():
    with pytest.raises(GrammarError, match="free text"):
        build_grammar((Words("instruction"),), DecimalNumbers())


def test_bounded_size():
    form = InstructionFormat("llarva-workbench-v1", DecimalNumbers(), "panda", 5, 16, 30, (128, 128))
    tokens = compile_grammar(form.grammar("joint_velocity"), [*BASE, *form.phrases()], end_id=1)
    assert len(tokens.tokens) < 30_000 and len(tokens) < 4000


@pytest.mark.parametrize("limit", [1, 7, 9, 10, 96, 128, 199, 200, 640, 999, 1000, 9999])
def test_exactly_the_pixels_up_to_the_limit_are_legal(limit):
    grammar = build_grammar((Table("t", "trace", 1, 1, 1, flat=True, limits=(limit,)),), DecimalNumbers())
    for value in [*range(0, 1200), *range(1200, 10_000, 7), limit, limit + 1, 10_000, 99_999]:
        assert grammar.accepts(f"[{value}]") == (value <= limit)
    assert not any(grammar.accepts(f"[{text}]") for text in ("", "00", "01", "-1", "1.0", "1 "))


def test_exactly_the_canonical_decimals_are_legal():
    part = Table("a", "action", 1, 1, 1, flat=True)
    grammar, rng = build_grammar((part,), DecimalNumbers()), np.random.default_rng(0)
    for whole in (0, 1, 9, 10, 99, 100, 999):
        for text in (f"{whole}.0", f"-{whole}.5", f"{whole}.1234", f"{whole}.0001", f"{whole}.01"):
            assert grammar.accepts(f"[{text}]")
        for text in (
            f"{whole}",
            f"{whole}.",
            f"{whole}.10",
            f"{whole}.00",
            f"{whole}.12345",
            f"0{whole}.5",
            f"--{whole}.5",
        ):
            assert not grammar.accepts(f"[{text}]")
    assert not grammar.accepts("[1000.0]")
    for _ in range(2000):
        text = "[" + "".join(rng.choice(list("0019.-"), rng.integers(1, 9))) + "]"
        try:
            read_parts((part,), text, DecimalNumbers())
            assert grammar.accepts(text)
        except AnswerError:
            assert not grammar.accepts(text)


def test_dead_ends_are_cut_off():
    form = FORMATS["decimal"]
    vocabulary = [*(c for c in BASE if c != "."), "0.", "]].", *form.phrases()]  # "777" would need a lone "."
    tokens = compile_grammar(form.grammar(MODE), vocabulary, end_id=1)
    rng = np.random.default_rng(0)
    for _ in range(20):
        form.parse(spell(vocabulary, tokens, rng)[1], MODE)
    assert (np.diff(tokens.first) > 0).all()


def test_a_wording_with_its_own_token_is_never_reached_into():
    form = FORMATS["decimal"]
    vocabulary = [*BASE, "]].", "]]", " T", "The 2-D visual trace: [", "The", *form.phrases()]
    tokens = compile_grammar(form.grammar(MODE), vocabulary, end_id=1)
    rng = np.random.default_rng(0)
    for _ in range(10):
        ids, text = spell(vocabulary, tokens, rng)
        words = [vocabulary[i] for i in ids]
        assert words[0] == "The 2-D visual trace: " and ". The next action: " in words
        assert words.count("]].") <= 1 and text.endswith("]].")  # only at the very end


def test_the_tokenizers_own_spelling_of_an_answer_is_legal():
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    for form in FORMATS.values():
        rng = np.random.default_rng(0)
        answers = [form.answer(rng.uniform(0, 128, (3, 2)), rng.uniform(-1, 1, (2, 7)), MODE) for _ in range(200)]
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer.train_from_iterator(
            answers[:100], trainers.BpeTrainer(special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
        )
        tokenizer.add_tokens([AddedToken(t, normalized=False) for t in (*form.number_tokens(), *form.phrases())])
        vocabulary = [tokenizer.decode([i]) for i in range(tokenizer.get_vocab_size())]
        tokens = compile_grammar(form.grammar(MODE), vocabulary, end_id=1)
        for answer in answers[100:]:
            state = tokens.start
            for token in tokenizer.encode(answer).ids:
                state = tokens.advance(state, token)
            assert tokens.forced(state) == 1
