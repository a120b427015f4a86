"""A run is one small typed record, `Run`.

Flags, YAML, JSON schema, documentation tables and the saved `run.yaml` are all read from it; no setting is written
twice. An unknown key or a wrong value is an error with the key's path, the YAML line and the nearest name.
"""

import difflib
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo

from tunesmith.errors import UserError
from tunesmith.methods.settings import SETTINGS, Auto, LoRA, MethodSettings, PositiveFloat, PositiveInt, Settings, Share
from tunesmith.run_yaml import flow, read_yaml

Fraction = Annotated[float, Field(gt=0, lt=1, strict=True)]
Size = Annotated[str, Field(pattern=r"^(\d+(\.\d+)?\s*[MG]i?B|(100|[1-9]\d?)%)$", title="8GB | 8GiB | 80%")]
Date = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$", title="YYYY-MM-DD")]


class Model(Settings):
    """The base model."""

    source: str = ""
    """Local folder, .gguf file, hub id (`Qwen/Qwen3-0.6B`; `ms:` in front for ModelScope) or `builtin:smollm2-135m-instruct`."""
    adapter: str | None = None
    """An adapter to go on from: a run folder or an adapter folder in peft's layout; its base is model.source where none is named."""
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
    evaluate: Fraction | str | None = None
    """Rows for the evaluation loss during training: a fraction of the training rows, or a path."""
    test: str | None = None
    """Rows kept for `tunesmith evaluate`, never trained on."""
    format: str = "auto"
    """Name of the rows' shape; auto recognises it and says which."""
    encoding: str = "auto"
    """Encoding of text files, such as gb18030; auto recognises it or refuses the file by name."""
    documents: Literal["file", "heading", "line"] = "file"
    """What one document of a .txt or .md file is: the whole file, each part under a heading, or each line."""
    columns: dict[str, str] = Field(default={})
    """Our column: theirs, for other shapes; dots reach inside: {prompt: userInput.text, completion: labels}."""
    prompt: str | None = None
    """A template for the prompt with {column} names, in place of a prompt column."""
    max_length: Annotated[int, Field(ge=16, strict=True)] = 1024
    """Longest document in tokens."""
    on_overlength: Literal["truncate", "drop", "split", "error"] = "truncate"
    """What happens to longer documents; split is for raw text."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop at rows that cannot be used, or leave them out and count them."""
    pack: bool = True
    """Put whole documents together into full rows; attention never crosses documents."""
    share_prefixes: bool = True
    """Compute once for a row what several of its documents begin with; needs `pack`."""
    thinking: Literal["keep", "drop", "empty"] = "keep"
    """Thinking in answers: learn it, leave it out, or write an empty thinking block where the template has one."""
    info: str = "auto"
    """A LLaMA-Factory `dataset_info.json` that names data sets."""
    replay: str | None = None
    """A second source mixed in against forgetting: as many of its rows as `replay_share` says, or as `PATH#500` says."""
    replay_share: Fraction = 0.1
    """Rows of `replay` for each row of the training data."""
    workers: Annotated[int, Field(ge=0, strict=True)] | Auto = "auto"
    """Processes that tokenise; 0 is none beside the run itself, auto is one a core where there are megabytes to tokenise."""
    stream: bool | Auto = "auto"
    """Take the first step while the rest is still being tokenised; auto does so for large files where train.steps is given."""
    date: Literal["today"] | Date = "today"
    """The date (YYYY-MM-DD) that a chat template prints; today is fixed when the run is made, and stored."""

    @property
    def reading(self) -> dict[str, Any]:
        """How files and rows are understood, as `data.sources.understand` takes it."""
        return {key: getattr(self, key) for key in ("format", "columns", "prompt", "encoding", "documents")}


