"""A run is one small typed record, `Run`.

Flags, YAML, JSON schema, documentation tables and the saved `run.yaml` are all read from it; no setting is written
twice. An unknown key or a wrong value is an error with the key's path, the YAML line and the nearest name.
"""

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError, model_validator

from tunesmith.errors import UserError
from tunesmith.methods.settings import SETTINGS, Auto, LoRA, MethodSettings, Settings

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]


class Model(Settings):
    """The base model."""

    source: str = ""
    """Local folder, .gguf file, hub id (`Qwen/Qwen3-0.6B`; `ms:` in front for ModelScope) or `builtin:smollm2-135m-instruct`."""
    adapter: str | None = None
    """An adapter to go on from: a run folder or an adapter folder in peft's layout."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the base's weights and of the computation; auto is bfloat16 where it is fast, else float32."""
    quantize: Literal["nf4"] | None = None
    """Keep the frozen linear layers in 4-bit NF4 (QLoRA, Dettmers 2023)."""
    double_quant: bool = True
    """Quantise the NF4 block scales too (8 bits, 256 scales a block)."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`; auto takes a GPU where there is one."""


class Source(Settings):
    """One of several training sources."""

    source: str
    """File, folder, glob or `builtin:NAME`; `PATH#500` takes a deterministic sample of 500 rows."""
    weight: PositiveFloat = 1.0
    """How often the source's rows are used in an epoch: 2 is twice, 0.5 a deterministic half."""


class Data(Settings):
    """What is learned from."""

    train: str | list[Source] = ""
    """File, folder, glob or `builtin:NAME`; `PATH#500` takes 500 rows; or a list of {source, weight}."""
    evaluate: Annotated[float, Field(gt=0, lt=1)] | str | None = None
    """Rows for the evaluation loss during training: a fraction of the training rows, or a path."""
    test: str | None = None
    """Rows kept for `tunesmith evaluate`, never trained on."""
    format: str = "auto"
    """Name of the rows' shape; auto recognises it and says which."""
    columns: dict[str, str] = {}
    """Our column: theirs, for other shapes; dots reach inside: {prompt: userInput.text, completion: labels}."""
    prompt: str | None = None
    """A template for the prompt with {column} names, in place of a prompt column."""
    max_length: Annotated[int, Field(ge=16)] = 1024
    """Longest document in tokens."""
    on_overlength: Literal["truncate", "drop", "split", "error"] = "truncate"
    """What happens to longer documents; split is for raw text."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop at rows that cannot be used, or leave them out and count them."""
    pack: bool = True
    """Put whole documents together into full rows; attention never crosses documents."""
    thinking: Literal["keep", "drop", "empty"] = "keep"
    """Thinking in answers: learn it, leave it out, or write an empty thinking block where the template has one."""
    info: str = "auto"
    """A LLaMA-Factory `dataset_info.json` that names data sets."""
    replay: str | None = None
    """A second source mixed in against forgetting."""
    date: str = "today"
    """The date (YYYY-MM-DD) that a chat template prints; today is fixed when the run is made, and stored."""


class Task(Settings):
    """What is predicted."""

    name: Literal["auto", "generate", "text"] = "auto"
    """generate answers to prompts, or continue raw text; auto follows the data."""


class Train(Settings):
    """The optimizer's loop."""

    epochs: PositiveFloat = 3.0
    """Passes over the data."""
    steps: PositiveInt | None = None
    """Optimizer steps; overrides epochs."""
    tokens_per_step: PositiveInt | Auto = "auto"
    """Tokens of one optimizer step; auto aims at 100 steps or more, between 512 and 8192 tokens."""
    row_tokens: PositiveInt | Auto = "auto"
    """Most tokens computed at once; auto is 2048 or the longest document."""
    learning_rate: PositiveFloat | Auto = "auto"
    """Peak learning rate; auto is the method's default."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """AdamW, or bitsandbytes' 8-bit and paged forms of it."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate goes to zero after warm-up."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps in which the learning rate rises."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest gradient norm; 0 is no clipping."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Order of the data, initial values and dropout."""
    checkpoint_every: PositiveInt | Auto = "auto"
    """Optimizer steps between checkpoints; auto is a tenth of the run."""
    keep: PositiveInt = 2
    """Checkpoints kept; the best is kept apart."""
    recompute: Literal["auto", "none", "blocks"] = "auto"
    """Recompute decoder blocks in the backward pass to save memory; auto is none."""
    compile: Literal["auto"] | bool = "auto"
    """Compile decoder blocks; auto is false."""
    memory_budget: str = "auto"
    """Most memory that the run may take, such as 8GB."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A loss that is not finite: stop with a checkpoint, or leave the step out; the rows are named."""
    threads: PositiveInt | Auto = "auto"
    """CPU threads; auto is the number of physical cores that this process may use."""
    tensorboard: bool = False
    """Write TensorBoard files too (needs `tensorboard`)."""


