"""What the model sees of a row: its tokens, coloured by what is learned."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from tunesmith.data.overlength import OnOverlength, fit
from tunesmith.data.render import Document, Renderer
from tunesmith.data.sample import RowError, Sample

FED = ("bright_black", "white")  # two shades in turn, so that each token's border is seen
LEARNED = ("bold green", "bold bright_green")


@dataclass(frozen=True, slots=True)
class Piece:
    """Some tokens (more than one where a character is spread over several) and what they say."""

    text: str
    ids: list[int]
    learned: bool


def show(
    samples: Sequence[Sample],
    renderer: Renderer,
    n: int = 3,
    *,
    max_length: int = 1024,
    on_overlength: OnOverlength = "truncate",
    served: bool = False,
    console: Console | None = None,
) -> int:
    """Print the documents of the first `n` samples; 0, or 2 where one of them cannot be used.

    In a terminal learned tokens are green; elsewhere they stand in ⟦ ⟧. `served`: the prompt that a server would feed
    before each learned answer is made anew and compared with the document.
    """
    console = console or Console(soft_wrap=True, highlight=False)
    code = 0
    for sample in samples[:n]:
        try:
            fitted = fit(sample, renderer.documents(sample), renderer, max_length=max_length, on_overlength=on_overlength)
        except RowError as error:
            console.print(Text(f"{sample.origin}: cannot be used: {error}", "red"))
            code = 2
            continue
        code = code if fitted.documents else 2
        _print_row(sample, fitted.documents, f"{fitted.fate}{': ' * bool(fitted.reason)}{fitted.reason}", renderer, served, console)
    _print_notes(renderer, console)
    return code


def _print_row(sample: Sample, documents: Sequence[Document], fate: str, renderer: Renderer, served: bool, console: Console) -> None:
    for number, document in enumerate(documents, 1):
        of = f", document {number} of {len(documents)}" if len(documents) > 1 else ""
        share = document.learned / len(document.ids)
        console.print(
            Text(f"{sample.origin}{of}: {len(document.ids)} tokens, {document.learned} learned ({share:.0%}), row {fate}", "bold cyan")
        )
        console.print(_coloured(document, renderer.tokenizer) if console.is_terminal else Text(bracketed(document, renderer.tokenizer)))
        if served:
            _print_served(sample, document, renderer, console)
        console.print()
    if not documents:
        console.print(Text(f"{sample.origin}: not used, {fate}", "red"))


def _print_served(sample: Sample, document: Document, renderer: Renderer, console: Console) -> None:
    for turn, (start, end) in zip(document.turns, document.spans, strict=True):
        ids = renderer.prompt_ids(sample.messages[:turn], sample.tools)
        same = ids == document.ids[:start]
        verdict = "the same tokens as trained" if same else "not the tokens trained, since the row was cut to data.max_length"
        console.print(Text(f"a server feeds before message {turn + 1}: {len(ids)} tokens, {verdict}", "cyan"))
        console.print(Text(renderer.tokenizer.decode(ids, skip_special_tokens=False)))
        console.print(Text(f"and should get: {end - start} tokens", "cyan"))
        console.print(Text(renderer.tokenizer.decode(document.ids[start:end], skip_special_tokens=False)))


def _print_notes(renderer: Renderer, console: Console) -> None:
    for note, count in sorted(renderer.notes.items()):
        console.print(Text(f"{count} {note}", "yellow"))


def pieces(document: Document, tokenizer: Any) -> Iterator[Piece]:
    """The document in pieces that can be read on their own, in order; a piece is learned as a whole or not at all."""
    learned = [False] * len(document.ids)
    for start, end in document.spans:
        learned[start:end] = [True] * (end - start)
    pending: list[int] = []
    for index, token in enumerate(document.ids):
        pending.append(token)
        last = index + 1 == len(document.ids) or learned[index + 1] != learned[index]
        text = tokenizer.decode(pending, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if last or len(pending) > 8 or not text.endswith("�"):  # a character has four bytes at most
            yield Piece(text, pending, learned[index])
            pending = []


def bracketed(document: Document, tokenizer: Any) -> str:
    """The document's text with ⟦ ⟧ around each stretch that is learned."""
    text, at = "", 0
    for start, end in document.spans:
        text += _decode(tokenizer, document.ids[at:start]) + "⟦" + _decode(tokenizer, document.ids[start:end]) + "⟧"
        at = end
    return text + _decode(tokenizer, document.ids[at:])


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _coloured(document: Document, tokenizer: Any) -> Text:
    text = Text()
    for number, piece in enumerate(pieces(document, tokenizer)):
        text.append(piece.text, (LEARNED if piece.learned else FED)[number % 2])
    return text