class Task(Settings):
    """What is predicted."""

    name: Literal["auto", "generate", "text", "classify", "tag"] = "auto"
    """generate answers, continue raw text, classify texts, or tag their words; auto is generate or text, as the data is."""
    head: Literal["score", "words"] = "score"
    """What classifies: a linear layer on the last token, or the likelihood of the labels' own words as an answer."""
    input: Literal["auto", "text", "chat"] = "auto"
    """With a head: the bare text, or the text as a chat's question; auto is text."""
    labels: list[str] | Auto = "auto"
    """The labels (of tag: the types of entities), in order; auto takes those of the training data."""
    class_weights: Literal["none", "balanced"] = "none"
    """With a head: every row counts the same, or every label does."""


class Train(Settings):
    """The optimizer's loop."""

    epochs: PositiveFloat = 3.0
    """Passes over the data."""
    steps: PositiveInt | None = None
    """Optimizer steps; overrides epochs."""
    tokens_per_step: PositiveInt | Auto = "auto"
    """Tokens of one optimizer step; auto aims at 100 steps or more, between 512 and 8192 tokens."""
    row_tokens: PositiveInt | Auto = "auto"
    """Most tokens computed at once; auto is 1024 on a CPU, 8192 on a GPU, the longest document, or fewer for memory."""
    learning_rate: PositiveFloat | Auto = "auto"
    """Peak learning rate; auto is the method's default."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """AdamW, or bitsandbytes' 8-bit and paged forms of it."""
    weight_decay: Annotated[float, Field(ge=0, strict=True)] = 0.0
    """Decoupled weight decay."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate goes to zero after warm-up."""
    warmup: Share = 0.05
    """Share of the steps in which the learning rate rises."""
    clip: Annotated[float, Field(ge=0, strict=True)] = 1.0
    """Largest gradient norm; 0 is no clipping."""
    seed: Annotated[int, Field(ge=0, strict=True)] = 0
    """Order of the data, initial values and dropout."""
    checkpoint_every: PositiveInt | Auto = "auto"
    """Optimizer steps between checkpoints; auto is a tenth of the run."""
    keep: PositiveInt = 2
    """Checkpoints kept; the best is kept apart."""
    recompute: Literal["auto", "none", "elementwise", "blocks", "offload"] = "auto"
    """Compute again in the backward pass: nothing, norms and alike, blocks, blocks with inputs off-loaded; auto is the least that fits."""
    compile: Literal["auto"] | bool = "auto"
    """Compile decoder blocks; auto is where the run is long enough to pay for it."""
    kernels: Literal["auto", "plain"] = "auto"
    """Our own norms, activations and attention kernels where they are proved at the start, or the plain ones of torch."""
    optimizer_in_backward: bool = False
    """Update each tensor as soon as its gradient is whole, so that no two gradients stand at once (full tuning; one row a step)."""
    fp8: bool = False
    """Products with frozen matrices in 8-bit floating point (a GPU that has them); gated on the loss curve."""
    cuda_graphs: Literal["auto"] | bool = "auto"
    """Replay a row's launches as recorded graphs (a GPU); auto is for models of up to 3B parameters."""
    memory_budget: Auto | Size = "auto"
    """Most memory that the run may take; auto is nine tenths of what is free."""
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
    """Measure what the model forgot; true is noted and passed over for now."""


class Run(Settings):
    """Everything that decides a run."""

    model: Model = Model()
    """The base model."""
    data: Data = Data()
    """What is learned from."""
    task: Task = Task()
    """What is predicted."""
    method: MethodSettings = LoRA()
    """How the model is tuned; qlora is lora over an NF4 base, auto is lora until the planner chooses."""
    train: Train = Train()
    """The optimizer's loop."""
    evaluate: Evaluate = Evaluate()
    """What is measured on the way."""
    out: str = ""
    """Run folder; by default runs/MODEL-METHOD-DATA."""
    serve_with: Literal["builtin", "vllm", "tgi", "llamacpp", "ollama"] | None = None
    """What the result will be served by: what that takes only after a conversion, or not at all, is said before the run."""


