"""Labelled documents longer than `max_length`: the text is cut, never a label, and never in silence.

truncate   classify: the text loses its middle, as prompts do; tag: it loses its end, behind a word
split      tag only: pieces that end behind words, each word tagged once
drop       the row is left out
error      the run stops with the list of such rows
"""

from collections.abc import Sequence
from dataclasses import replace

from tunesmith.data.rendering.labelled import Labelled, LabelledDocument, before_answer, part_of
from tunesmith.data.rendering.overlength import Fitted, OnOverlength, shorten
from tunesmith.data.sample import Message, RowError, Sample


def fit(
    sample: Sample, documents: Sequence[LabelledDocument], renderer: Labelled, *, max_length: int, on_overlength: OnOverlength
) -> Fitted:
    """Documents that feed at most `max_length` tokens; or none, with the reason."""
    [document] = documents
    length = len(document.fed.ids)
    if length <= max_length:
        return Fitted([document], "kept")
    if on_overlength == "error":
        return Fitted([], "refused", f"{length} tokens")
    if on_overlength == "drop":
        return Fitted([], "dropped", f"{length} tokens, more than data.max_length {max_length}")
    if on_overlength == "split" and renderer.task == "classify":
        return Fitted([], "refused", f"{length} tokens in a text with one label; it cannot be split, take truncate or drop")
    try:
        if renderer.task == "classify":
            return Fitted([_without_middle(sample, renderer, max_length)], "cut")
        if on_overlength == "split":
            return Fitted(_pieces(sample, document, renderer, max_length), "split")
        return Fitted([_piece(sample, document, renderer, max_length, 0)[0]], "cut")
    except RowError as error:
        return Fitted([], "dropped", str(error))


def _without_middle(sample: Sample, renderer: Labelled, max_length: int) -> LabelledDocument:
    """The label stands at the last token, before which `max_length` - 1 others may stand."""

    def render(messages: Sequence[Message]) -> LabelledDocument:
        if renderer.input == "text":
            return renderer.documents(replace(sample, source=messages[0]["content"]))[0]
        return renderer.documents(replace(sample, messages=(*messages, *sample.messages[len(before_answer(sample)) :])))[0]

    asked = before_answer(sample) if renderer.input == "chat" else ({"role": "user", "content": renderer.feed(sample).source},)
    return shorten(list(asked), max_length - 1, render, renderer)


def _pieces(sample: Sample, document: LabelledDocument, renderer: Labelled, max_length: int) -> list[LabelledDocument]:
    pieces: list[LabelledDocument] = []
    at = 0
    while at < len(document.fed.words):
        piece, at = _piece(sample, document, renderer, max_length, at)
        pieces.append(piece)
    return pieces


def _piece(sample: Sample, whole: LabelledDocument, renderer: Labelled, max_length: int, first: int) -> tuple[LabelledDocument, int]:
    """The words from `first` on that fit, as a text of their own, and the word after them. Raises RowError where not one fits."""
    positions, words = whole.fed.positions, whole.fed.words
    around = positions[0] + len(whole.fed.ids) - positions[-1]  # tokens before, behind and of the first word, about
    before = positions[first - 1] if first else positions[0]
    last = first + sum(position - before + around <= max_length for position in positions[first:])
    while last > first:
        piece = renderer.documents(part_of(sample, words[first][0], words[last - 1][1]))[0]
        excess = len(piece.fed.ids) - max_length
        if excess <= 0:
            return piece, last
        last -= max(1, excess // 8)  # words have fewer than eight tokens
    raise RowError(f"what is written around the text leaves no room for a word of it in {max_length} tokens")
