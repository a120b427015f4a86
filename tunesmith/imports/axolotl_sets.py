"""Axolotl's `datasets`: where each lies, and the shape of its rows by its `type`."""

import re
from typing import Any

from tunesmith.imports.translation import Translation, names, shown

SHAPES = {"alpaca": "alpaca", "sharegpt": "sharegpt", "chat_template": "auto", "completion": "text", "pretrain": "text", "": "auto"}
ANSWERS = {"role": ("role", "content"), "from": ("from", "value")}


def datasets(t: Translation) -> None:
    raw = t.take("pretraining_dataset" if t.has("pretraining_dataset") else "datasets")
    key = "pretraining_dataset" if t.has("pretraining_dataset") else "datasets"
    sets = [({"type": "completion"} if key == "pretraining_dataset" else {}) | each for each in listed(raw)]
    if not sets:
        t.refused.append("no datasets: what is learned from?")
        return
    sources = [source(t, f"{key}.{number}", each) for number, each in enumerate(sets)]
    t.put("data.train", sources[0] if len(sources) == 1 else [{"source": each, "weight": 1.0} for each in sources], key)
    shapes = [_shape(t, f"{key}.{number}", each) for number, each in enumerate(sets)]
    first = shapes[0]
    if any(shape != first for shape in shapes[1:]):
        t.changed.append(
            f"{key}: its data sets are of several types; each file's shape is recognised by itself, check it with `data check`"
        )
        for number, shape in enumerate(shapes):
            needs = ", ".join(f"{setting}={shown(value)}" for setting, value in shape.items() if setting in ("data.columns", "data.prompt"))
            if needs:
                t.left.append(f"{key}.{number}: needs {needs}, which is said for all data or none: name this one in a dataset_info.json")
        return
    for setting, value in first.items():
        t.put(setting, value, key)


def listed(raw: Any) -> list[dict[str, Any]]:
    """The data sets of a list, which may be written as their paths alone."""
    items = raw if isinstance(raw, list) else [raw] if raw else []
    return [each if isinstance(each, dict) else {"path": str(each)} for each in items]


def source(t: Translation, key: str, each: dict[str, Any]) -> str:
    """One data set as we name it: a path or a hub id with subset and split."""
    path = str(each.get("path") or "")
    if not path:
        t.refused.append(f"{key}: has no path")
    files = names(each.get("data_files"))
    if path in ("json", "csv", "text", "parquet") and files:
        path = files[0]
        if len(files) > 1:
            t.left.append(f"{key}.data_files: {', '.join(files[1:])}: one source each; write them as a list in data.train, or as a pattern")
    elif files:
        t.left.append(f"{key}.data_files: a data set of a hub is taken by its subset and split: {', '.join(files)}")
    split, part = str(each.get("split") or ""), ""
    if found := re.fullmatch(r"(\w*)\[:(\d+)\]", split):
        split, part = found[1], f"#{found[2]}"
    elif "[" in split:
        t.left.append(f"{key}.split: {split}: write SOURCE#N for N of the rows")
        split = split.partition("[")[0]
    on_a_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", path) and not re.search(r"\.(jsonl?|csv|tsv|txt|md|parquet|gz)$", path)
    if on_a_hub:
        path += "".join(f":{word}" for word in (each.get("name"), split if split != "train" else "") if word)
    for name in sorted(set(each) - KNOWN_IN_A_SET):
        t.left.append(f"{key}.{name}: {each[name]}: no setting here")
    return path + part


KNOWN_IN_A_SET = {"path", "name", "split", "data_files", "type", "ds_type", "field", "field_messages", "message_field_role"}
KNOWN_IN_A_SET |= {"message_field_content", "message_property_mappings", "roles", "conversation", "chat_template", "trust_remote_code"}
KNOWN_IN_A_SET |= {"field_tools", "field_system", "field_instruction", "field_input", "field_output", "text_column"}


def _shape(t: Translation, key: str, each: dict[str, Any]) -> dict[str, Any]:
    """Our settings for the type of a data set."""
    kind = each.get("type") or ""
    if isinstance(kind, dict):
        return _custom(t, key, kind)
    base = str(kind).split(".")[0].split(":")[0]
    if base not in SHAPES:
        t.left.append(f"{key}.type: {kind}: not known here; the rows' shape is recognised, or said by data.format and data.columns")
        return {}
    if base in ("completion", "pretrain"):
        field = str(each.get("field") or each.get("text_column") or "text")
        columns = {"data.columns": {"text": field}} if field != "text" else {}
        return {"task.name": "text", "data.format": "text", "data.on_overlength": "split"} | columns
    if base == "chat_template":
        return _chat(t, key, each)
    return {"data.format": SHAPES[base]} if SHAPES[base] != "auto" else {}


def _chat(t: Translation, key: str, each: dict[str, Any]) -> dict[str, Any]:
    mapped = each.get("message_property_mappings") or {}
    role = each.get("message_field_role") or mapped.get("role") or "role"
    content = each.get("message_field_content") or mapped.get("content") or "content"
    turns = str(each.get("field_messages") or "messages")
    if (role, content) not in ANSWERS.values():
        t.left.append(f"{key}: turns with {role} and {content}: name these in a dataset_info.json (role_tag, content_tag), data.info")
        return {}
    ours = "messages" if role == "role" else "conversations"
    columns = {} if turns in ("messages", "conversations") else {ours: turns}
    for column, ours_too in (("field_tools", "tools"), ("field_system", "system")):
        if each.get(column) and each[column] != ours_too:
            columns |= {ours: turns, ours_too: str(each[column])}
    if each.get("roles"):
        t.needless.append(f"{key}.roles: the usual names of roles are known")
    return {"data.columns": columns} if columns else {}


def _custom(t: Translation, key: str, kind: dict[str, Any]) -> dict[str, Any]:
    """A type that is written out: a template of the prompt, and the answer's column."""
    instruction, context = str(kind.get("field_instruction") or "instruction"), str(kind.get("field_input") or "input")
    output = str(kind.get("field_output") or "output")
    template = str(kind.get("format") or "")
    if kind.get("system_prompt"):
        t.left.append(f"{key}.type.system_prompt: say it in the data: a system column")
    if "[INST]" in template or "<|" in template:
        t.changed.append(f"{key}.type.format: its chat markers are left out; the model's own chat template stands in their place")
        template = ""
    if not template:
        columns = {"instruction": instruction, "input": context, "output": output}
        return {} if all(ours == theirs for ours, theirs in columns.items()) else {"data.columns": columns}
    braces = re.sub(r"(?<!\{)\{(?!instruction\}|input\})|(?<!instruction)(?<!input)\}", lambda found: found[0] * 2, template)
    prompt = braces.replace("{instruction}", "{" + instruction + "}").replace("{input}", "{" + context + "}")
    return {"data.prompt": prompt, "data.columns": {"completion": output}}
