"""YAML as run files have it: every key's line is kept, few words are booleans, and what is written is read back the same."""

import re
from pathlib import Path
from typing import Any

import yaml

from tunesmith.errors import UserError


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The values of a YAML file and the line of every dotted key. Raises UserError with the line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {error}") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str = "value") -> tuple[dict[str, Any], dict[str, int]]:
    """As `read_yaml`, of a text."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = str(getattr(error, "problem", None) or error)
        raise UserError(f"{where}: not valid YAML: {problem}" + "; indent with blanks, not with tabs" * ("\\t" in problem)) from None
    lines: dict[str, int] = {}
    if node is None:
        return {}, lines
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{name}:{node.start_mark.line + 1}: a run file is made of `key: value` lines")
    problems: list[str] = []
    values = _values(node, "", name, lines, problems)
    if problems:
        raise UserError(*problems)
    return values, lines


def parse_value(text: str) -> Any:
    """A value as written behind `KEY=`: [a,b], {a: b}, 2e-4, true and null mean what they say, everything else is the text itself.

    A mapping needs a value for every name, so that the prompt template {question} stays a text.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        value = yaml.load(text, Loader=_Loader)  # a SafeLoader with fewer booleans
    except (yaml.YAMLError, ValueError):
        return text
    if isinstance(node, yaml.CollectionNode):
        whole = node.flow_style and not (isinstance(value, dict) and None in value.values())
        return value if whole else text
    return text if isinstance(value, str) and getattr(node, "style", None) is None else value


class _Loader(yaml.SafeLoader):
    """SafeLoader in which only true and false are booleans (`on`, `no` and `y` stay words), 2e-4 is a number, and 1:30, 010 and dates
    are texts."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes every text which either kind of YAML reader would take for something else."""


_NUMBER = re.compile(r"^[-+]?(?:\d[\d_]*\.[\d_]*|\.\d+|\d[\d_]*(?=[eE]))(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$")
_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][\d_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))
_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None)
)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def _values(node: yaml.Node, key: str, name: str, lines: dict[str, int], problems: list[str]) -> Any:
    """The value of a node; `lines` and `problems` are filled on the way."""
    if isinstance(node, yaml.MappingNode):
        result = {}
        for key_node, value_node in node.value:
            inner = str(key_node.value)
            dotted = f"{key}.{inner}" if key else inner
            line = key_node.start_mark.line + 1
            if inner in result:
                problems.append(f"{name}:{line}: {dotted} stands twice, first in line {lines[dotted]}")
            lines[dotted] = line
            result[inner] = _values(value_node, dotted, name, lines, problems)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_values(item, f"{key}.{i}", name, lines, problems) for i, item in enumerate(node.value)]
    try:
        return _Loader("").construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError) as error:
        problems.append(f"{name}:{node.start_mark.line + 1}: {key}: {getattr(error, 'problem', None) or error}")
        return None


def flow(value: Any) -> str:
    """A value on one line, quoted so that both this reader and others take it for the same."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10**9)
    return text.strip().removesuffix("\n...").strip()