class Evaluate(Settings):
    """What is measured on the way."""

    every: PositiveInt | Auto = "auto"
    """Optimizer steps between evaluations; auto is a tenth of the run."""
    metrics: Literal["auto"] | list[str] = "auto"
    """Scores of `tunesmith evaluate`; auto follows the answers' kind."""
    forgetting: bool | list[str] = False
    """Measure what the model forgot."""


# Settings whose place is fixed but which nothing serves yet: setting them is refused rather than ignored.
NOT_YET = {
    "data.info": "auto",
    "data.replay": None,
    "train.compile": ("auto", False),
    "train.memory_budget": "auto",
    "evaluate.forgetting": False,
}


class Run(Settings):
    """Everything that decides a run."""

    model: Model = Model()
    data: Data = Data()
    task: Task = Task()
    method: MethodSettings = LoRA()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    out: str = ""
    """Run folder; by default runs/MODEL-METHOD-DATA."""

    @model_validator(mode="before")
    @classmethod
    def _aliases(cls, values: Any) -> Any:
        """`method: lora` for `{name: lora}`; `qlora` is stored as lora over an NF4 base; `auto` is lora for now."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        method = values.get("method", {})
        if isinstance(method, str):
            method = {"name": method}
        if isinstance(method, dict):
            method = {"name": "auto"} | method
            if method["name"] == "qlora":
                model = values.get("model", {})
                if isinstance(model, dict):
                    values["model"] = {"quantize": "nf4"} | model
                    if values["model"]["quantize"] is None:
                        raise ValueError("method qlora is lora over an NF4 base, but model.quantize is null")
            if method["name"] in ("auto", "qlora"):
                method = method | {"name": "lora"}
            values["method"] = method
        return values


@dataclass
class Loaded:
    """A run as it was asked for, with where each set key came from: `RUN.yaml:7`, `--model`, `method.rank=16`."""

    run: Run
    origins: dict[str, str] = field(default_factory=dict)


def load(path: Path | None = None, overrides: list[tuple[str, Any, str]] | None = None) -> Loaded:
    """Read a YAML file, then lay `(key, value, origin)` overrides over it.

    Raises UserError with every unknown key and wrong value at once.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if path is not None:
        values, lines = read_yaml(path)
        origins = {key: f"{path}:{line}" for key, line in lines.items()}
    problems = []
    for key, value, origin in overrides or []:
        try:
            _put(values, key, value)
        except KeyError as at:
            problems.append(f"{origin}: {at.args[0]} is one value, it has no keys inside")
        origins[key] = origin
    if problems:
        raise UserError(*problems)
    return Loaded(parse(values, origins), origins)


def parse(values: dict[str, Any], origins: dict[str, str] | None = None) -> Run:
    """A Run from plain values. Raises UserError with every misfit at once."""
    try:
        run = Run.model_validate(values)
    except ValidationError as error:
        raise UserError(*_problems(error, values, origins or {})) from None
    if problems := refuse_unserved(run):
        raise UserError(*problems)
    return run


def refuse_unserved(run: Run) -> list[str]:
    """A problem for each setting that this version would have to ignore."""
    values = run.model_dump()
    problems = []
    for key, allowed in NOT_YET.items():
        section, name = key.split(".")
        choices = allowed if isinstance(allowed, tuple) else (allowed,)
        if values[section][name] not in choices:
            problems.append(f"{key}: this version cannot do that yet; leave it at {_flow(choices[-1])}")
    return problems


