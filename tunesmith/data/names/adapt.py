"""A row as an entry of `dataset_info.json` describes it becomes a row of a shape on our shelf.

formatting alpaca               {"instruction", "input", "output", "system", "history"}, or with tools {"conversations", ...}
formatting sharegpt             {"conversations": [{"from", "value"}, ...], "system", "tools"}, roles by their usual names
formatting openai               {"messages": [{"role", "content", ...}, ...], "system", "tools"}
ranking                         {"prompt" or "conversations", "chosen", "rejected", ...}
a kto_tag                       {"prompt", "completion", ...} or {"conversations", ...}, and "label": true or false
only a prompt, nothing answers  {"text"}
"""

import json
from dataclasses import dataclass
from typing import Any

from tunesmith.data.fields import describe, parsed_list
from tunesmith.data.sample import RowError

MEDIA = ("images", "videos", "audios")
# role of a ShareGPT turn -> role of an OpenAI message
OPENAI = {"system": "system", "human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}
# What a turn may be called where the entry's tags say nothing of that role.
USUAL = {"system": "system", "human": "human", "gpt": "gpt", "function_call": "function_call", "observation": "observation"}
USUAL_OPENAI = {"system": "system", "developer": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
OTHERS = {"chatgpt": "gpt", "bot": "gpt", "model": "gpt", "function": "observation", "function_response": "observation"}  # without any tags
TRUTH = {"true": True, "1": True, "false": False, "0": False}  # a kto tag in a CSV


@dataclass(frozen=True, slots=True)
class Adapt:
    """How the rows of one entry are adapted; it can be pickled. `columns` is {our role of the column: the file's column}."""

    entry: str  # the entry's name, for messages
    formatting: str  # alpaca, sharegpt, openai
    ranking: bool
    columns: dict[str, str]
    role_tag: str
    content_tag: str
    roles: dict[str, str]  # what the file calls a role -> system, human, gpt, function_call, observation

    def __call__(self, values: dict[str, Any]) -> dict[str, Any]:
        """Raises RowError."""
        self._refuse_media(values)
        return self._alpaca(values) if self.formatting == "alpaca" else self._chat(values)

    # --- alpaca ---

    def _alpaca(self, values: dict[str, Any]) -> dict[str, Any]:
        query = self._text(values, "query")
        question = self._text(values, "prompt")
        if not question and not query:
            raise RowError(self._absent(values, "prompt"))
        beside = self._beside(values)
        if "chosen" in self.columns:
            pair = {side: self._answer(values, side) for side in ("chosen", "rejected")}
            asked = self._asked(question, query, values, beside)
            turns = {side: {"from": "gpt", "value": answer} for side, answer in pair.items()}
            return asked | (turns if "conversations" in asked else pair)
        if "response" not in self.columns:
            return {"text": "\n".join(filter(None, (question, query)))}
        answer = self._answer(values, "response")
        if "kto_tag" in self.columns:
            asked = self._asked(question, query, values, beside)
            said = _turns_with(asked, answer) if "conversations" in asked else asked | {"completion": answer}
            return said | {"label": self._label(values)}
        if "tools" in beside:
            return _turns_with(self._conversation(question, query, values) | beside, answer)
        row = {"instruction": question or query, "output": answer} | beside
        if question and query:
            row["input"] = query
        if "history" in self.columns and (history := self._value(values, "history")) is not None:
            row["history"] = history
        return row

    def _asked(self, question: str, query: str, values: dict[str, Any], beside: dict[str, Any]) -> dict[str, Any]:
        """The question as one text, or as turns where turns came before it or tools may be called."""
        if "tools" in beside or ("history" in self.columns and self._value(values, "history")):
            return self._conversation(question, query, values) | beside
        return {"prompt": "\n".join(filter(None, (question, query)))} | beside

    def _conversation(self, question: str, query: str, values: dict[str, Any]) -> dict[str, Any]:
        turns = []
        for number, pair in enumerate(parsed_list(self._value(values, "history"), self.columns.get("history", "history")), start=1):
            if not isinstance(pair, list) or len(pair) != 2:
                raise RowError(f"history turn {number} is {describe(pair)}; a turn is [user's text, assistant's text]")
            turns += [{"from": "human", "value": pair[0]}, {"from": "gpt", "value": pair[1]}]
        turns.append({"from": "human", "value": "\n".join(filter(None, (question, query)))})
        return {"conversations": turns}

    # --- sharegpt and openai ---

    def _chat(self, values: dict[str, Any]) -> dict[str, Any]:
        column = self.columns["messages"]
        if column not in values:
            raise RowError(self._absent(values, "messages"))
        turns = parsed_list(values[column], column)
        if not turns:
            raise RowError(f"{column!r} is empty: there is no conversation")
        # a ShareGPT turn has no place for these
        openai = self.formatting == "openai" or any(
            isinstance(turn, dict) and {"tool_calls", "reasoning_content"} & set(turn) for turn in turns
        )
        adapted = [self._turn(turn, number, openai) for number, turn in enumerate(turns, start=1)]
        row: dict[str, Any] = {"messages" if openai else "conversations": adapted} | self._beside(values, adapted)
        if self.ranking:
            return row | {side: self._side(values, side, openai) for side in ("chosen", "rejected")}
        return row | ({"label": self._label(values)} if "kto_tag" in self.columns else {})

    def _turn(self, turn: Any, number: int, openai: bool) -> dict[str, Any]:
        role, content = self._read(turn, number)
        if not openai:
            return {"from": role, "value": content} | {key: turn[key] for key in ("loss", "weight") if key in turn}
        rest = {key: value for key, value in turn.items() if key not in (self.role_tag, self.content_tag)}
        message = {"role": OPENAI[role], "content": content} | rest
        if role == "function_call" and not turn.get("tool_calls"):
            message |= {"content": "", "tool_calls": _calls(content, number)}
        return message

    def _read(self, turn: Any, number: int) -> tuple[str, Any]:
        if not isinstance(turn, dict):
            raise RowError(f"message {number} is {describe(turn)}, not an object with {self.role_tag} and {self.content_tag}")
        if self.role_tag not in turn or (self.content_tag not in turn and not turn.get("tool_calls")):
            tags = f"the entry {self.entry!r} reads the role from {self.role_tag!r} and the text from {self.content_tag!r}"
            raise RowError(
                f"message {number} has {', '.join(map(str, turn)) or 'nothing'}; {tags}: set role_tag and content_tag in its tags"
            )
        said = turn[self.role_tag]
        role = self.roles.get(said, self.roles.get(said.lower())) if isinstance(said, str) else None
        if role is None:
            raise RowError(f"message {number} is from {said!r}; the entry {self.entry!r} knows {', '.join(self.roles)}: add it to its tags")
        return role, turn.get(self.content_tag)

    def _side(self, values: dict[str, Any], side: str, openai: bool) -> Any:
        """A turn, or a list of turns; a text is the assistant's."""
        column = self.columns[side]
        value = values.get(column)
        if isinstance(value, str) and value.strip():
            return {"role": "assistant", "content": value} if openai else {"from": "gpt", "value": value}
        if isinstance(value, dict):
            return self._turn(value, 1, openai)
        if isinstance(value, list) and value:
            return [self._turn(turn, number, openai) for number, turn in enumerate(value, start=1)]
        raise RowError(f"{column!r} is {describe(value) if column in values else 'absent'}: the pair lacks its {side} side")

    # --- columns ---

    def _beside(self, values: dict[str, Any], turns: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """System prompt and tools, where the row has them. A system prompt that the turns begin with already is not said twice."""
        row: dict[str, Any] = {}
        first = turns[0] if turns else {}
        if (system := self._text(values, "system")) and not (
            first.get("from", first.get("role")) == "system" and system in (first.get("value"), first.get("content"))
        ):
            row["system"] = system
        if (tools := self._value(values, "tools")) and tools != "[]":
            row["tools"] = tools
        return row

    def _value(self, values: dict[str, Any], column: str) -> Any:
        return values.get(self.columns[column]) if column in self.columns else None

    def _text(self, values: dict[str, Any], column: str) -> str:
        """A text; "" where the column is absent, null or blank."""
        value = self._value(values, column)
        if value is None or (isinstance(value, str) and not value.strip()):
            return ""
        if not isinstance(value, str):
            raise RowError(f"{self.columns[column]!r} is {describe(value)}, not a text")
        return value

    def _answer(self, values: dict[str, Any], column: str) -> str:
        theirs = self.columns[column]
        if theirs not in values:
            raise RowError(self._absent(values, column))
        if not (text := self._text(values, column)):
            raise RowError(f"{theirs!r} is {'null' if values[theirs] is None else 'empty'}: there is nothing to learn")
        return text

    def _label(self, values: dict[str, Any]) -> bool:
        value = self._value(values, "kto_tag")
        found = value if isinstance(value, bool) else TRUTH.get(str(value).strip().lower())
        if found is None:
            raise RowError(f"{self.columns['kto_tag']!r} is {describe(value)}; whether an answer is good is true or false")
        return found

    def _absent(self, values: dict[str, Any], column: str) -> str:
        """Why the row does not fit the entry."""
        theirs = self.columns.get(column, column)
        what = f"no {theirs!r}" if theirs not in values else f"{theirs!r} is empty"
        named = f"the entry {self.entry!r} takes its {column} from there"
        lists = [name for name in ("conversations", "messages") if isinstance(values.get(name), list)]
        hint = f"; {lists[0]!r} is a list of turns: say formatting sharegpt or openai" if lists and self.formatting == "alpaca" else ""
        return f"{what} (the row has {', '.join(map(str, values)) or 'nothing'}); {named}{hint}"

    def _refuse_media(self, values: dict[str, Any]) -> None:
        for kind in MEDIA:
            if self._value(values, kind):
                raise RowError(f"{self.columns[kind]!r} names {kind}: only text is learned here, and the row means nothing without them")


def _turns_with(row: dict[str, Any], answer: str) -> dict[str, Any]:
    return row | {"conversations": [*row["conversations"], {"from": "gpt", "value": answer}]}


def _calls(content: Any, number: int) -> list[Any]:
    """Tool calls that a message's text holds as JSON."""
    try:
        calls = json.loads(content) if isinstance(content, str) else content
    except (ValueError, RecursionError) as error:
        raise RowError(f"message {number} calls a function, but its text is no JSON ({error})") from None
    return calls if isinstance(calls, list) else [calls]
