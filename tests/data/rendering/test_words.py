"""Where words end among tokens: by characters, never across a word's end, for tokenizers of every kind."""

import itertools

import pytest

from tests.templates import TEMPLATES, make_tokenizer
from tunesmith.data.rendering.tokens import Encoder
from tunesmith.data.rendering.words import Placed, align, place, place_inside, words_of


def said(text: str) -> list[str]:
    return [text[start:end] for start, end in words_of(text)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Angela Merkel's visit, 2019.", ["Angela", "Merkel", "'", "s", "visit", ",", "2019", "."]),
        ("彭小军认为Riddick5号，", ["彭", "小", "军", "认", "为", "Riddick5", "号", "，"]),
        ("  a\n\tb ", ["a", "b"]),
        ("snake_case", ["snake_case"]),
        ("हिन्दी में", ["हिन्दी", "में"]),  # vowel signs are no letters to a regular expression
        ("กินข้าว", ["กิ", "น", "ข้", "า", "ว"]),  # no blanks; a mark stays with its letter
        ("می‌خواهم", ["می‌خواهم"]),  # joined by a character of no width
        ("", []),
    ],
)
def test_words(text, words):
    assert said(text) == words


def pieces(encoder: Encoder, text: str, words=None) -> list[str]:
    """What the tokens up to each word's last one say."""
    [placed] = place(encoder, [text], split=True)
    [found] = align(encoder, [placed], [words if words is not None else words_of(text)])
    bounds = [0, *(position + 1 for position in found.positions)]
    return encoder.decode([found.ids[a:b] for a, b in itertools.pairwise(bounds)])


def merging(*words: str):
    """A byte-level tokenizer in whose vocabulary the words are one token each, whatever stands inside them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    backend.train_from_iterator([word for word in words for _ in range(50)], trainer)
    backend.add_special_tokens(["</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def sentencepiece():
    """A tokenizer of SentencePiece's kind: a blank before the first word, bytes for what it does not know."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(set("▁AngelaMerkelParisvisited.,"))
    vocabulary = {"<unk>": 0, "</s>": 1} | {f"<0x{n:02X}>": n + 2 for n in range(256)}
    for piece in [*letters, "▁A", "ng", "▁P", "ar", "is"]:
        vocabulary.setdefault(piece, len(vocabulary))
    merges = [("▁", "A"), ("n", "g"), ("▁", "P"), ("a", "r"), ("i", "s")]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def test_a_token_across_a_words_end_is_cut_there_and_only_there():
    encoder = Encoder(merging("北京", " Paris).", "visited"))
    assert len(encoder.batch(["visited"])[0]) == len(encoder.batch(["北京"])[0]) == 1  # the cuts are worth something
    assert pieces(encoder, "visited北京 Paris).") == ["visited", "北", "京", " Paris", ")", "."]
    [placed] = place(encoder, ["visited北京"], split=True)
    [found] = align(encoder, [placed], [[(0, 7), (7, 9)]])  # with 北京 as one word nothing is cut
    assert found.ids == encoder.batch(["visited北京"])[0] and found.positions == (0, 1)


def test_tokens_of_a_characters_bytes_stay_together():
    encoder = Encoder(merging("x"))
    assert [len(ids) for ids in encoder.batch(["京"])] == [3]
    assert pieces(encoder, "京a京") == ["京", "a", "京"]


@pytest.mark.parametrize("family", TEMPLATES)
def test_every_family_ends_its_words_where_they_end(family):
    encoder = Encoder(make_tokenizer(family))
    text = "Angela Merkel, 彭小军 (x)."
    assert "".join(pieces(encoder, text)) == text
    assert [piece.strip() for piece in pieces(encoder, text)] == said(text)


def test_a_blank_before_the_first_word():
    encoder = Encoder(sentencepiece())
    assert encoder.adds_blank
    assert [piece.strip() for piece in pieces(encoder, "Angela visited 京.")] == ["Angela", "visited", "京", "."]
    inside = place_inside(encoder, "Paris")
    assert encoder.tokenizer.convert_ids_to_tokens(inside.ids)[0] == "P"  # not ▁P
    assert inside.spans[-1] == (3, 5)


def test_words_without_a_token_are_left_out_and_words_that_share_one_are_one():
    encoder = Encoder(make_tokenizer("qwen2.5"))
    nothing = Placed("a b", [1], [(0, 1)])
    assert align(encoder, [nothing], [[(0, 1), (2, 3)]])[0].words == ((0, 1),)
    # decoding shows that what was cut apart says something else: the tokens stay
    whole = Placed("abcd", encoder.batch(["wxyz"])[0][:1], [(0, 4)])
    [found] = align(encoder, [whole], [[(0, 2), (2, 4)]])
    assert found.ids == whole.ids and found.positions == (0,) and found.words == ((0, 4),)


def test_tokenizers_that_do_not_say_their_places(monkeypatch):
    """Slow ones have no offsets; what decoding tells is the same."""
    encoder = Encoder(make_tokenizer("llama-3.2"))
    text = "Angela 彭小军, x."
    expected = pieces(encoder, text)
    placed = encoder.placed([text], split=True)[0]
    assert [end for _, end in encoder._found(text, placed[0])] == [end for _, end in placed[1]]
    monkeypatch.setattr(Encoder, "placed", lambda self, texts, split: [(ids, self._found(t, ids)) for t in texts for ids in [placed[0]]])
    assert pieces(encoder, text) == expected
