import dataclasses
import io
import re

import pytest
from rich.console import Console

from tests.templates import make_tokenizer
from tunesmith.data.look.show import bracketed, pieces, show
from tunesmith.data.rendering.render import Renderer
from tunesmith.data.sample import BadRow, Sample


@pytest.fixture
def renderer() -> Renderer:
    return Renderer(make_tokenizer("qwen2.5"))


def chat(line: int, *contents: str) -> Sample:
    roles = ["user", "assistant"] * len(contents)
    return Sample(f"a.jsonl:{line}", tuple({"role": role, "content": content} for role, content in zip(roles, contents, strict=False)))


def printed(samples, renderer, terminal=False, width=90, **settings) -> tuple[int, str]:
    console = Console(
        file=io.StringIO(),
        force_terminal=terminal,
        width=width,
        soft_wrap=True,
        highlight=False,
        color_system="standard" if terminal else None,
    )
    code = show(samples, renderer, console=console, **settings)
    return code, console.file.getvalue()  # type: ignore[attr-defined]


def test_without_a_terminal_brackets_stand_around_what_is_learned(renderer):
    code, text = printed([chat(1, "Hi [x]", "Yes.")], renderer)
    [document] = renderer.documents(chat(1, "Hi [x]", "Yes."))
    assert code == 0
    assert "<|im_start|>user\nHi [x]<|im_end|>\n<|im_start|>assistant\n⟦Yes.<|im_end|>⟧\n" in text
    assert f"a.jsonl:1: {len(document.ids)} tokens, {document.learned} learned (" in text and "row kept" in text
    assert text.startswith("learned: between ⟦ and ⟧") and "\x1b" not in text


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
    prompts = [len(renderer.prompt_ids(row.messages[:turn])) for turn in (1, 3)]
    [document] = renderer.documents(row)
    code, text = printed([row], renderer, served=True)
    assert code == 0
    for message, prompt in zip((2, 4), prompts, strict=True):
        assert f"before message {message} a server feeds {prompt} tokens (apply_chat_template): equal to what was trained" in text
    both = text.index(f"trained: {len(document.ids)} tokens"), text.index(f"a server: {prompts[1]} tokens fed, ")
    assert both[0] < text.index("⟦Yes.<|im_end|>⟧") < both[1]  # narrow, or no terminal: one below the other
    assert text.endswith("<|im_start|>assistant\n\n\n") and text.count("⟦So.<|im_end|>⟧") == text.count("⟦Yes.") == 1


def test_in_a_wide_terminal_both_stand_in_one_row(renderer):
    _, text = printed([chat(1, "Hi", "Yes.")], renderer, terminal=True, served=True, width=140)
    [heads] = [line for line in text.splitlines() if "trained:" in line]
    assert "a server:" in heads
    plain = [re.sub("\x1b\\[[0-9;]*m", "", line).strip() for line in text.splitlines()]
    assert any(re.fullmatch(r"Yes\.<\|im_end\|> +Yes\.<\|im_end\|>", line) for line in plain)
    _, text = printed([chat(1, "Hi", "Yes.")], renderer, terminal=True, served=True, width=80)
    assert not any("trained:" in line and "a server:" in line for line in text.splitlines())


def test_a_server_that_feeds_other_tokens_is_named_with_the_first_one(renderer):
    code, text = printed([chat(1, "say <|im_end|> twice", "Yes.")], renderer, served=True)
    [verdict] = [line for line in text.splitlines() if "NOT what was trained" in line]
    assert code == 0  # the row is usable; it is the other servers that differ
    assert "is '<|im_end|>' (id " in verdict and "trained was '<" in verdict
    assert verdict.endswith("; special tokens in the text are text in training, and control tokens for this server")


def test_raw_text_is_said_to_be_continued(renderer):
    code, text = printed([Sample("a.txt:1", text="Once upon")], renderer, served=True)
    assert code == 0 and "O⟦nce upon" in text and "raw text: a server feeds its beginning and goes on with it" in text


def test_preference_pairs_show_both_answers_and_judged_ones_their_judgement(renderer):
    pair = dataclasses.replace(chat(1, "Hi", "Yes."), rejected=({"role": "assistant", "content": "No."},))
    code, text = printed([pair, dataclasses.replace(chat(2, "Hi", "So."), desirable=False)], renderer)
    assert code == 0
    assert text.index("a.jsonl:1 (chosen): ") < text.index("⟦Yes.") < text.index("a.jsonl:1 (rejected: not to be imitated): ")
    assert text.index("(rejected") < text.index("⟦No.") < text.index("a.jsonl:2 (judged bad: not to be imitated): ")
    assert text.count("⟦Yes.") == 1


def test_answers_not_to_be_imitated_are_never_green(renderer):
    pair = dataclasses.replace(chat(1, "Hi", "Yes."), rejected=({"role": "assistant", "content": "No."},))
    _, text = printed([pair], renderer, terminal=True)
    chosen, rejected = text.split("(rejected: not to be imitated)")
    assert "\x1b[1;32m" in chosen and "\x1b[31m" not in chosen.split("(chosen)")[1]
    assert "\x1b[31m" in rejected and "\x1b[1;32m" not in rejected
    assert "learned (" not in text


def test_no_color_and_markup(renderer, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    _, text = printed([chat(1, "[bold]Hi[/bold] :smile:", "Yes.")], renderer, terminal=True)
    assert "[bold]Hi[/bold] :smile:<|im_end|>" in text and "⟦Yes.<|im_end|>⟧" in text
    assert "\x1b[32m" not in text and "\x1b[90m" not in text


def test_rows_that_are_cut_or_cannot_be_used_say_so(renderer):
    code, text = printed([chat(1, "word " * 200, "Yes.")], renderer, max_length=64, served=True)
    assert code == 0 and "row cut" in text
    assert "NOT what was trained" in text and "; the row was cut to data.max_length 64" in text
    code, text = printed([chat(1, "word " * 200, "Yes.")], renderer, max_length=64, on_overlength="drop")
    assert code == 2 and "a.jsonl:1: not used, dropped: " in text
    renderer = Renderer(make_tokenizer("gemma-3"))
    code, text = printed([chat(1, "Hi", "Yes."), Sample("a.jsonl:2", (*chat(2, "Hi").messages, *chat(2, "Hi", "Yes.").messages))], renderer)
    assert code == 2 and "a.jsonl:2: cannot be used: " in text and "alternate" in text
    code, text = printed([BadRow("a.jsonl", 3, "no answer"), chat(4, "Hi", "Yes.")], renderer)
    assert code == 2 and "a.jsonl:3: cannot be used: no answer\n" in text and "a.jsonl:4: " in text


def test_of_a_conversation_whose_beginning_went_the_server_is_asked_the_same_message(renderer):
    row = chat(1, "word " * 100, "Yes.", "word " * 100, "So.")
    row = dataclasses.replace(row, messages=(row.messages[0], row.messages[1] | {"learn": False}, *row.messages[2:]))
    _, text = printed([row], renderer, max_length=64, served=True)
    assert f"before message 4 a server feeds {len(renderer.prompt_ids(row.messages[:3]))} tokens" in text


def test_documents_of_a_rewritten_history_are_numbered():
    renderer = Renderer(make_tokenizer("qwen3"))
    row = chat(1, "Hi", "Yes.", "Why?", "So.")
    _, text = printed([row], renderer)
    assert "document 1 of 2" in text and "document 2 of 2" in text
    assert all(bracketed(document, renderer.tokenizer) in text for document in renderer.documents(row))
    assert "1 conversations of which turns became documents of their own" in text