METHOD_NAMES = ["auto", *SETTINGS, "qlora"]
SECTIONS: dict[str, type[Settings]] = {"model": Model, "data": Data, "task": Task, "train": Train, "evaluate": Evaluate}
# Settings whose place is fixed but which nothing serves yet, with the values that change nothing: others are refused, not ignored.
NOT_YET: dict[str, tuple[Any, ...]] = {
    "evaluate.forgetting": (True, False),  # true only asks for a measurement: the run goes on without it and says so
}
# What other programs call our settings.
ELSEWHERE = {
    "model_name_or_path": "model.source", "base_model": "model.source", "adapter_name_or_path": "model.adapter",
    "torch_dtype": "model.dtype", "load_in_4bit": "model.quantize=nf4", "quantization_bit": "model.quantize=nf4",
    "dataset": "data.train", "datasets": "data.train", "cutoff_len": "data.max_length", "max_seq_length": "data.max_length",
    "sequence_len": "data.max_length", "packing": "data.pack",
    "finetuning_type": "method.name", "lora_rank": "method.rank", "lora_r": "method.rank", "r": "method.rank", "lora_alpha": "method.alpha",
    "lora_dropout": "method.dropout", "lora_target": "method.targets", "target_modules": "method.targets", "use_rslora": "method.rslora",
    "loraplus_lr_ratio": "method.plus_ratio", "use_dora": "method=dora", "pissa_init": "method=pissa", "init_lora_weights": "method.init",
    "num_virtual_tokens": "method.tokens", "freeze_trainable_layers": "method.layers", "additional_target": "method.modules_to_save",
    "trainable_token_indices": "method.trainable_tokens", "problem_type": "task.name=classify", "num_labels": "task.labels",
    "num_train_epochs": "train.epochs", "num_epochs": "train.epochs", "max_steps": "train.steps",
    "batch_size": "train.tokens_per_step", "per_device_train_batch_size": "train.tokens_per_step", "micro_batch_size": "train.row_tokens",
    "gradient_accumulation_steps": "train.tokens_per_step", "lr": "train.learning_rate", "optim": "train.optimizer",
    "lr_scheduler_type": "train.schedule", "lr_scheduler": "train.schedule", "warmup_ratio": "train.warmup", "max_grad_norm": "train.clip",
    "save_steps": "train.checkpoint_every", "save_total_limit": "train.keep", "gradient_checkpointing": "train.recompute=blocks",
    "eval_steps": "evaluate.every", "val_size": "data.evaluate", "output_dir": "out",
}  # fmt: skip

NEAREST = "not in this version; the nearest is --method lora"
# What other programs and papers call methods, in lower case and without - _ and blanks.
METHODS_ELSEWHERE = {
    "loftq": "method.name=qlora method.init=loftq", "qdora": "--method dora model.quantize=nf4",
    "qpissa": "--method pissa model.quantize=nf4", "rslora": "--method lora method.rslora=true",
    "lora+": "--method lora method.plus_ratio=16", "loraplus": "--method lora method.plus_ratio=16",
    "houlsby": "method.name=adapter method.variant=houlsby", "pfeiffer": "method.name=adapter method.variant=pfeiffer",
    "bottleneck": "--method adapter", "bitfit": "method.name=freeze method.pattern=.*bias", "prompttuning": "--method prompt",
    "prefixtuning": "--method prefix", "promptencoder": "--method ptuning", "ptuningv1": "--method ptuning",
    **dict.fromkeys(("ia3", "adalora", "vera", "oft", "boft", "loha", "lokr"), NEAREST),
}  # fmt: skip
TASKS_ELSEWHERE = {
    "ner": "tag", "tokenclassification": "tag", "tokencls": "tag", "classification": "classify", "sequenceclassification": "classify",
    "textclassification": "classify", "seqcls": "classify", "causallm": "generate", "pretraining": "text",
}  # fmt: skip


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
    problems: list[str] = []
    for key, value, origin in overrides or []:
        try:
            _put(values, key, value)
            origins[key] = origin
        except KeyError as at:
            problems.append(f"{origin}: {at.args[0]} is one value, it has no settings inside")
    try:
        run = parse(values, origins)
    except UserError as error:
        raise UserError(*problems, *error.problems) from None
    if problems:
        raise UserError(*problems)
    if _method_name(values) == "qlora":
        origins.setdefault("model.quantize", "method qlora")
    return Loaded(run, origins)


