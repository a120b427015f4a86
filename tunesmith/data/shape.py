"""Which format a file's rows have; and where they have none that we know, what they look like and how to say it."""

import difflib
from collections import Counter
from typing import Any

from tunesmith.data.columns import ANSWERS, OURS, Columns, leaves
from tunesmith.data.formats import FORMATS, labels
from tunesmith.errors import UserError

FEW = 3  # columns, up to which values may say what names do not
SHAPES = ", ".join(f"{name} ({', '.join(module.NEEDED)})" for name, module in FORMATS.items())

# Names that people give to what is asked and to what is answered, likeliest first, a space between.
PROMPTS = (
    "prompt question query instruction input text user human review sentence utterance source src mr dialogue article document "
    "passage context title content problem 问题 输入 指令 文本 内容"
)
COMPLETIONS = (
    "completion answer response output reply label labels category intent class sentiment target tgt ref reference summary "
    "highlights sql translation solution assistant bot tags rating stars query 答案 回答 输出 标签"
)


def known(name: str) -> None:
    """Raises UserError for a format that does not exist."""
    if name != "auto" and name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, n=1)
        raise UserError(
            f"data.format: no format {name!r}"
            + (f"; did you mean {near[0]!r}?" if near else "")
            + f"; there are auto, {', '.join(FORMATS)}"
        )


def of_row(values: dict[str, Any], wanted: Columns | None = None) -> str:
    """The format of one row under our names, or "". Columns that the user named decide before others."""
    named = _named(wanted)
    columns = set(values)
    for name, module in FORMATS.items():
        if named <= set(module.COLUMNS) and module.recognises(columns & set(module.COLUMNS) if named else columns, values):
            return name
    # what the user named is meant, be it unlike what such columns usually hold (a long label, say)
    return next((name for name, module in FORMATS.items() if set(module.NEEDED) <= named <= set(module.COLUMNS)), "")


def of_rows(rows: list[dict[str, Any]], wanted: Columns | None = None) -> str:
    """The format that most of the rows have, or ""."""
    counts = Counter(name for values in rows if (name := of_row(values, wanted)))
    return counts.most_common(1)[0][0] if counts else ""


def looks_like(values: dict[str, Any]) -> str:
    """The name of a well-known shape that this version does not read, with what to do; or ""."""
    texts = labels.named(values, labels.TEXTS)
    if len(texts) == 1 and isinstance(values.get("label"), bool):
        what = "texts whose 'label' is true or false: the class of the text, or a judgement of it?"
        return f"{what} If true and false are the answers to be learned: data.columns={{prompt: {texts[0]}, completion: label}}"
    if isinstance(values.get("tokens"), list):
        what = "tagged tokens whose tags are not those of entities (O, B-TYPE, I-TYPE, ...)"
        return f"{what}: to learn the list of tags say data.columns={{prompt: tokens, completion: {_tags(values)}}}"
    return ""


def ambiguous(values: dict[str, Any]) -> str:
    """What several columns could be a labelled text's text or label, with what to do; or ""."""
    texts, found = labels.named(values, labels.TEXTS), labels.named(values, labels.LABELS)
    if any(name.lower() in ANSWERS for name in values):
        return ""
    if len(texts) == 1 and len(found) > 1:
        what = f"texts with several columns that may be the answer ({', '.join(found)})"
        return f"{what}: say which, such as data.columns={{text: {texts[0]}, label: {found[-1]}}}"
    if len(texts) > 1 and len(found) == 1:
        both = "\\n".join(f"{{{name}}}" for name in texts)
        what = f"labels ({found[0]}) beside several columns that may be the text ({', '.join(texts)})"
        return f'{what}: join them by data.prompt="{both}", or say which: data.columns={{text: {texts[-1]}, label: {found[0]}}}'
    return ""


def _tags(values: dict[str, Any]) -> str:
    return next((name for name, value in values.items() if name != "tokens" and isinstance(value, list)), "tags")


def guess(rows: list[dict[str, Any]]) -> dict[str, str] | None:
    """A likely `data.columns` for rows of no known shape, or None. For showing, not for training."""
    names = list(dict.fromkeys(name for values in rows for name in leaves(values)))
    if any(looks_like(values) for values in rows[:5]):
        return None
    prompt = _best(names, PROMPTS)
    others = [name for name in names if name != prompt]
    completion = _best(others, COMPLETIONS)
    if completion is None and len(names) <= FEW:
        completion = _label(rows, others)
    if completion and not prompt and len(names) <= FEW:
        prompt = max((name for name in names if name != completion), key=lambda name: _length(rows, name), default=None)
    return {"prompt": prompt, "completion": completion} if prompt and completion else None


def unknown(rows: list[dict[str, Any]], wanted: Columns) -> str:
    """The reason for rows of no known shape: what was found, what is known, what to write."""
    if wanted:
        return _incomplete(rows, wanted)
    first = rows[0]
    if what := looks_like(first) or ambiguous(first):
        return f"these are {what}"
    found = ", ".join(dict.fromkeys(name for values in rows[:20] for name in leaves(values)))
    likely = guess(rows)
    example = (
        f"data.columns={{prompt: {likely['prompt']}, completion: {likely['completion']}}}"
        if likely
        else "data.columns={prompt: THEIR_COLUMN, completion: THEIR_COLUMN}"
    )
    misspelt = [
        (name, near[0]) for name in map(str, first) if name not in OURS and (near := difflib.get_close_matches(name, OURS, n=1, cutoff=0.8))
    ]
    hint = "".join(f"; {name!r} is close to {near!r}" for name, near in misspelt)
    return f"columns {found} are no shape that we know{hint}. Known are {SHAPES}. Say which column is what: {example}"


def _incomplete(rows: list[dict[str, Any]], wanted: Columns) -> str:
    """Why the columns that the user named make no shape."""
    named = _named(wanted)
    setting = "data.columns" if wanted.columns else "data.prompt"
    found = ", ".join(dict.fromkeys(name for values in rows[:20] for name in leaves(values)))
    for name, module in FORMATS.items():
        missing = [column for column in module.NEEDED if column not in named]
        if named <= set(module.COLUMNS) and len(missing) < len(module.NEEDED):
            more = ", ".join(f"{column}: THEIR_COLUMN" for column in missing)
            given = f"{setting} gives {', '.join(sorted(named))}, but the shape {name} needs {' and '.join(missing)} too"
            return f"{given}: add data.columns={{{more}}}; the rows have {found}"
    return f"{setting} gives {', '.join(sorted(named))}, which no shape has together. Known are {SHAPES}; the rows have {found}"


def _named(wanted: Columns | None) -> set[str]:
    """Our columns that the user spoke of."""
    return set() if wanted is None else set(wanted.columns) | ({"prompt"} if wanted.template else set())


def _best(names: list[str], wanted: str) -> str | None:
    """The name whose last part stands first in the list."""
    order = wanted.split()
    ranked = [(order.index(leaf), name) for name in names if (leaf := name.rpartition(".")[2].lower()) in order]
    return min(ranked)[1] if ranked else None


def _label(rows: list[dict[str, Any]], names: list[str]) -> str | None:
    """A column with few different values: a label."""
    for name in names:
        found = [str(values.get(name)) for values in rows if name in values]
        if len(found) >= 10 and len(set(found)) <= len(found) / 2:
            return name
    return None


def _length(rows: list[dict[str, Any]], name: str) -> int:
    return sum(len(str(values.get(name, ""))) for values in rows)
