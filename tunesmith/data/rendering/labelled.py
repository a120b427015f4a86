"""A sample -> the tokens that are fed, the places at which a head predicts labels, and those labels.

    classify   BOS + text                            one label, at the last token
               └──────── fed ─┘ ↑ label
    tag        BOS + Angela Mer kel visited Paris    one label a word (BIO), at the last token of each
                       ↑B-PER    ↑I-PER ↑O     ↑B-LOC

With `input` text the bare text is fed, as classifiers are usually trained; with chat the prompt that the model's template
writes of it, with the generation prompt. Training, evaluation and chat all take what they feed from here.
"""

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tunesmith.data.formats.labels import LONGEST
from tunesmith.data.rendering import bio, notes
from tunesmith.data.rendering.render import Renderer
from tunesmith.data.rendering.tokens import LONG, Marked
from tunesmith.data.rendering.words import Aligned, Placed, Span, align, place, place_inside, words_of
from tunesmith.data.sample import Message, RowError, Sample
from tunesmith.errors import UserError

RULES = 1  # part of the fingerprint: raise it when the same sample comes to give other tokens
LISTED = 10  # labels named in a message
MARKS = ("\ue0d0\ue0d1", "\uf5d2\uf5d3", "\uf7d4\uf7d5")  # of private use: one stands for the text to find its place in a prompt
UNMARKED = (
    "no entities are marked in it: task.name=tag learns rows of tagged tokens (conll) and of marked spans (spans); "
    "task.name=generate learns answers that are written"
)

Task = Literal["classify", "tag"]
Input = Literal["text", "chat"]


@dataclass(frozen=True, slots=True)
class Fed:
    """What is fed of one text. The label of `words[n]` is predicted from the hidden state of token `positions[n]`."""

    ids: list[int]
    positions: tuple[int, ...]
    words: tuple[Span, ...]  # characters of `source`; when classifying the whole of it
    source: str
    origin: str
    said: str  # what the tokens say: `source` behind a BOS, or the template's prompt


@dataclass(frozen=True, slots=True)
class LabelledDocument:
    """What is fed, and one label for each of its positions."""

    fed: Fed
    targets: tuple[int, ...]
    meant: str | tuple[bio.Entity, ...]  # the row's own label or entities, for the proof

    @property
    def ids(self) -> list[int]:
        """The tokens and behind them the labels, as `Documents.labelled` has them."""
        return [*self.fed.ids, *self.targets]

    @property
    def spans(self) -> tuple[Span, ...]:
        return tuple((position, position + 1) for position in self.fed.positions)

    @property
    def origin(self) -> str:
        return self.fed.origin

    @property
    def cut(self) -> bool:
        """A label has no end that could be lost."""
        return False