def parse(values: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> Run:
    """A Run from plain values. Raises UserError with every misfit at once."""
    origins = origins or {}
    try:
        run = Run.model_validate(_plain_method(values, origins))
    except ValidationError as error:
        raise UserError(*_problems(error, values, origins)) from None
    kept = run.model_dump()
    problems = [
        f"{_head(f'method.{name}', origins)}={flow(kept['method'][name])} changes nothing: {because}; leave one of the two out"
        for name, because in run.method.idle().items()
    ]
    for key, harmless in NOT_YET.items():
        section, name = key.split(".")
        if kept[section][name] not in harmless:
            problems.append(f"{_head(key, origins)}: this version cannot do that yet; leave it at {flow(harmless[-1])}")
    if problems:
        raise UserError(*problems)
    return run


def _method_name(values: Mapping[str, Any]) -> Any:
    method = values.get("method")
    return method.get("name", "auto") if isinstance(method, dict) else "auto" if method is None else method


def _plain_method(values: Mapping[str, Any], origins: Mapping[str, str]) -> dict[str, Any]:
    """`method: lora` is `{name: lora}`; `auto` is lora for now, and `qlora` lora over an NF4 base. An empty section is its defaults."""
    name = _method_name(values)
    result = {key: {} if value is None and key in SECTIONS else value for key, value in values.items()}
    if not isinstance(name, str) or not isinstance(result.get("method", {}), str | dict | None):
        return result
    method = result.get("method")
    result["method"] = (method if isinstance(method, dict) else {}) | {"name": "lora" if name in ("auto", "qlora") else name}
    model = result.get("model", {})
    if name == "qlora" and isinstance(model, dict):
        if model.get("quantize", "nf4") is None:
            raise UserError(f"{_head('model.quantize', origins)} is null, but method qlora is lora over an NF4 base; leave one of them out")
        result["model"] = {"quantize": "nf4"} | model
    return result


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Lay one dotted key over nested values. Raises KeyError with the part that is no section."""
    *sections, last = key.split(".")
    if isinstance(values.get("method"), str) and sections[:1] == ["method"]:
        values["method"] = {"name": values["method"]}
    if key == "method" and isinstance(value, str) and isinstance(values.get("method"), dict):
        values["method"]["name"] = value
        return
    for depth, section in enumerate(sections, 1):
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise KeyError(".".join(sections[:depth]))
    values[last] = value


def dump(run: Run, origins: Mapping[str, str] | None = None) -> str:
    """`run.yaml`: every setting, with where it came from as a comment where it is not the default."""
    origins = dict(origins or {})
    if "method" in origins:
        origins.setdefault("method.name", origins["method"])

    def line(name: str, value: Any, key: str) -> str:
        note = " ".join(origins.get(key, "").split())
        return f"{name}: {flow(value)}" + (f"  # {note}" if note else "")

    lines = []
    for key, value in run.model_dump().items():
        if isinstance(value, dict):
            lines.append(f"{key}:")
            lines += ["  " + line(name, inner, f"{key}.{name}") for name, inner in value.items()]
        else:
            lines.append(line(key, value, key))
    return "\n".join(lines) + "\n"


# --- the same settings as a schema, as a table, and in words ---


def schema() -> dict[str, Any]:
    """JSON schema of a RUN.yaml, with each setting's sentence."""
    result = Run.model_json_schema()
    for key, info in Run.model_fields.items():  # pydantic leaves out what only repeats the section's own sentence
        result["properties"][key]["description"] = info.description
    method = result["properties"]["method"]
    word = {"type": "string", "enum": METHOD_NAMES, "description": "The method with its own defaults."}
    method["anyOf"] = [word, {"oneOf": method.pop("oneOf")}]
    method.pop("discriminator")
    name = result["$defs"]["LoRA"]["properties"]["name"]
    name.pop("const")
    name["enum"] = [name for name in METHOD_NAMES if name not in SETTINGS or name == "lora"]
    return result


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the settings table."""

    key: str
    default: str
    choices: str
    sentence: str


def table() -> list[Row]:
    """Every setting: key, default, what it takes, sentence. Methods' own settings stand as `method.KEY (name)`."""
    rows = [row for section, cls in SECTIONS.items() for row in _rows(section, cls)]
    rows += _rows("data.train.N", Source)
    rows.append(Row("method.name", "auto", " | ".join(METHOD_NAMES), Run.model_fields["method"].description or ""))
    rows += [row for name, cls in SETTINGS.items() for row in _rows("method", cls, f" ({name})") if not row.key.startswith("method.name")]
    return [*rows, *(_row(key, Run.model_fields[key]) for key in ("out", "serve_with"))]


def _rows(section: str, cls: type[Settings], suffix: str = "") -> list[Row]:
    return [_row(f"{section}.{name}{suffix}", info) for name, info in cls.model_fields.items()]


def _row(key: str, info: FieldInfo) -> Row:
    return Row(key, "needed" if info.is_required() else flow(info.default), takes(info), info.description or "")


def takes(info: FieldInfo) -> str:
    """What a setting takes, in words: `whole number ≥ 1 | auto`."""
    return " | ".join(dict.fromkeys(_kinds(info.annotation, info.metadata)))


_KINDS: dict[Any, str] = {int: "whole number", float: "number", str: "text", bool: "true | false", type(None): "null"}
_LIMITS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def _kinds(annotation: Any, metadata: Sequence[Any] = ()) -> Iterator[str]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [limit for each in arguments[1:] for limit in (each.metadata if isinstance(each, FieldInfo) else [each])]
        titles = [each.title for each in arguments[1:] if isinstance(each, FieldInfo) and each.title]
        yield from titles or _kinds(arguments[0], inner)
    elif origin in (Union, types.UnionType):
        for each in arguments:
            yield from _kinds(each)
    elif origin is Literal:
        yield from map(str, arguments)
    elif origin is list:
        yield f"[{'|'.join(_kinds(arguments[0]))}, ...]"
    elif origin is dict:
        yield "{name: text, ...}"
    elif annotation in _KINDS:
        limits = [f"{sign} {getattr(each, name)}" for each in metadata for name, sign in _LIMITS.items() if hasattr(each, name)]
        yield " ".join([_KINDS[annotation], " and ".join(limits)]).strip()
    else:
        yield "{" + ", ".join(annotation.model_fields) + "}"


# --- what is wrong, in words that a person can act on ---


def nearest(name: str, names: Sequence[str], cutoff: float = 0.5) -> str:
    """`; did you mean 'rank'?` or nothing."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""


def _meant(name: str) -> str:
    """What to say of the name of a method that there is not."""
    if (elsewhere := METHODS_ELSEWHERE.get(_plain(name))) is not None:
        return f"; it is {elsewhere}" if elsewhere == NEAREST else f"; here it is {elsewhere}"
    own = [each for each in METHOD_NAMES if _plain(each) == _plain(name)]
    return f"; did you mean {own[0]!r}?" if own else nearest(name.lower(), METHOD_NAMES, 0.8)


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name.lower())


def _problems(error: ValidationError, values: Mapping[str, Any], origins: Mapping[str, str]) -> list[str]:
    """One sentence for each key: pydantic tries a union member by member, and reports each try."""
    name = _method_name(values)
    method = SETTINGS.get(str(name), LoRA)
    found: dict[str, str] = {}
    for item in error.errors(include_url=False):
        unknown = item["type"] == "extra_forbidden"
        key, info = _place(item["loc"], method, unknown)
        head = _head(key, origins)
        if unknown:
            sentence = f"{head}: {_unknown(key, method)}"
        elif item["type"] == "missing":
            sentence = f"{head} is missing"
        elif item["type"].startswith("union_tag"):
            sentence = f"{head.removesuffix(': method')}: no method {name!r}{_meant(str(name))}; there are {', '.join(METHOD_NAMES)}"
        else:
            sentence = f"{head}: {_misfit(key, info, item['input'])}"
        found.setdefault(key, sentence)
    return [sentence for key, sentence in found.items() if not any(other.startswith(key + ".") for other in found)]


def _place(loc: tuple[int | str, ...], method: type[Settings], unknown: bool) -> tuple[str, FieldInfo | None]:
    """The key that pydantic's path means (members of unions stand in it too), and the setting there."""
    parts: list[str] = []
    info: FieldInfo | None = None
    fields: Mapping[str, FieldInfo] = Run.model_fields
    for part in loc[: len(loc) - unknown]:
        if part in fields:
            info = fields[str(part)]
            section = method if part == "method" else SECTIONS.get(str(part))
            fields = section.model_fields if section and not parts else {}
            parts.append(str(part))
        elif isinstance(part, int) and parts == ["data", "train"]:
            fields = Source.model_fields
            parts.append(str(part))
    return ".".join([*parts, *map(str, loc[len(loc) - unknown :])]), info


def _head(key: str, origins: Mapping[str, str]) -> str:
    """`RUN.yaml:7: train.steps`; the key alone where `train.steps=-3` is where it came from."""
    holders = [key, *(key.rsplit(".", cut)[0] for cut in range(1, key.count(".") + 1))]
    near = [each for holder in holders for each in (holder, *(inner for inner in origins if inner.startswith(holder + ".")))]
    where = next((origins[each] for each in near if each in origins), "")
    return key if not where or where.startswith(key + "=") else f"{where}: {key}"


def _misfit(key: str, info: FieldInfo | None, given: Any) -> str:
    """What the setting takes, what was given, and the likeliest slip."""
    shown = repr(given) if isinstance(given, str) else json.dumps(given, ensure_ascii=False, default=str)
    if key in SECTIONS or key == "method" or info is None:
        blank = "; a blank is missing behind the colon" if isinstance(given, str) and re.search(r":\S", given) else ""
        return f"a section with settings of its own, not {shown}{blank}"
    wanted = takes(info)
    hint = ""
    if isinstance(given, str):
        number = "number" in wanted and re.fullmatch(r"[-+]?[\d._]+([eE][-+]?\d+)?", given)
        words = [word for word in wanted.split(" | ") if word.isidentifier()]
        meant = TASKS_ELSEWHERE.get(_plain(given), given) if key == "task.name" else given
        hint = "; leave the quotes out" if number else nearest(meant.lower(), words, 0.6)
    elif isinstance(given, int | float) and "text" in wanted.split(" | ") and "number" not in wanted:
        hint = "; put it in quotes"
    return f"takes {wanted}, not {shown}{hint}"


def _unknown(key: str, method: type[Settings]) -> str:
    """What to say of a key that there is not, with what was probably meant."""
    section, _, given = key.rpartition(".")
    name = given.replace("-", "_").lower()
    places = {"": list(Run.model_fields)} | {each: list(cls.model_fields) for each, cls in SECTIONS.items()}
    places["method"] = list(method.model_fields)
    owners = [each for each, cls in SETTINGS.items() if name in cls.model_fields]
    if section == "method" and owners and name not in places["method"]:
        return f"a setting of {', '.join(owners)}, not of {method.model_fields['name'].default}"
    if name in ELSEWHERE:
        return f"no such setting; here it is {ELSEWHERE[name]}"
    exact = [f"{each}.{name}".lstrip(".") for each, names in places.items() if name in names]
    if exact:
        return f"no such setting; did you mean {' or '.join(map(repr, exact))}?"
    beside = list(Source.model_fields) if section.startswith("data.train.") else places.get(section, [])
    everywhere = [f"{each}.{inner}" for each, names in places.items() if each for inner in names]
    return "no such setting" + (nearest(name, beside) or nearest(key, everywhere, 0.6))
