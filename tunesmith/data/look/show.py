"""What the model sees of a row: its tokens, coloured by what is learned, and beside it what a server would feed.

Texts are printed as they are: line breaks break the line, special tokens stand in their own words, and nothing is put in
but the ⟦ ⟧ around learned tokens where there are no colours. What is printed in colours can be copied and used again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunesmith.data.look.pairs import with_rejected
from tunesmith.data.look.served import Served, difference, served
from tunesmith.data.rendering.overlength import OnOverlength, fit
from tunesmith.data.rendering.render import Document, Renderer
from tunesmith.data.sample import BadRow, RowError, Sample
from tunesmith.data.sources import where

FED = ("bright_black", "white")  # two shades in turn, so that each token's border is seen
LEARNED = ("bold green", "bold bright_green")
AVOIDED = ("red", "bright_red")  # a rejected answer, or one judged bad
Shades = tuple[str, str]
WIDE = 100  # columns from which two texts stand beside each other
LEGEND = "learned: green; only fed: grey and white; not to be imitated: red; each change of shade is a new token"
LEGEND_PLAIN = "learned: between ⟦ and ⟧; only fed: the rest"
REJECTED, BAD = "rejected: not to be imitated", "judged bad: not to be imitated"
JUDGED = {True: "judged good", False: BAD, None: ""}


@dataclass(frozen=True, slots=True)
class Piece:
    """Some tokens (more than one where a character is spread over several) and what they say."""

    text: str
    ids: list[int]
    learned: bool


@dataclass(frozen=True, slots=True)
class View:
    """How rows are shown."""

    renderer: Renderer
    console: Console
    max_length: int
    on_overlength: OnOverlength
    served: bool

    @property
    def coloured(self) -> bool:
        return self.console.is_terminal and self.console.color_system is not None and not self.console.no_color

    @property
    def wide(self) -> bool:
        return self.console.is_terminal and self.console.width >= WIDE


def show(
    rows: Sequence[Sample | BadRow],
    renderer: Renderer,
    *,
    max_length: int = 1024,
    on_overlength: OnOverlength = "truncate",
    served: bool = False,
    console: Console | None = None,
) -> int:
    """Print the documents of the rows; 0, or 2 where one of them cannot be used.

    Where there are colours learned tokens are green; elsewhere they stand in ⟦ ⟧. `served`: what a server feeds before each
    learned answer, made by the model's own chat template, stands beside it and is compared token by token.
    """
    console = console or Console(soft_wrap=True, highlight=False)
    view = View(renderer, console, max_length, on_overlength, served)
    _line(view, LEGEND if view.coloured else LEGEND_PLAIN, "bright_black")
    usable = [_show_row(row, view) for row in rows]
    for note, count in sorted(renderer.notes.items()):
        _line(view, f"{count} {note}", "yellow")
    return 0 if all(usable) else 2


def _show_row(row: Sample | BadRow, view: View) -> bool:
    if isinstance(row, BadRow):
        _line(view, f"{where(row)}: cannot be used: {row.reason}", "red")
        return False
    usable = _show_sample(row, "chosen" if row.rejected else JUDGED[row.desirable], view)
    if row.rejected:
        return _show_sample(with_rejected(row), REJECTED, view) and usable
    return usable


def _show_sample(sample: Sample, judged: str, view: View) -> bool:
    """`judged`: what a preference says of the answer, which nothing learns from yet; "" for a row that is learned."""
    name = f"{sample.origin} ({judged})" if judged else sample.origin
    try:
        documents = view.renderer.documents(sample)
        fitted = fit(sample, documents, view.renderer, max_length=view.max_length, on_overlength=view.on_overlength)
    except RowError as error:
        _line(view, f"{name}: cannot be used: {error}", "red")
        return False
    fate = f"{fitted.fate}{': ' * bool(fitted.reason)}{fitted.reason}"
    for number, document in enumerate(fitted.documents, 1):
        of = f", document {number} of {len(fitted.documents)}" if len(fitted.documents) > 1 else ""
        does = "in the answer" if judged else "learned"
        size = f"{len(document.ids)} tokens, {document.learned} {does} ({document.learned / len(document.ids):.0%})"
        _line(view, f"{name}{of}: {size}, row {fate}", "bold cyan")
        shades = AVOIDED if judged in (REJECTED, BAD) else LEARNED
        _print_document(sample, replace(document, turns=_turns(document, documents)), view, shades)
        view.console.print()
    if not fitted.documents:
        _line(view, f"{name}: not used, {fate}", "red")
    return bool(fitted.documents)


def _turns(document: Document, documents: Sequence[Document]) -> tuple[int, ...]:
    """The messages that are learned, as the row counts them: a prompt that was shortened counts those that were left."""
    whole = any(other.ids[: len(document.ids)] == document.ids for other in documents)
    return document.turns if whole else documents[0].turns[:1]


def _print_document(sample: Sample, document: Document, view: View, shades: Shades) -> None:
    if not view.served:
        view.console.print(_drawn(document, view, shades))
        return
    if not document.turns:
        view.console.print(_drawn(document, view, shades))
        _line(view, "raw text: a server feeds its beginning and goes on with it", "cyan")
        return
    turns = [served(sample, turn, view.renderer) for turn in document.turns]
    for turn, (start, end) in zip(turns, document.spans, strict=True):
        _line(view, _verdict(turn, document.ids[:start], end - start, view), "cyan")
    last, answer = turns[-1].ids, document.ids[slice(*document.spans[-1])]
    heads = f"trained: {len(document.ids)} tokens", f"a server: {len(last)} tokens fed, {len(answer)} should follow"
    if view.wide:
        fed = Document(last + answer, ((len(last), len(last) + len(answer)),), sample.origin)
        table = Table(*heads, box=None, expand=True, header_style="cyan", padding=(0, 1), collapse_padding=True)
        for column in table.columns:
            column.ratio, column.overflow = 1, "fold"
        table.add_row(_drawn(document, view, shades), _drawn(fed, view, shades))
        view.console.print(table, soft_wrap=False)
        return
    for head, shown in zip(heads, (document, Document(last, (), sample.origin)), strict=True):  # the answer need not stand twice
        _line(view, head, "cyan")
        view.console.print(_drawn(shown, view, shades))


def _verdict(turn: Served, trained: list[int], answer: int, view: View) -> str:
    said = f"before message {turn.message + 1} a server feeds {len(turn.ids)} tokens ({turn.how})"
    at = difference(turn.ids, trained)
    if at is None:
        return f"{said}: equal to what was trained; {answer} tokens should follow"
    ours, theirs = (_token(ids, at, view) for ids in (trained, turn.ids))
    why = turn.reason(trained, view.renderer, view.max_length)
    return f"{said}: NOT what was trained: token {at + 1} is {theirs}, trained was {ours}{why}"


def _token(ids: list[int], at: int, view: View) -> str:
    return f"{_decode(view.renderer.tokenizer, ids[at : at + 1])!r} (id {ids[at]})" if at < len(ids) else "none, the end"


def _line(view: View, text: str, style: str) -> None:
    view.console.print(Text(text, style))


def _drawn(document: Document, view: View, shades: Shades) -> Text:
    tokenizer = view.renderer.tokenizer
    return _coloured(document, tokenizer, shades) if view.coloured else Text(bracketed(document, tokenizer))


def pieces(document: Document, tokenizer: Any) -> Iterator[Piece]:
    """The document in pieces that can be read on their own, in order; a piece is learned as a whole or not at all."""
    learned = [False] * len(document.ids)
    for start, end in document.spans:
        learned[start:end] = [True] * (end - start)
    pending: list[int] = []
    for index, token in enumerate(document.ids):
        pending.append(token)
        last = index + 1 == len(document.ids) or learned[index + 1] != learned[index]
        text = _decode(tokenizer, pending)
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


def _coloured(document: Document, tokenizer: Any, shades: Shades) -> Text:
    text = Text()
    for number, piece in enumerate(pieces(document, tokenizer)):
        text.append(piece.text, (shades if piece.learned else FED)[number % 2])
    return text
