"""A sample -> documents: the tokens that a server would feed, followed by the tokens that the model should answer.

    ids(prompt, as the chat template writes it with its generation prompt) + ids(answer + stop token)
    └───────────────────────── fed ─────────────────────────────────────┘   └──────── learned ─────┘

Training, evaluation, chat and our server all take prompts from here, so that what is trained is what is served.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from tunesmith.data.rendering import notes
from tunesmith.data.rendering.answers import (
    Thinking,
    behind,
    check_answer,
    check_prompt,
    thought_and_spoken,
    with_thinking,
    without_thinking,
)
from tunesmith.data.rendering.call_ids import nine_letters
from tunesmith.data.rendering.template import CLOSE, OPEN, Habits, Render, compile_template, probe
from tunesmith.data.rendering.tokens import ENCODING, Encoder, Marked
from tunesmith.data.rendering.turns import Tokens, Turn, tokenise
from tunesmith.data.sample import Message, RowError, Sample
from tunesmith.errors import UserError

RULES = 3  # part of the fingerprint: raise it when the same sample comes to give other tokens


@dataclass(frozen=True, slots=True)
class Document:
    """Tokens that are fed to the model as one sequence."""

    ids: list[int]
    spans: tuple[tuple[int, int], ...]  # half-open, over `ids`: the tokens that are learned as targets
    origin: str
    answers: tuple[str, ...] = ()  # what each span says, stop token included; empty for a raw text
    turns: tuple[int, ...] = ()  # the messages that the spans are
    cut: bool = False  # the last answer lacks its end: no stop token is learned

    @property
    def learned(self) -> int:
        return sum(end - start for start, end in self.spans)


class Renderer:
    """The one way from messages to tokens.

    `stop_ids` are the generation config's end-of-sequence ids. `date` (YYYY-MM-DD) is what the template's
    `strftime_now` gives. `notes` counts what the report should say; it grows with every `documents` call.
    """

    labelled: Literal[False] = False  # its documents hold answers, not labels of a head (`labelled.Labelled`)

    def __init__(self, tokenizer: Any, *, thinking: Thinking = "keep", date: str = "2026-11-24", stop_ids: Iterable[int] = ()):
        self.tokenizer, self.thinking, self.date = tokenizer, thinking, date
        self.encoder = Encoder(tokenizer)
        self.notes: Counter[str] = Counter()
        if tokenizer.eos_token is None:
            raise UserError("the model's tokenizer names no end-of-sequence token; set eos_token in its tokenizer_config.json")
        self._stop_ids = {tokenizer.eos_token_id, *stop_ids}
        # text -> id of the tokens that end an answer; a generation config should name them all
        self.stop_tokens = {token: index for token, index in self.encoder.ids.items() if index in self._stop_ids}
        self._loaded: dict[str, tuple[Render, Habits]] = {}
        with ENCODING:  # transformers sets the tokenizer's switches as well
            probe_ids = tokenizer("x")["input_ids"]
        self.bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None and probe_ids[:1] == [tokenizer.bos_token_id] else []
        self._template(())

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process goes what it takes to make the same renderer: a compiled template cannot be sent."""
        return _made_again, (self.tokenizer, self.thinking, self.date, sorted(self._stop_ids))

    # --- what others ask ---

    def prompt_ids(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), variables: Mapping[str, Any] = MappingProxyType({})
    ) -> list[int]:
        """Exactly what a server feeds before the next assistant message. Raises RowError.

        `variables` are a client's for the template, besides what training set: enable_thinking, say.
        """
        prompt = self.prompt(messages, tools, variables)
        return self.begun(prompt.text, self.encoder.encode([prompt])[0])

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), variables: Mapping[str, Any] = MappingProxyType({})
    ) -> Marked:
        """The text of `prompt_ids`. Raises RowError."""
        prepared, _ = self._prepare(messages, tools)
        (prepared, tools), hidden = self.encoder.hide(prepared, list(tools))
        return Marked(self._prompt(prepared, tools, variables), hidden)

    def answer(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> str:
        """What the model should say after `prompt_ids(messages[:-1])`: the last message with its stop token. Raises RowError."""
        return self._turns(Sample("", tuple(messages), tuple(tools)), only=len(messages) - 1)[0].answer.plain()

    def documents(self, sample: Sample) -> list[Document]:
        """One document for the sample, or several where history is rewritten between its turns. Raises RowError."""
        found = self.documents_of([sample])[0]
        if isinstance(found, RowError):
            raise found
        return found

    def documents_of(self, samples: Sequence[Sample]) -> list[list[Document] | RowError]:
        """As `documents`, for many samples, whose texts are tokenised together; a row's error stands in its place."""
        result: list[list[Document] | RowError] = []
        chats: list[list[Turn]] = []  # none of a row that is raw text or cannot be used
        for sample in samples:
            found: list[Document] | RowError = []
            turns: list[Turn] = []
            try:
                if sample.text is None:
                    turns = self._turns(sample)
                else:
                    found = [self._text_document(sample)]
            except RowError as error:
                found = error
            result.append(found)
            chats.append(turns)
        for place, tokens in enumerate(tokenise(self.encoder, chats)):
            self.notes[notes.JOINT_DIFFERS] += sum(turn.merges for turn in tokens)
            if tokens:
                result[place] = self._join(samples[place].origin, chats[place], tokens)
        self.notes += Counter()  # leaves out zeros
        return result

    def habits(self, tools: Sequence[dict[str, Any]] = ()) -> Habits | None:
        """What the template does with an answer; None where the model has no template."""
        loaded = self._template(tools)
        return loaded[1] if loaded else None

    @property
    def stops(self) -> set[int]:
        """Ids of the tokens that end an answer."""
        return self._stop_ids | set(self.stop_tokens.values())

    @property
    def template(self) -> str:
        """The chat template's text (JSON where there are several); "" where the model has none."""
        template = self.tokenizer.chat_template or ""
        return template if isinstance(template, str) else json.dumps(template, sort_keys=True)

    @property
    def prints_date(self) -> bool:
        return "strftime_now" in self.template

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides which tokens a sample gives. The date counts where the template prints it."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            vocabulary = backend.to_str().partition('"added_tokens"')[2]  # what stands before it changes with every padded call
        else:
            vocabulary = json.dumps(sorted(self.tokenizer.get_vocab().items())) + repr(self.tokenizer)
        names = json.dumps(self.tokenizer.special_tokens_map, sort_keys=True)
        date = self.date if self.prints_date else ""
        parts = [str(RULES), self.template, vocabulary, names, self.thinking, date, str(sorted(self._stop_ids))]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    # --- from messages to texts ---

    def _template(self, tools: Sequence[Any]) -> tuple[Render, Habits] | None:
        if not self.tokenizer.chat_template:
            return None
        text = self.tokenizer.get_chat_template(tools=list(tools) or None)
        if text not in self._loaded:
            render = compile_template(text, self.tokenizer, self.date)
            habits = probe(render, self.encoder, {token for token, index in self.encoder.ids.items() if index in self._stop_ids})
            self._loaded[text] = (render, habits)
            if habits.stop:
                self.stop_tokens[habits.stop] = self.encoder.ids[habits.stop]
        return self._loaded[text]

    def _prepare(self, messages: Sequence[Message], tools: Sequence[Any]) -> tuple[list[Message], list[str]]:
        """Messages with their thinking where the setting and the template want it, and the thinking that the template removes."""
        loaded = self._template(tools)
        habit = loaded[1].thinking if loaded else "plain"
        prepared, removed = [], []
        for message in messages:
            aside = ""
            if message["role"] == "assistant":
                thought, spoken = thought_and_spoken(message)
                message = message | {"content": message.get("content") or ""}
                if self.thinking != "keep" or habit == "removed":
                    message = without_thinking(message) | {"content": spoken}
                    aside = thought if self.thinking == "keep" else ""
                elif habit == "written" and thought:
                    message = message | {"content": spoken, "reasoning_content": thought}
                elif message.get("reasoning_content"):
                    message = without_thinking(message) | {"content": OPEN + thought + CLOSE + spoken}
            prepared.append(message)
            removed.append(aside)
        return (nine_letters(prepared) if loaded and loaded[1].nine else prepared), removed

    def _prompt(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], variables: Mapping[str, Any] = MappingProxyType({})
    ) -> str:
        loaded = self._template(tools)
        if loaded is not None:
            return loaded[0](messages, tools, True, variables)
        if len(messages) != 1 or messages[0]["role"] != "user" or tools:
            raise RowError(
                "the model has no chat template, so that only one question and one answer can be written, without system prompt or tools; "
                "take an instruct model, or put the instructions into the question with data.prompt"
            )
        return messages[0]["content"]

    def _turns(self, sample: Sample, only: int | None = None) -> list[Turn]:
        prepared, removed = self._prepare(sample.messages, sample.tools)
        renamed = any(a.get("tool_calls") != b.get("tool_calls") for a, b in zip(sample.messages, prepared, strict=True))
        self.notes[notes.NINE_LETTERS] += renamed
        (messages, removed, tools), hidden = self.encoder.hide(prepared, removed, list(sample.tools))
        self.notes[notes.SPECIAL_TEXT] += bool(hidden)
        turns = []
        for index, message in enumerate(messages):
            wanted = message.get("learn", True) if only is None else index == only
            if message["role"] != "assistant" or not wanted:
                continue
            if index == 0:
                self.notes[notes.UNASKED] += 1
                continue
            prompt = self._prompt(messages[:index], tools)
            self.notes[notes.LEFT_OUT] += check_prompt(messages[:index], tools, prompt)
            answer = self._answer(prompt, messages[: index + 1], tools, removed[index])
            self.notes[notes.THINK_TEXT] += bool(sample.messages[index].get("reasoning_content")) and OPEN in message["content"]
            turns.append(Turn(index, Marked(prompt, hidden), Marked(answer, hidden)))
        if not turns:
            raise RowError("no assistant message is there to be learned")
        return turns

    def _answer(self, prompt: str, messages: Sequence[Message], tools: Sequence[dict[str, Any]], thought: str) -> str:
        loaded = self._template(tools)
        if loaded is None:
            return messages[-1]["content"] + self.tokenizer.eos_token
        render, habits = loaded
        body, held = behind(render, prompt, messages, tools, habits)
        body, note = with_thinking(body, held, thought, habits, self.thinking)
        answer = self._until_stop(body, habits.tells if messages[-1].get("tool_calls") else habits.asks, habits.after)
        beside = check_answer(messages[-1], answer, thought)
        self.notes.update([*([note] if note else []), *([notes.BESIDE_CALLS] if beside else [])])
        return answer

    def _until_stop(self, body: str, opening: str, after: str) -> str:
        """The answer up to and including its stop token; what the template writes behind that belongs to later prompts.

        `opening` is the stop token where it is the next message's first one, `after` what is written where there is none.
        """
        last = 0
        for start, end in self.encoder.find(body):
            if body[start:end] in self.stop_tokens:
                return body[:end]
            last = end
        if opening:
            return body + opening
        self.notes[notes.NO_STOP] += 1
        rest = body[last:]  # behind a special token that stops nothing (a tool call's end) blanks only
        return (body.removesuffix(after) if rest.strip() else body[:last]) + self.tokenizer.eos_token

    # --- from texts to tokens ---

    def begun(self, prompt: str, ids: list[int]) -> list[int]:
        """A prompt's ids with exactly one BOS, where there is one."""
        bos = self.tokenizer.bos_token_id
        if not self.tokenizer.chat_template:
            ids = self.bos + ids
        if bos is not None and ids[:2] == [bos, bos]:
            if prompt.startswith(self.tokenizer.bos_token * 2):
                raise UserError(f"the model's chat template begins with two {self.tokenizer.bos_token}; take one out of chat_template")
            ids = ids[1:]  # the tokenizer put one in front of the template's
        return ids

    def _text_document(self, sample: Sample) -> Document:
        text = sample.text or ""
        if not text.strip():
            raise RowError("the text is empty")
        self.notes[notes.SPECIAL_TEXT] += any(self.encoder.find(text))
        ids = [*self.bos, *self.encoder.text(text), self.tokenizer.eos_token_id]
        return Document(ids, ((1, len(ids)),), sample.origin)

    def _join(self, origin: str, turns: Sequence[Turn], tokens: Sequence[Tokens]) -> list[Document]:
        """One document as long as each prompt begins with all that came before it, token by token."""
        documents: list[Document] = []
        for turn, found in zip(turns, tokens, strict=True):
            prompt, answer = self.begun(turn.prompt.text, found.prompt), found.answer
            span = (len(prompt), len(prompt) + len(answer))
            last = documents[-1] if documents else None
            goes_on = last is not None and prompt[: len(last.ids)] == last.ids
            if goes_on and last is not None:
                documents.pop()
                before = (last.spans, last.answers, last.turns)
            else:
                before = ((), (), ())
            documents.append(
                Document(prompt + answer, (*before[0], span), origin, (*before[1], turn.answer.plain()), (*before[2], turn.index))
            )
        self.notes[notes.OWN_DOCUMENTS] += len(documents) > 1
        return documents


def _made_again(tokenizer: Any, thinking: Thinking, date: str, stop_ids: Iterable[int]) -> Renderer:
    return Renderer(tokenizer, thinking=thinking, date=date, stop_ids=stop_ids)