def dump(run: Run, origins: dict[str, str] | None = None) -> str:
    """`run.yaml`: every setting, with where it came from as a comment where it is not the default."""
    lines = []
    for key, value in run.model_dump().items():
        if isinstance(value, dict):
            lines.append(f"{key}:")
            for name, inner in value.items():
                note = (origins or {}).get(f"{key}.{name}", "")
                lines.append(f"  {name}: {_flow(inner)}" + (f"  # {note}" if note else ""))
        else:
            note = (origins or {}).get(key, "")
            lines.append(f"{key}: {_flow(value)}" + (f"  # {note}" if note else ""))
    return "\n".join(lines) + "\n"


def schema() -> dict[str, Any]:
    """JSON schema of a RUN.yaml, with each setting's sentence."""
    result = Run.model_json_schema()
    for definition, cls in _sections():
        properties = result["$defs"][definition]["properties"] if definition else result["properties"]
        for name, sentence in sentences(cls).items():
            properties[name]["description"] = sentence
    return result


@dataclass(frozen=True)
class Row:
    """A line of the settings table."""

    key: str
    default: str
    choices: str
    sentence: str


def table() -> list[Row]:
    """Every setting: key, default, kind, sentence. Methods' own settings stand as `method.KEY (name)`."""
    rows = []
    for section, cls in [(n, f.annotation) for n, f in Run.model_fields.items() if n not in ("out", "method")]:
        rows += _rows(section, cls)
    for name, cls in SETTINGS.items():
        rows += [row for row in _rows("method", cls, f" ({name})") if not row.key.startswith("method.name")]
    rows.append(Row("method.name", "auto", " | ".join(["auto", "qlora", *SETTINGS]), "How the model is tuned; auto is lora until the planner chooses."))
    return rows + _rows("", Run, only="out")


