"""Texts with a label: sentiment, topics, intents.

    {"text": "The room was clean and quiet.", "label": "positive"}

The text is the question and the label the answer, exactly as it is written: 007, 1.0, NA and true stay what they are. The
columns may have other names (`TEXTS`, `LABELS`), as long as one of each stands in the row and nothing else that could be a
text or an answer.
"""

from collections.abc import Iterable
from typing import Any

from tunesmith.data.fields import describe, json_text, required_text
from tunesmith.data.sample import RowError, Sample

COLUMNS = ("text", "label", "prompt")
NEEDED = ("text", "label")

_TEXTS = (
    "text sentence review content comment utterance query question title headline tweet post message body abstract description "
    "prompt 文本 内容 句子 评论 标题 问题"
)
TEXTS = frozenset(_TEXTS.split())
_LABELS = (
    "label labels label_text label_name label_desc category category_name categories class class_name intent sentiment emotion topic "
    "target polarity stars rating gold gold_label 标签 类别 分类 意图 情感"
)
LABELS = frozenset(_LABELS.split())
# Columns that may stand beside them whatever they hold; numbers, true, false and null may in any column.
_BESIDE = (
    "id idx index guid uid uuid row split fold set file filename file_name path source src_id url link lang language date time "
    "timestamp created_at updated_at user user_id username author_id 编号 序号"
)
BESIDE = frozenset(_BESIDE.split())
LONGEST = 80  # characters of what is taken for a label by itself


def recognises(columns: set[str], values: dict[str, Any]) -> bool:
    """Whether a row of these columns is meant this way."""
    texts, labels = named(columns, TEXTS), named(columns, LABELS)
    if len(texts) != 1 or len(labels) != 1 or not isinstance(values.get(texts[0]), str):
        return False
    label = values.get(labels[0])
    return short(label) and all(_beside(name, values.get(name)) for name in columns - {texts[0], labels[0]})


def to_sample(values: dict[str, Any], origin: str) -> Sample:
    """Raises RowError."""
    text, label = _column(values, "text", TEXTS), _column(values, "label", LABELS)
    question, answer = required_text(values, text, "there is nothing to judge"), _answer(values[label], label)
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Sample(origin, messages, source=question, label=answer)


def named(columns: Iterable[Any], names: frozenset[str]) -> list[str]:
    """Those of the columns that stand among the names, capital letters or not."""
    return [column for column in columns if isinstance(column, str) and column.lower() in names]


def _column(values: dict[str, Any], ours: str, names: frozenset[str]) -> str:
    """The one column that is meant. Raises RowError."""
    found = [ours] if ours in values else named(values, names)
    if len(found) != 1:
        what = (
            f"{', '.join(found)} may all be it: say which by data.columns={{{ours}: ...}}"
            if found
            else f"the row has {', '.join(map(str, values))}"
        )
        raise RowError(f"no {ours!r} ({what})")
    return found[0]


def _answer(label: Any, column: str) -> str:
    if label is None or (isinstance(label, str) and not label.strip()):
        raise RowError(f"no label: {column!r} is {'null' if label is None else 'empty'}")
    if isinstance(label, bool):
        raise RowError(
            f"{column!r} is {describe(label)}: a class, or a judgement of the text? "
            f"If it is the answer to be learned, say data.columns={{prompt: ..., completion: {column}}}"
        )
    if isinstance(label, float):
        raise RowError(f"{column!r} is {describe(label)}, not a text or a whole number")
    return json_text(label)


def short(label: Any) -> bool:
    """Whether a value may be a label; one that is absent is a bad row's."""
    if isinstance(label, str):
        return len(label) <= LONGEST
    return label is None or (isinstance(label, int) and not isinstance(label, bool))


def _beside(name: str, value: Any) -> bool:
    return str(name).lower() in BESIDE or value is None or isinstance(value, int | float) or value == ""
