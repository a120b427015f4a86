"""An answer's text as it comes -> what is thought and what is spoken."""

from typing import Literal

from tunesmith.serve.http.reading import Thought
from tunesmith.serve.http.text import held_back

Part = tuple[Literal["thought", "spoken"], str]


class Thinking:
    """Where one answer stands. Blanks around the thinking are no part of it, nor those in front of what is spoken behind it."""

    def __init__(self, thought: Thought, *, opened: bool):
        """`opened`: the prompt ends inside the thinking."""
        self._thought = thought
        self._state: Literal["begin", "inside", "behind", "spoken"] = "inside" if opened else "begin"
        self._held = ""
        self._said = False  # some of the thinking was handed out

    @property
    def held(self) -> int:
        return len(self._held)

    def add(self, text: str) -> list[Part]:
        if self._state == "spoken":
            return [("spoken", text)] if text else []
        self._held += text
        parts: list[Part] = []
        while self._held:
            before = (self._state, len(self._held))
            parts += {"begin": self._begin, "inside": self._inside, "behind": self._behind, "spoken": self._spoken}[self._state]()
            if before == (self._state, len(self._held)):
                break
        return parts

    def end(self) -> list[Part]:
        """What was held back."""
        text, self._held = self._held, ""
        match self._state:
            case "inside":
                return self._thinks(text.rstrip() if self._said else text.strip())
            case "begin":
                text = text.removeprefix(self._thought.blank)
            case "behind":
                text = text.lstrip()
        return [("spoken", text)] if text else []

    def _begin(self) -> list[Part]:
        text = self._held.lstrip()
        for mark in (*self._thought.opens, *self._thought.leads):
            if text.startswith(mark):
                self._state = "inside" if mark in self._thought.opens else "behind"
                self._held = text.removeprefix(mark)
                return []
        if any(mark.startswith(text) for mark in (*self._thought.opens, *self._thought.leads)):
            return []
        self._state, self._held = "spoken", self._held.removeprefix(self._thought.blank)
        return []

    def _inside(self) -> list[Part]:
        text = self._held if self._said else self._held.lstrip()
        found = [(place, -len(mark), mark) for mark in self._thought.closes if (place := text.find(mark)) >= 0]
        if found:
            place, _, mark = min(found)
            self._state, self._held = "behind", text[place + len(mark) :]
            return self._thinks(text[:place].rstrip())
        kept = held_back(text, self._thought.closes)
        shown = text[: len(text) - kept].rstrip()
        self._held = text[len(shown) :]
        return self._thinks(shown)

    def _thinks(self, text: str) -> list[Part]:
        self._said = self._said or bool(text)
        return [("thought", text)] if text else []

    def _behind(self) -> list[Part]:
        """Behind the thinking: blanks, and what the template leads to the spoken part with."""
        self._held = text = self._held.lstrip()
        for mark in self._thought.leads:
            if text.startswith(mark):
                self._state, self._held = "spoken", text.removeprefix(mark)
                return []
        if text and not any(mark.startswith(text) for mark in self._thought.leads):
            self._state = "spoken"
        return []

    def _spoken(self) -> list[Part]:
        text, self._held = self._held, ""
        return [("spoken", text)]
