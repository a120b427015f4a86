"""A settings file of another program becomes settings of ours, and every key of it ends in exactly one list: carried over, changed in
meaning, needless here, or left behind with the reason.

A program's tables:
    CARRIED   {their key: our setting}              the value means the same
    NEEDLESS  {why: "their keys"}                   here it is so anyway, or decided by itself
    LEFT      {why: "their keys"}                   it would change the run and cannot be carried over
What needs thought is read by functions, which take keys before the tables do.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from tunesmith.run_yaml import flow

SECRET = re.compile(r"token$|key$|secret|password", re.IGNORECASE)  # values that are not repeated


@dataclass(slots=True)
class Translation:
    """What became of one file."""

    tool: str  # its program, by name
    given: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)  # of its keys, where they are known
    settings: dict[str, Any] = field(default_factory=dict)  # ours, by dotted key
    origins: dict[str, str] = field(default_factory=dict)  # our dotted key -> which of theirs it came from
    carried: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    needless: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    off: list[str] = field(default_factory=list)  # keys that would be left behind, but switch something off
    refused: list[str] = field(default_factory=list)  # why there is no run that does this
    taken: set[str] = field(default_factory=set)  # keys that were read
    said: set[str] = field(default_factory=set)  # keys that stand in one of the lists

    def take(self, key: str, default: Any = None) -> Any:
        """A value of theirs; numbers and booleans in quotes are what they say."""
        self.taken.add(key)
        value = plain(self.given.get(key))
        return default if value is None else value

    def word(self, key: str) -> str | None:
        """A value that is one word; YAML 1.1 takes `no` for false."""
        value = self.take(key)
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return str(value)
        if value is True or isinstance(value, list | dict):
            self.refuse(key, f"a word is wanted, not {shown(value)}")
        return "no" if value is False else None

    def number(self, key: str) -> float | None:
        """A value that is a number; an int where it is a whole one."""
        value = self.take(key)
        if value is None or value is False or (isinstance(value, int | float) and not isinstance(value, bool)):
            return value or (0 if value == 0 and value is not False else None)
        self.refuse(key, f"a number is wanted, not {shown(value)}")
        return None

    def has(self, key: str) -> bool:
        """Whether a value is given that switches something on."""
        return key in self.given and not is_off(plain(self.given[key]))

    def put(self, setting: str, value: Any, *keys: str, said: str = "") -> None:
        """Set one of ours. `said`: what changed in meaning. Without keys it is the program's default."""
        self.said.update(keys)
        self.settings[setting] = value
        self.origins[setting] = ", ".join(self.where(key) for key in keys) or f"{self.tool}'s default"
        line = f"{', '.join(keys) or self.tool + chr(39) + 's default'} -> {setting} = {shown(value)}"
        (self.changed if said else self.carried).append(line + (f": {said}" if said else ""))

    def drop(self, key: str, why: str) -> None:
        """Account for a key that cannot be carried over."""
        self.said.add(key)
        if is_off(plain(self.given.get(key))):
            self.off.append(key)
        else:
            self.left.append(f"{self.written(key)}: {why}")

    def skip(self, key: str, why: str) -> None:
        """Account for a key that is not needed."""
        self.said.add(key)
        self.needless.append(f"{self.written(key)}: {why}")

    def refuse(self, key: str, why: str) -> None:
        self.said.add(key)
        self.refused.append(f"{self.where(key)}: {why}")

    def where(self, key: str) -> str:
        line = self.lines.get(key)
        return f"{key} (line {line})" if line else key

    def written(self, key: str) -> str:
        """`lora_rank: 8`."""
        return f"{key}: {'(kept to yourself)' if SECRET.search(key) else shown(plain(self.given.get(key)))}"

    def finish(self, carried: Mapping[str, str], needless: Mapping[str, str], left: Mapping[str, str], known: str) -> None:
        """Account for every key that nobody has taken, by the tables; `known` are keys that functions read."""
        reasons = {key: (why, self.skip) for why, keys in needless.items() for key in keys.split()}
        reasons |= {key: (why, self.drop) for why, keys in left.items() for key in keys.split()}
        names = [*carried, *reasons, *known.split()]
        for key in self.given:
            if key in self.said:
                continue
            if key in self.taken or plain(self.given[key]) is None:
                self.off.append(key) if is_off(plain(self.given[key])) else self.skip(key, "so it is here, or nothing follows from it")
            elif key in carried:
                self.put(carried[key], self.take(key), key)
            elif key in reasons:
                why, account = reasons[key]
                account(key, why)
            else:
                near = get_close_matches(key, names, n=1, cutoff=0.75)
                self.drop(key, f"no key of {self.tool} that is known here" + (f"; did you mean {near[0]}?" if near else ""))


def joined(*tables: Mapping[str, str]) -> dict[str, str]:
    """Tables {why: "their keys"} as one; the same reason in two of them keeps the keys of both."""
    result: dict[str, str] = {}
    for table in tables:
        for why, keys in table.items():
            result[why] = " ".join(dict.fromkeys([*result.get(why, "").split(), *keys.split()]))
    return result


def plain(value: Any) -> Any:
    """A value as it is meant: `"1e-4"` is a number, `"true"` true, `"none"` nothing."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    words = {"true": True, "false": False, "null": None, "none": None, "": None}
    if text.lower() in words:
        return words[text.lower()]
    if re.fullmatch(r"[-+]?\d+", text):
        return int(text)
    if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text):
        return float(text)
    return value


def is_off(value: Any) -> bool:
    """Whether a value switches nothing on."""
    return value is None or value is False or value == 0 or value in ([], {}, "no")


def shown(value: Any) -> str:
    """A value on one line, cut where it is long."""
    text = value if isinstance(value, str) else flow(value)
    return text if len(text) <= 80 else text[:77] + "..."


def names(value: Any) -> list[str]:
    """`a, b` or [a, b] as a list of texts."""
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    return [str(item).strip() for item in items if item is not None and str(item).strip()]
