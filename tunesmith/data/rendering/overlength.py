"""Documents longer than `max_length`: made to fit, left out, split or refused, and never in silence.

truncate   the answer stays learnable: trailing turns that do not fit go; then the longest message of the prompt loses
           its middle (instructions stand at a message's beginning, questions at its end); only an answer that alone
           takes more than half of `max_length` loses its end, and then no stop token is learned for it
split      raw text only: pieces of `max_length`, every token fed and learned once
drop       the row is left out
error      the run stops with the list of such rows
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

from tunesmith.data.rendering.render import Document, Renderer
from tunesmith.data.sample import Message, RowError, Sample

OnOverlength = Literal["truncate", "drop", "split", "error"]

GAP = " … "  # stands where a message lost its middle
SHORTENED = ("user", "tool")  # the messages that may lose their middle; a system prompt is the task itself


class _HasSpans(Protocol):
    @property
    def spans(self) -> tuple[tuple[int, int], ...]: ...


Spanned = TypeVar("Spanned", bound=_HasSpans)


@dataclass(frozen=True, slots=True)
class Fitted:
    """What became of one row's documents."""

    documents: list[Any]  # of the renderer's kind
    fate: Literal["kept", "cut", "split", "dropped", "refused"]
    reason: str = ""


def fit(sample: Sample, documents: Sequence[Document], renderer: Renderer, *, max_length: int, on_overlength: OnOverlength) -> Fitted:
    """Documents of at most `max_length` tokens, each with something learned; or none, with the reason.

    Raw text is split under `truncate` too: of a file that is one document nothing may be thrown away.
    """
    if all(len(document.ids) <= max_length for document in documents):
        return Fitted(list(documents), "kept")
    longest = max(len(document.ids) for document in documents)
    if on_overlength == "error":
        return Fitted([], "refused", f"{longest} tokens")
    if on_overlength == "drop":
        return Fitted([], "dropped", f"{longest} tokens, more than data.max_length {max_length}")
    if sample.text is not None:
        return Fitted([piece for document in documents for piece in _split(document, max_length, renderer)], "split")
    if on_overlength == "split":
        return Fitted([], "refused", f"{longest} tokens in a conversation; split is for raw text, take truncate or drop")
    fitting = [document for document in documents if len(document.ids) <= max_length]
    if fitting:  # turns that are documents of their own: those that do not fit go, as they do inside one document
        return Fitted(fitting, "cut")
    try:
        return Fitted([_truncate(sample, documents[0], renderer, max_length)], "cut")
    except RowError as error:
        return Fitted([], "dropped", str(error))


def _split(document: Document, max_length: int, renderer: Renderer) -> list[Document]:
    """Pieces that begin with BOS, or where the tokenizer has none with the piece before's last token, which is fed only."""
    pieces = []
    begin = renderer.bos
    rest = document.ids[len(begin) :] if begin else document.ids
    step = max_length - 1
    ends = range(0, max(len(rest) - (0 if begin else 1), 1), step)
    for start in ends:
        ids = begin + rest[start : start + step] if begin else rest[start : start + step + 1]
        pieces.append(Document(ids, ((1, len(ids)),), document.origin))
    return pieces


def _truncate(sample: Sample, document: Document, renderer: Renderer, max_length: int) -> Document:
    whole = [n for n, (_, end) in enumerate(document.spans) if end <= max_length]
    if whole:
        count = len(whole)
        return replace(
            document,
            ids=document.ids[: document.spans[count - 1][1]],
            spans=document.spans[:count],
            answers=document.answers[:count],
            turns=document.turns[:count],
        )
    turn, (start, end) = document.turns[0], document.spans[0]
    history = [message | {"learn": False} if message["role"] == "assistant" else message for message in sample.messages[:turn]]
    messages = [*history, sample.messages[turn]]
    room = max_length - min(end - start, max_length // 2)  # tokens for the prompt; an answer of half of max_length always fits
    shortened = shorten(messages, room, lambda those: renderer.documents(replace(sample, messages=tuple(those)))[-1], renderer)
    if len(shortened.ids) <= max_length:
        return shortened
    ids = shortened.ids[:max_length]
    return replace(shortened, ids=ids, spans=((shortened.spans[0][0], len(ids)),), cut=True)


def shorten(messages: list[Message], room: int, render: Callable[[Sequence[Message]], Spanned], renderer: Any) -> Spanned:
    """Take out the oldest exchanges, then the middle of the longest messages, until what stands before the document's first
    span has at most `room` tokens. `renderer`: anything with an `encoder`.

    Raises RowError where nothing is left to take.
    """
    document = render(messages)
    while (size := document.spans[0][0]) > room:
        asked = [n for n, message in enumerate(messages) if message["role"] == "user"]
        longest = max(
            (n for n, m in enumerate(messages) if m["role"] in SHORTENED), key=lambda n: len(messages[n]["content"]), default=None
        )
        if len(asked) > 1:
            del messages[asked[0] : asked[1]]
        elif longest is not None and len(messages[longest]["content"]) > 2 * len(GAP):
            text = messages[longest]["content"]
            tokens = max(len(renderer.encoder.text(text)), 1)
            keep = len(text) * (tokens - (size - room) - 2) // tokens - len(GAP)
            messages[longest] = messages[longest] | {"content": without_middle(text, min(keep, len(text) - len(GAP) - 1))}
        else:
            raise RowError(f"nothing is left to shorten: {size} tokens of system prompt and tools leave no room for the answer")
        document = render(messages)
    return document


def without_middle(text: str, keep: int) -> str:
    """The first and the last `keep` / 2 characters, at blanks where there are any near, with `GAP` between them."""
    if keep <= 0:
        return GAP.strip()
    head, tail = text[: keep - keep // 2], text[len(text) - keep // 2 :] if keep >= 2 else ""
    cut, start = head.rfind(" "), tail.find(" ")
    head = head[:cut] if cut > len(head) // 2 else head
    tail = tail[start:] if 0 <= start <= len(tail) // 2 else tail
    return head.rstrip() + GAP + tail.lstrip()