class Labelled:
    """A Renderer for tasks with a head. `labels`: in the order of the head's rows. Raises UserError where two are the same."""

    labelled: Literal[True] = True

    def __init__(self, renderer: Renderer, task: Task, labels: Sequence[str], input: Input = "text"):
        if twice := [label for label, number in Counter(labels).items() if number > 1]:
            raise UserError(f"task.labels: {', '.join(map(repr, twice[:LISTED]))} stands there more than once")
        self.renderer, self.task, self.labels, self.input = renderer, task, tuple(labels), input
        self._ids = {label: number for number, label in enumerate(self.labels)}
        self._names = dict.fromkeys(labels if task == "classify" else bio.types_in(labels))
        self.tokenizer, self.encoder, self.bos = renderer.tokenizer, renderer.encoder, renderer.bos

    # --- what others ask of any renderer ---

    def __reduce__(self) -> tuple[Any, ...]:
        return Labelled, (self.renderer, self.task, self.labels, self.input)

    @property
    def notes(self) -> Counter[str]:
        return self.renderer.notes

    @notes.setter
    def notes(self, counted: Counter[str]) -> None:
        self.renderer.notes = counted

    @property
    def thinking(self) -> str:
        return self.renderer.thinking

    @property
    def date(self) -> str:
        return self.renderer.date

    @property
    def template(self) -> str:
        """Of what is fed: bare text has none."""
        return self.renderer.template if self.input == "chat" else ""

    @property
    def prints_date(self) -> bool:
        return self.input == "chat" and self.renderer.prints_date

    @property
    def stops(self) -> set[int]:
        return self.renderer.stops

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides which tokens and labels a sample gives."""
        told = [RULES, self.renderer.fingerprint, self.task, self.labels, self.input]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def documents(self, sample: Sample) -> list[LabelledDocument]:
        """One document. Raises RowError where the sample has no label, or one that is not learned."""
        found = self.documents_of([sample])[0]
        if isinstance(found, RowError):
            raise found
        return found

    def documents_of(self, samples: Sequence[Sample]) -> list[list[LabelledDocument] | RowError]:
        """As `documents`, for many samples, whose texts are tokenised together; a row's error stands in its place."""
        result: list[list[LabelledDocument] | RowError] = []
        for sample, fed in zip(samples, self.fed_of(samples), strict=True):
            try:
                if isinstance(fed, RowError):
                    raise fed
                result.append([self._labelled(sample, fed)])
            except RowError as error:
                result.append(error)
        self.notes += Counter()  # leaves out zeros
        return result

    # --- what is fed ---

    def sample(self, text: str, origin: str = "") -> Sample:
        """A text that somebody asks about, without a label."""
        return Sample(origin, ({"role": "user", "content": text},), source=text)

    def feed(self, sample: Sample) -> Fed:
        """What is fed of a sample, labelled or not. Raises RowError."""
        found = self.fed_of([sample])[0]
        if isinstance(found, RowError):
            raise found
        return found

    def fed_of(self, samples: Sequence[Sample]) -> list[Fed | RowError]:
        """As `feed`, for many samples; a row's error stands in its place."""
        errors: dict[int, RowError] = {}
        asked: list[_Asked] = []
        for number, sample in enumerate(samples):
            try:
                asked.append(self._asked(number, sample))
            except RowError as error:
                errors[number] = error
        found: dict[int, Fed | RowError] = dict(errors)
        make = self._whole if self.task == "classify" else self._by_words
        found.update({each.number: fed for each, fed in zip(asked, make(asked), strict=True)})
        return [found[number] for number in range(len(samples))]

    def _asked(self, number: int, sample: Sample) -> "_Asked":
        source = text_of(sample)
        if not source.strip():
            raise RowError("the text is empty")
        words = (sample.words or words_of(source)) if self.task == "tag" else ((0, len(source)),)
        if self.input == "text":
            self.notes[notes.SPECIAL_TEXT] += any(self.encoder.find(source))
            return _Asked(number, sample.origin, source, words, Marked(source))
        messages, tools = before_answer(sample), sample.tools
        prompt = self.renderer.prompt(messages, tools)
        self.notes[notes.SPECIAL_TEXT] += bool(prompt.hidden)
        begin, end = (0, 0) if self.task == "classify" else self._find(prompt, messages, tools, source)
        return _Asked(number, sample.origin, source, words, prompt, begin, end)

    def _find(self, prompt: Marked, messages: Sequence[Message], tools: Sequence[dict[str, Any]], source: str) -> tuple[int, int]:
        """Where in the prompt's text the source begins and ends: where a mark in its place is written. Raises RowError."""
        mark = next(mark for mark in MARKS if mark not in prompt.text)
        text = self.renderer.prompt(with_text(messages, source, mark), tools).text
        before, _, after = text.partition(mark)
        end = len(prompt.text) - len(after)
        if prompt.part(len(before), end).plain().strip() != source.strip():
            raise RowError("the model's chat template changes the text that is tagged; take task.input=text")
        return len(before), end

    def _whole(self, asked: Sequence["_Asked"]) -> list[Fed | RowError]:
        """Each text as one, its label at the last token."""
        prompts = [each.prompt for each in asked]
        if self.input == "chat":
            ids = [self.renderer.begun(prompt.text, own) for prompt, own in zip(prompts, self.encoder.encode(prompts), strict=True)]
        else:
            short = iter(self.encoder.batch([prompt.text for prompt in prompts if len(prompt.text) <= LONG], split=True))
            ids = [[*self.bos, *(next(short) if len(p.text) <= LONG else self.encoder.text(p.text))] for p in prompts]
        return [_fed(each, Aligned(own, (len(own) - 1,), each.words)) for each, own in zip(asked, ids, strict=True)]

    def _by_words(self, asked: Sequence["_Asked"]) -> list[Fed | RowError]:
        """Each text with a label at the last token of every word."""
        plain = [each for each in asked if not each.prompt.hidden]
        known = iter(place(self.encoder, [each.prompt.text for each in plain], split=self.input == "text"))
        placed = [self._placed_hidden(each) if each.prompt.hidden else next(known) for each in asked]
        shifts = [each.shift for each in asked]
        words = [[(a + shift, b + shift) for a, b in each.words] for each, shift in zip(asked, shifts, strict=True)]
        result: list[Fed | RowError] = []
        for each, shift, found in zip(asked, shifts, align(self.encoder, placed, words), strict=True):
            begun = [*self.bos, *found.ids] if self.input == "text" else self.renderer.begun(each.prompt.text, found.ids)
            more = len(begun) - len(found.ids)
            positions = tuple(position + more for position in found.positions)
            result.append(_fed(each, Aligned(begun, positions, tuple((a - shift, b - shift) for a, b in found.words))))
        return result

    def _placed_hidden(self, asked: "_Asked") -> Placed:
        """Of a prompt inside which special tokens are text, the parts before, in and behind the source, tokenised apart."""
        prompt = asked.prompt
        before, source, after = prompt.part(0, asked.begin), prompt.part(asked.begin, asked.end), prompt.part(asked.end)
        head, tail = self.encoder.encode([before, after])
        inner = place_inside(self.encoder, source.plain())
        shift, behind = len(before.plain()), len(before.plain()) + len(source.plain())
        spans = [(0, 0)] * len(head) + [(a + shift, b + shift) for a, b in inner.spans] + [(behind, behind)] * len(tail)
        return Placed(prompt.plain(), [*head, *inner.ids, *tail], spans)

    # --- what is learned ---

    def _labelled(self, sample: Sample, fed: Fed) -> LabelledDocument:
        if self.task == "classify":
            label = label_of(sample)
            self._known(label, "label")
            return LabelledDocument(fed, (self._ids[label],), label)
        if sample.entities is None:
            raise RowError(UNMARKED)
        for _, _, kind in sample.entities:
            self._known(kind, "type")
        tags, told = bio.tags_of(fed.words, sample.entities)
        self.notes.update(told)
        return LabelledDocument(fed, tuple(self._ids[tag] for tag in tags), tuple(sample.entities))

    def _known(self, label: str, what: str) -> None:
        """Raises RowError for a label that the head does not have."""
        if label not in self._names:
            near, names = difflib.get_close_matches(label, self._names, n=1), list(map(repr, self._names))
            named = ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
            hint = f"did you mean {near[0]!r}?" if near else f"mend it, or name every {what} in task.labels"
            raise RowError(f"{what} {label!r} is none of the {len(names)} that are learned ({named}); {hint}")


