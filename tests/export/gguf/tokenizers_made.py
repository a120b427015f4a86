"""Tokenizers of each kind that is written, trained on a few lines: real merges, so that a wrong cut gives other ids."""

from typing import Any

from tests.conftest import CHATML
from tunesmith.export.gguf.opened import HARD_TEXTS
from tunesmith.export.gguf.splits import GPT2

LINES = [*HARD_TEXTS, "the theirs there 2024 1234 12 they'll DON'T  blanks   and\n\n\nlines\t\ttabs 12345678 Hello WORLD hello"] * 8


def byte_level(steps: tuple[str, ...], ignore_merges: bool = False, normalizer: Any = None) -> Any:
    """A byte-level tokenizer that cuts text by these steps (as in `splits.NAMES`)."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    parts: list[Any] = []
    for step in steps:
        if step == "digits":
            parts.append(pre_tokenizers.Digits(individual_digits=True))
        elif step != GPT2:
            parts.append(pre_tokenizers.Split(Regex(step), behavior="isolated"))
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=GPT2 in steps))
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False))
    backend.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in ("<|bos|>", "<|im_start|>", "<|im_end|>")])
    backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return _fast(backend, bos_token="<|bos|>", eos_token="<|im_end|>")


def characters(prefix: str, gemma: bool = False, phi3: bool = False) -> Any:
    """A tokenizer of SentencePiece's kind; a blank is put in front "always", at "first" or "never". As in Phi-3's, special tokens may
    take the blanks behind them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    trained.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=700, show_progress=False))
    import json

    model = json.loads(trained.to_str())["model"]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += [word for word, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    merges = [tuple(merge) for merge in model["merges"]]
    vocab = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if prefix == "always":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif gemma:
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    kept, others = ["<unk>", "<s>", *(["<|endoftext|>"] if phi3 else [])], ["</s>", "<|im_start|>", "<|im_end|>"]
    for word in (*kept, *others):
        backend.add_special_tokens([AddedToken(word, special=True, normalized=False, rstrip=phi3 and word in others)])
    runs = [AddedToken("▁▁▁▁▁", special=False, normalized=True), AddedToken("▁the", special=False, normalized=False)]
    backend.add_tokens(runs if gemma else [])
    bos = ("<s>", backend.token_to_id("<s>"))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[bos])
    return _fast(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", template="{{ bos_token }}" + CHATML)


def _fast(backend: Any, template: str = CHATML, **names: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.chat_template = template
    return tokenizer