def sentences(cls: type[Settings]) -> dict[str, str]:
    """The sentence under each field, read from the class's own source text."""
    import ast
    import inspect
    import textwrap

    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
    result = {}
    for statement, following in zip(body, body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
            result[statement.target.id] = following.value.value  # type: ignore[union-attr,attr-defined]
    return result


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The values of a YAML file and the line of every dotted key. Raises UserError with the line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {error}") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str = "value") -> tuple[dict[str, Any], dict[str, int]]:
    """As `read_yaml`, of a text."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        raise UserError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    lines: dict[str, int] = {}
    if node is None:
        return {}, lines
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{name}:{node.start_mark.line + 1}: a run file is made of `key: value` lines")
    problems: list[str] = []
    values = _plain(node, "", name, lines, problems)
    if problems:
        raise UserError(*problems)
    return values, lines


def parse_value(text: str) -> Any:
    """A value as written behind `KEY=`: YAML, so that [a,b], {a: b}, 2e-4, true and null mean what they say."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  _Loader is SafeLoader with fewer booleans
    except yaml.YAMLError:
        return text


class _Loader(yaml.SafeLoader):
    """SafeLoader in which only true and false are booleans (`on`, `no` and `y` stay words) and 2e-4 is a number."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))


def _plain(node: yaml.Node, key: str, name: str, lines: dict[str, int], problems: list[str]) -> Any:
    if isinstance(node, yaml.MappingNode):
        result = {}
        for key_node, value_node in node.value:
            inner = str(key_node.value)
            dotted = f"{key}.{inner}" if key else inner
            if inner in result:
                problems.append(f"{name}:{key_node.start_mark.line + 1}: {dotted} stands twice")
            lines[dotted] = key_node.start_mark.line + 1
            result[inner] = _plain(value_node, dotted, name, lines, problems)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, f"{key}.{i}", name, lines, problems) for i, item in enumerate(node.value)]
    loader = _Loader("")
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError) as error:
        problems.append(f"{name}:{node.start_mark.line + 1}: {key}: {error}")
        return None


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    if sections[:1] == ["method"] and isinstance(values.get("method"), str):
        values["method"] = {"name": values["method"]}
    if key == "method" and isinstance(value, str) and isinstance(values.get("method"), dict):
        values["method"]["name"] = value
        return
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise KeyError(section)
    values[last] = value


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9).strip().removesuffix("\n...").strip()


def _sections() -> list[tuple[str, type[Settings]]]:
    found: list[tuple[str, type[Settings]]] = [("", Run)]
    for cls in [Model, Source, Data, Task, Train, Evaluate, *SETTINGS.values()]:
        found.append((cls.__name__, cls))
    return found


def _rows(section: str, cls: Any, suffix: str = "", only: str = "") -> list[Row]:
    rows = []
    for name, info in cls.model_fields.items():
        if only and name != only:
            continue
        key = f"{section}.{name}" if section else name
        rows.append(Row(key + suffix, _flow(info.default), _kind(info.annotation), sentences(cls).get(name, "")))
    return rows


def _kind(annotation: Any) -> str:
    parts = []
    for choice in get_args(annotation) if str(annotation).startswith("typing.Optional") or "|" in str(annotation) or "Union" in str(annotation) else [annotation]:
        if str(choice).startswith("typing.Literal"):
            parts += [str(value) for value in get_args(choice)]
        elif choice is type(None):
            parts.append("null")
        else:
            inner = get_args(choice)[0] if str(choice).startswith("typing.Annotated") else choice
            parts.append({"int": "whole number", "float": "number", "bool": "true | false", "str": "text"}.get(getattr(inner, "__name__", ""), str(inner).replace("tunesmith.config.", "")))
    return " | ".join(dict.fromkeys(parts))


def _names(key: str, values: dict[str, Any]) -> list[str]:
    """The names that could have stood in place of the last part of `key`."""
    section = key.rpartition(".")[0]
    if section == "method":
        chosen = values.get("method", {})
        name = chosen.get("name", "lora") if isinstance(chosen, dict) else chosen
        return list(SETTINGS.get(name, LoRA).model_fields)
    cls: Any = Run if not section else Run.model_fields[section].annotation if section in Run.model_fields else Source
    return list(getattr(cls, "model_fields", {}))


def _problems(error: ValidationError, values: dict[str, Any], origins: dict[str, str]) -> list[str]:
    problems: dict[str, list[str]] = {}
    for item in error.errors():
        # pydantic puts union members and discriminator values into the path; only keys of ours belong there
        parts: list[str] = []
        for part in item["loc"]:
            known = not parts or str(part) in _names(".".join([*parts, "x"]), values) or item["type"] == "extra_forbidden" or isinstance(part, int)
            if parts == ["method"] and part in SETTINGS:
                continue
            if known and not (isinstance(part, str) and ("[" in part or part in ("str", "int", "float", "bool"))):
                parts.append(str(part))
        key = ".".join(parts)
        where = next((origins[k] for k in (key, key.rpartition(".")[0], "method" if key.startswith("method") else key) if k in origins), "")
        head = f"{where}: {key}" if where and where.split("=")[0] != key else key
        if item["type"] == "extra_forbidden":
            text = f"{head}: no such setting" + nearest(parts[-1], _names(key, values))
            other = [name for name, cls in SETTINGS.items() if parts[-1] in cls.model_fields]
            if key.startswith("method.") and other:
                text = f"{head}: a setting of {', '.join(other)}, not of this method"
        elif item["type"] in ("union_tag_invalid", "union_tag_not_found"):
            name = str(item.get("ctx", {}).get("tag", ""))
            text = f"{head}: no method {name!r}" + nearest(name, [*SETTINGS, "qlora"]) + f"; there are {', '.join([*SETTINGS, 'qlora'])}"
        else:
            given = item.get("input")
            text = f"{head}: {item['msg'].removeprefix('Value error, ')}" + ("" if item["type"] == "value_error" else f", not {given!r}")
        problems.setdefault(key, []).append(text)
    return [texts[0] if len(texts) == 1 else texts[0].split(", not ")[0] + "".join(f", or {t.rpartition(': ')[2].split(', not ')[0].lower()}" for t in texts[1:]) + f", not {error_input(error, key)!r}" for key, texts in problems.items()]


def error_input(error: ValidationError, key: str) -> Any:
    """The value that the user gave for a key, for the message."""
    last = key.rpartition(".")[2]
    return next((item.get("input") for item in error.errors() if last in map(str, item["loc"])), None)


def nearest(name: str, names: list[str]) -> str:
    """`; did you mean 'rank'?` or nothing."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
