"""The rows of each case, written once as the file that every contender reads, and what our tokenizer counts in them."""

import csv
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cases import Case

ALPACA = "llamafactory_demo/alpaca_en_demo.json"
INTENTS = "banking77/train.csv"
FILES = {"alpaca": ALPACA, "intents": INTENTS}
SYSTEM_TOKENS, ROW_TOKENS = 500, 100
TEMPLATE_TOKENS = 96  # more than a template adds to a row, and words that are two tokens; no row may need cutting
CHAT_TOKENS = (64, 600, 4000)  # shortest, median, longest


@dataclass(frozen=True, slots=True)
class Counted:
    """What a case's rows are, by our tokenizer and template; padding has no place in it."""

    documents: int
    tokens: int
    learned_tokens: int
    begin: tuple[int, ...]  # the tokens that every document begins with, the first few
    labels: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...] = field(default=(), repr=False)  # of each document, up to its last learned token


def make(case: Case, count: int, data: Path | None, model: Path, target: Path) -> Path:
    """The rows' file. Rows without the data sets they are named after are made up, which the results say."""
    rows = MAKERS[case.rows](count, data, words_of(model), case.row_tokens - TEMPLATE_TOKENS)
    if case.classify:
        target = target.with_suffix(".jsonl")
        target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        target = target.with_suffix(".json")
        target.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
        columns = {"prompt": "instruction", "query": "input", "response": "output"}
        if all("system" in row for row in rows):
            columns["system"] = "system"
        description = {target.stem: {"file_name": target.name, "columns": columns}}  # LLaMA-Factory's way to name a file
        described = target.parent / "dataset_info.json"
        known = json.loads(described.read_text(encoding="utf-8")) if described.exists() else {}
        described.write_text(json.dumps(known | description), encoding="utf-8")
    return target


def count(case: Case, file: Path, model: Path) -> Counted:
    """Through our own reading, template and tokenizer, as a run does it."""
    from tunesmith.config import parse
    from tunesmith.train.setting import decide

    task = {"name": "classify"} if case.classify else {}
    data = {"train": str(file), "max_length": case.row_tokens, "stream": False, "workers": 0}
    setting = decide(parse({"model": {"source": str(model), "device": "cpu"}, "data": data, "task": task, "train": {"epochs": 1.0}}), {})
    documents = setting.documents
    firsts = [documents.ids_N[begin : begin + 64].tolist() for begin in documents.begin_D]
    shared = next((at for at in range(64) if len({ids[at] if at < len(ids) else None for ids in firsts}) > 1), 64)
    begin = tuple(firsts[0][: min(shared, 8)]) if not case.classify else ()
    labels = tuple(setting.run.task.labels) if case.classify else ()
    ids = []
    for first, end in zip(documents.begin_D, documents.end_D, strict=True):
        last = end - 1 if case.classify else first + documents.learned_N[first:end].nonzero()[0][-1] + 1
        ids.append(tuple(documents.ids_N[first:last].tolist()))
    return Counted(len(documents), documents.tokens, documents.learned_tokens, begin, labels, tuple(ids))


def words_of(model: Path) -> list[str]:
    """English-like words that are one token each with a blank before them, in a fixed order."""
    from tunesmith.models.load import load_tokenizer

    found = sorted(word[1:] for word in load_tokenizer(model).get_vocab() if word[:1] == "Ġ" and word[1:].isascii() and word[1:].islower())
    return [word for word in found if word.isalpha() and len(word) > 2] or ["tree", "house", "river", "stone"]


def found(case: Case, data: Path | None) -> bool:
    """Whether the data set that the rows are named after is there."""
    return data is not None and (data / FILES[case.rows]).exists()


def alpaca(count: int, data: Path | None, words: list[str], room: int) -> list[dict[str, Any]]:
    if data is None or not (data / ALPACA).exists():
        return chats(count, None, words, room, (20, 180, 700))
    rows = json.loads((data / ALPACA).read_text(encoding="utf-8"))[:count]
    return [{key: row.get(key, "") for key in ("instruction", "input", "output")} for row in rows]


def shared_prefix(count: int, data: Path | None, words: list[str], room: int) -> list[dict[str, Any]]:
    """One system prompt of about 500 tokens before questions and answers of about 100."""
    chance = random.Random(0)
    system = " ".join(chance.choices(words, k=SYSTEM_TOKENS - 4))
    half = (ROW_TOKENS - 12) // 2
    texts = [[" ".join(chance.choices(words, k=half)) for _ in range(2)] for _ in range(count)]
    return [{"system": system, "instruction": question, "input": "", "output": answer} for question, answer in texts]


def chats(count: int, data: Path | None, words: list[str], room: int, lengths: tuple[int, int, int] = CHAT_TOKENS) -> list[dict[str, Any]]:
    """Questions and answers of random words, as long as chats are: log-normal around the median, a third of it the question."""
    chance, (shortest, median, longest) = random.Random(0), lengths
    rows = []
    for _ in range(count):
        length = int(min(longest, room, max(shortest, median * chance.lognormvariate(0.0, 0.8)))) - 40
        texts = [" ".join(chance.choices(words, k=max(4, part))) for part in (length // 3, length - length // 3)]
        rows.append({"instruction": texts[0], "input": "", "output": texts[1]})
    return rows


def intents(count: int, data: Path | None, words: list[str], room: int) -> list[dict[str, Any]]:
    """BANKING77's training texts in a fixed random order; made up where they are absent: 77 labels, each a word of its own."""
    chance = random.Random(0)
    if data is not None and (data / INTENTS).exists():
        with (data / INTENTS).open(encoding="utf-8", newline="") as file:
            rows = [{"text": row["text"], "label": row["category"]} for row in csv.DictReader(file)]
        chance.shuffle(rows)
        return rows[:count]
    labels = [chance.randrange(77) for _ in range(count)]
    return [
        {"text": " ".join([*chance.choices(words, k=chance.randint(6, 18)), words[label % len(words)]]), "label": f"intent-{label}"}
        for label in labels
    ]


MAKERS: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "alpaca": alpaca,
    "shared_prefix": shared_prefix,
    "chats": chats,
    "intents": intents,
}