@dataclass(frozen=True, slots=True)
class _Asked:
    """A text, and what is written around it."""

    number: int
    origin: str
    source: str
    words: tuple[Span, ...]
    prompt: Marked
    begin: int = 0  # of the source in `prompt.text`
    end: int = 0

    @property
    def shift(self) -> int:
        """What to add to a place in the source to have it in the prompt with its hidden characters in place again."""
        written = self.prompt.part(self.begin, self.end).plain() if self.end else self.source
        lost = len(self.source) - len(self.source.lstrip()) if written[:1] != self.source[:1] else 0  # templates trim
        return len(self.prompt.part(0, self.begin).plain()) - lost


def _fed(asked: _Asked, found: Aligned) -> Fed | RowError:
    if not found.positions or found.positions[0] < 0:
        return RowError("no token is left of the text")
    return Fed(found.ids, found.positions, found.words, asked.source, asked.origin, asked.prompt.plain())


def before_answer(sample: Sample) -> tuple[Message, ...]:
    """The messages before the last answer; all of them where there is none."""
    last = max((at for at, message in enumerate(sample.messages) if message["role"] == "assistant"), default=len(sample.messages))
    return sample.messages[:last]


def text_of(sample: Sample) -> str:
    """The text that is classified or tagged: the row's own, else the last question. Raises RowError."""
    if sample.source:
        return sample.source
    asked = next((message["content"] for message in reversed(before_answer(sample)) if message["role"] == "user"), None)
    if asked is None:
        raise RowError("raw text without a label or marks; give rows of text and label, or of tagged tokens, or take task.name=text")
    return asked


def with_text(messages: Sequence[Message], source: str, other: str) -> tuple[Message, ...]:
    """The messages with another text in the place of the source, which stands in the last question that holds it."""
    for number in reversed(range(len(messages))):
        content = messages[number]["content"]
        if messages[number]["role"] == "user" and source in content:
            at = content.rindex(source)
            changed = messages[number] | {"content": content[:at] + other + content[at + len(source) :]}
            return (*messages[:number], changed, *messages[number + 1 :])
    raise RowError("the text to be tagged stands in none of its questions")


def label_of(sample: Sample) -> str:
    """The class of a sample: its label, or what it answers where that can be one. Raises RowError."""
    if sample.label is not None:
        return sample.label
    if sample.entities is not None:
        raise RowError("entities are marked in it, it has no label of its own: take task.name=tag, or name the label's column")
    last = sample.messages[-1] if sample.messages else {}
    answer = last.get("content", "").strip() if last.get("role") == "assistant" and not last.get("tool_calls") else ""
    if not answer:
        raise RowError("it has no label: give rows of text and label (data.columns={text: ..., label: ...})")
    if len(answer) > LONGEST or "\n" in answer:
        raise RowError(f"its answer is a text of {len(answer)} characters, not a label: take task.name=generate")
    return answer


def part_of(sample: Sample, begin: int, end: int) -> Sample:
    """A sample of a part of its text; what is marked outside of it is gone."""
    source, entities = text_of(sample), sample.entities
    messages = with_text(before_answer(sample), source, source[begin:end])
    if entities is not None:
        inside = ((max(a, begin) - begin, min(b, end) - begin, kind) for a, b, kind in entities)
        entities = tuple((a, b, kind) for a, b, kind in inside if a < b)
    words = tuple((a - begin, b - begin) for a, b in sample.words if begin <= a and b <= end)
    return replace(sample, messages=messages, source=source[begin:end], entities=entities, words=words)
