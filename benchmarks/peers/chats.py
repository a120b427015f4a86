"""The rows of a job as conversations, for peers that read those."""

import json
from pathlib import Path


def conversations(rows_file):
    """A list of messages a row."""
    found = []
    for row in json.loads(Path(rows_file).read_text(encoding="utf-8")):
        messages = [{"role": "system", "content": row["system"]}] if row.get("system") else []
        question = row["instruction"] + ("\n" + row["input"] if row.get("input") else "")
        found.append([*messages, {"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}])
    return found


def written(rows_file):
    """The same as a JSON lines file of {"messages": [...]} beside the rows; its path."""
    target = Path(rows_file).with_suffix(".messages.jsonl")
    lines = [json.dumps({"messages": messages}, ensure_ascii=False) + "\n" for messages in conversations(rows_file)]
    target.write_text("".join(lines), encoding="utf-8")
    return str(target)
