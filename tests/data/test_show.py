import io

import pytest
from rich.console import Console

from tests.templates import make_tokenizer
from tunesmith.data.render import Renderer
from tunesmith.data.sample import Sample
from tunesmith.data.show import bracketed, pieces, show


@pytest.fixture
def renderer() -> Renderer:
    return Renderer(make_tokenizer("qwen2.5"))


def chat(line: int, *contents: str) -> Sample:
    roles = ["user", "assistant"] * len(contents)
    return Sample(f"a.jsonl:{line}", tuple({"role": role, "content": content} for role, content in zip(roles, contents, strict=False)))


def printed(samples, renderer, terminal=False, **settings) -> tuple[int, str]:
    console = Console(
        file=io.StringIO(),
        force_terminal=terminal,
        width=100,
        soft_wrap=True,
        highlight=False,
        color_system="standard" if terminal else None,
    )
    code = show(samples, renderer, console=console, **settings)
    return code, console.file.getvalue()  # type: ignore[attr-defined]


def test_without_a_terminal_brackets_stand_around_what_is_learned(renderer):
    code, text = printed([chat(1, "Hi [x]", "Yes."), chat(2, "Hi", "No.")], renderer, n=1)
    [document] = renderer.documents(chat(1, "Hi [x]", "Yes."))
    assert code == 0
    assert "<|im_start|>user\nHi [x]<|im_end|>\n<|im_start|>assistant\n⟦Yes.<|im_end|>⟧\n" in text
    assert f"a.jsonl:1: {len(document.ids)} tokens, {document.learned} learned (" in text and "row kept" in text
    assert "a.jsonl:2" not in text and "\x1b" not in text


def test_in_a_terminal_tokens_are_coloured(renderer):
    _, text = printed([chat(1, "Hi", "Yes.")], renderer, terminal=True)
    green, grey = "\x1b[1;32m", "\x1b[90m"
    assert text.count(green) >= 1 and text.rindex(grey) < text.index(green) and "⟦" not in text


def test_pieces_are_whole_characters_and_whole_documents(renderer):
    [document] = renderer.documents(chat(1, "Hi 🙂🙂", "Yes 🙂中."))
    found = list(pieces(document, renderer.tokenizer))
    assert [token for piece in found for token in piece.ids] == document.ids
    assert "".join(piece.text for piece in found) == renderer.tokenizer.decode(document.ids)
    assert not any("�" in piece.text for piece in found)
    learned = "".join(piece.text for piece in found if piece.learned)
    assert learned == "Yes 🙂中.<|im_end|>"


def test_what_a_server_feeds_stands_beside_what_is_learned(renderer):
    row = chat(1, "Hi", "Yes.", "Why?", "So.")
    _, text = printed([row], renderer, served=True)
    prompt = len(renderer.prompt_ids(row.messages[:1]))
    assert f"before message 2: {prompt} tokens, the same tokens as trained" in text
    assert text.count("the same tokens as trained") == 2
    assert text.count("and should get: ") == 2 and "\nSo.<|im_end|>\n" in text


def test_rows_that_are_cut_or_cannot_be_used_say_so(renderer):
    code, text = printed([chat(1, "word " * 200, "Yes.")], renderer, max_length=64, served=True)
    assert code == 0 and "row cut" in text and "not the tokens trained" in text
    code, text = printed([chat(1, "word " * 200, "Yes.")], renderer, max_length=64, on_overlength="drop")
    assert code == 2 and "a.jsonl:1: not used, dropped: " in text
    renderer = Renderer(make_tokenizer("gemma-3"))
    code, text = printed([chat(1, "Hi", "Yes."), Sample("a.jsonl:2", (*chat(2, "Hi").messages, *chat(2, "Hi", "Yes.").messages))], renderer)
    assert code == 2 and "a.jsonl:2: cannot be used: " in text and "alternate" in text


def test_documents_of_a_rewritten_history_are_numbered():
    renderer = Renderer(make_tokenizer("qwen3"))
    row = chat(1, "Hi", "Yes.", "Why?", "So.")
    _, text = printed([row], renderer)
    assert "document 1 of 2" in text and "document 2 of 2" in text
    assert all(bracketed(document, renderer.tokenizer) in text for document in renderer.documents(row))
    assert "1 conversations of which turns became documents of their own" in text
