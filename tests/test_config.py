"""Settings: read, refused with a place and a cure, written back without loss, described."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunesmith import config
from tunesmith.config import METHODS_ELSEWHERE, NEAREST, NOT_YET, Loaded, Run, dump, load, parse, schema, table, takes
from tunesmith.errors import UserError
from tunesmith.methods.settings import SETTINGS, Freeze, LoRA
from tunesmith.run_yaml import parse_value

EVERY = "auto, full, freeze, lora, dora, pissa, prompt, ptuning, prefix, ptuning_v2, adapter, qlora"


def wrong(call: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        call()
    return list(caught.value.problems)


@pytest.fixture
def yaml_file(tmp_path: Path, monkeypatch):
    """Writes RUN.yaml into the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        Path("RUN.yaml").write_text(text, encoding="utf-8")
        return Path("RUN.yaml")

    return write


def words(*settings: str) -> Loaded:
    """As the command line would: KEY=VALUE."""
    return load(None, [(word.partition("=")[0], parse_value(word.partition("=")[2]), word) for word in settings])


# --- reading ---


def test_defaults():
    run = parse({})
    assert (run.model.dtype, run.data.max_length, run.train.epochs, run.train.schedule, run.method) == ("auto", 1024, 3.0, "cosine", LoRA())
    assert run.out == "" and run.data.pack is True and run.train.clip == 1.0


def test_a_file_and_overrides_and_where_each_came_from(yaml_file):
    path = yaml_file("model:\n  source: some/model\ntrain: {epochs: 1, seed: 4}\n")
    loaded = load(path, [("train.epochs", 2, "train.epochs=2"), ("data.train", "d.jsonl", "--data")])
    assert (loaded.run.model.source, loaded.run.train.epochs, loaded.run.train.seed, loaded.run.data.train) == (
        "some/model",
        2,
        4,
        "d.jsonl",
    )
    assert loaded.origins["model.source"] == "RUN.yaml:2" and loaded.origins["train.seed"] == "RUN.yaml:3"
    assert loaded.origins["train.epochs"] == "train.epochs=2" and loaded.origins["data.train"] == "--data"


@pytest.mark.parametrize("text", ["", "# nothing\n", "train:\ndata:\n", "\ufefftrain: {}\n"])
def test_empty_files_and_empty_sections_are_defaults(yaml_file, text):
    assert load(yaml_file(text)).run == parse({})


def test_the_method_as_a_word_and_with_settings(yaml_file):
    assert parse({"method": "freeze"}).method == Freeze() and parse({"method": "auto"}).method == LoRA()
    assert parse({"method": {"rank": 4}}).method == LoRA(rank=4)
    assert load(yaml_file("method: lora\n"), [("method.rank", 4, "method.rank=4")]).run.method == LoRA(rank=4)
    assert load(yaml_file("method: {rank: 4}\n"), [("method", "lora", "--method")]).run.method == LoRA(rank=4)
    assert load(yaml_file("method:\n"), [("method.rank", 4, "")]).run.method == LoRA(rank=4)
    assert words("method=full").run.method.name == "full"


def test_qlora_is_lora_over_an_nf4_base():
    loaded = load(None, [("method", "qlora", "--method"), ("method.rank", 4, "method.rank=4")])
    assert loaded.run.method == LoRA(rank=4) and loaded.run.model.quantize == "nf4"
    text = dump(loaded.run, loaded.origins)
    assert "  quantize: nf4  # method qlora\n" in text and "  name: lora  # --method\n" in text
    assert wrong(lambda: words("method=qlora", "model.quantize=null")) == [
        "model.quantize is null, but method qlora is lora over an NF4 base; leave one of them out"
    ]


def test_several_sources(yaml_file):
    run = load(yaml_file("data:\n  train:\n    - {source: a.jsonl, weight: 2}\n    - source: b.csv#50\n")).run
    assert not isinstance(run.data.train, str)
    assert [(source.source, source.weight) for source in run.data.train] == [("a.jsonl", 2.0), ("b.csv#50", 1.0)]


# --- what is wrong ---

MISTAKES: list[tuple[str, list[str]]] = [
    ("train:\n  step: 5\n", ["RUN.yaml:2: train.step: no such setting; did you mean 'steps'?"]),
    ("trian:\n  steps: 5\n", ["RUN.yaml:1: trian: no such setting; did you mean 'train'?"]),
    ("steps: 5\n", ["RUN.yaml:1: steps: no such setting; did you mean 'train.steps'?"]),
    ("model:\n  learning-rate: 1\n", ["RUN.yaml:2: model.learning-rate: no such setting; did you mean 'train.learning_rate'?"]),
    ("num_train_epochs: 3\n", ["RUN.yaml:1: num_train_epochs: no such setting; here it is train.epochs"]),
    ("method: {lora_rank: 8}\n", ["RUN.yaml:1: method.lora_rank: no such setting; here it is method.rank"]),
    ("xyzzy: 1\n", ["RUN.yaml:1: xyzzy: no such setting"]),
    ("train: {steps: -3}\n", ["RUN.yaml:1: train.steps: takes whole number ≥ 1 | null, not -3"]),
    ("train: {steps: 2.5}\n", ["RUN.yaml:1: train.steps: takes whole number ≥ 1 | null, not 2.5"]),
    ("train: {seed: true}\n", ["RUN.yaml:1: train.seed: takes whole number ≥ 0, not true"]),
    ('train: {epochs: "3"}\n', ["RUN.yaml:1: train.epochs: takes number > 0, not '3'; leave the quotes out"]),
    ("train: {epochs: .inf}\n", ["RUN.yaml:1: train.epochs: takes number > 0, not Infinity"]),
    ("train: {learning_rate: quick}\n", ["RUN.yaml:1: train.learning_rate: takes number > 0 | auto, not 'quick'"]),
    ("model: {dtype: float99}\n", [
        "RUN.yaml:1: model.dtype: takes auto | float32 | bfloat16 | float16, not 'float99'; did you mean 'float32'?"
    ]),
    ("data: {pack: maybe}\n", ["RUN.yaml:1: data.pack: takes true | false, not 'maybe'"]),
    ("data: {columns: prompt}\n", ["RUN.yaml:1: data.columns: takes {name: text, ...}, not 'prompt'"]),
    ("data: {columns: {prompt: 3}}\n", ["RUN.yaml:1: data.columns: takes {name: text, ...}, not 3"]),
    ("data: {evaluate: 1.5}\n", ["RUN.yaml:1: data.evaluate: takes number > 0 and < 1 | text | null, not 1.5"]),
    ("data: {date: 31.1.2024}\n", ["RUN.yaml:1: data.date: takes today | YYYY-MM-DD, not '31.1.2024'"]),
    ("out: 2024\n", ["RUN.yaml:1: out: takes text, not 2024; put it in quotes"]),
    ("train: 5\n", ["RUN.yaml:1: train: a section with settings of its own, not 5"]),
    ("train:\n  steps:5\n", [
        "RUN.yaml:1: train: a section with settings of its own, not 'steps:5'; a blank is missing behind the colon"
    ]),
    ("method: 3\n", ["RUN.yaml:1: method: a section with settings of its own, not 3"]),
    ("method: lorra\n", [f"RUN.yaml:1: no method 'lorra'; did you mean 'lora'?; there are {EVERY}"]),
    ("method: {name: dorra}\n", [f"RUN.yaml:1: no method 'dorra'; did you mean 'dora'?; there are {EVERY}"]),
    ("method:\n  name: full\n  rank: 8\n", ["RUN.yaml:3: method.rank: a setting of lora, dora, pissa, not of full"]),
    ("method: {layers: 3}\n", ["RUN.yaml:1: method.layers: a setting of freeze, not of lora"]),
    ("method: {targets: q_proj}\n", ["RUN.yaml:1: method.targets: takes all | [role or ending of a path, ...], not 'q_proj'"]),
    ("method: {targets: []}\n", ["RUN.yaml:1: method.targets: takes all | [role or ending of a path, ...], not []"]),
    ("data:\n  train:\n    - source: a\n      weigth: 2\n", ["RUN.yaml:4: data.train.0.weigth: no such setting; did you mean 'weight'?"]),
    ("data:\n  train:\n    - {source: a, weight: 0}\n    - {weight: 1}\n", [
        "RUN.yaml:3: data.train.0.weight: takes number > 0, not 0",
        "RUN.yaml:4: data.train.1.source is missing",
    ]),
    ("data: {train: 5}\n", ["RUN.yaml:1: data.train: takes text | [{source, weight}, ...], not 5; put it in quotes"]),
    ("evaluate:\n  forgetting: [a.jsonl]\n", ["RUN.yaml:2: evaluate.forgetting: this version cannot do that yet; leave it at false"]),
    ("train:\n  seed: 1\n  epochs: 2\n  seed: 3\n", ["RUN.yaml:4: train.seed stands twice, first in line 2"]),
    ("train:\n\tseed: 1\n", [
        "RUN.yaml:2: not valid YAML: found character '\\t' that cannot start any token; indent with blanks, not with tabs"
    ]),
    ("train: {seed: 1\n", ["RUN.yaml:2: not valid YAML: expected ',' or '}', but got '<stream end>'"]),
    ("- a\n", ["RUN.yaml:1: a run file is made of `key: value` lines"]),
    ("seed=3\n", ["RUN.yaml:1: a run file is made of `key: value` lines"]),
    ("out: !!python/object:os.system x\n", [
        "RUN.yaml:1: out: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object:os.system'"
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problems"), MISTAKES, ids=[text for text, _ in MISTAKES])
def test_typical_mistakes_in_a_file(yaml_file, text, problems):
    assert wrong(lambda: load(yaml_file(text))) == problems


def test_all_of_them_are_said_at_once(yaml_file):
    text = "model: {dtype: x, sorce: y}\ntrain:\n  steps: 0\n  lr: 3\nmethod: {rnk: 2}\nfoo: 1\n"
    overrides = [("train.clip", -1, "train.clip=-1"), ("train.steps.x", 1, "train.steps.x=1")]
    assert wrong(lambda: load(yaml_file(text), overrides)) == [
        "train.steps.x=1: train.steps is one value, it has no settings inside",
        "RUN.yaml:1: model.dtype: takes auto | float32 | bfloat16 | float16, not 'x'",
        "RUN.yaml:1: model.sorce: no such setting; did you mean 'source'?",
        "RUN.yaml:5: method.rnk: no such setting; did you mean 'rank'?",
        "RUN.yaml:3: train.steps: takes whole number ≥ 1 | null, not 0",
        "train.clip: takes number ≥ 0, not -1",
        "RUN.yaml:4: train.lr: no such setting; here it is train.learning_rate",
        "RUN.yaml:6: foo: no such setting",
    ]


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("rank=8", "rank: no such setting; did you mean 'method.rank'?"),
        ("trian.steps=5", "trian.steps=5: trian: no such setting; did you mean 'train'?"),
        ("train.steps=5x", "train.steps: takes whole number ≥ 1 | null, not '5x'"),
        ("train.steps=", None),
        ("train.epochs=", "train.epochs: takes number > 0, not null"),
        ("model=foo", "model: a section with settings of its own, not 'foo'"),
        ("method=adalora", f"method: no method 'adalora'; it is not in this version; the nearest is --method lora; there are {EVERY}"),
        ("evaluate.forgetting=[a.jsonl]", "evaluate.forgetting: this version cannot do that yet; leave it at false"),
    ],
)
def test_typical_mistakes_on_the_command_line(word, problem):
    if problem is None:
        words(word)
    else:
        assert wrong(lambda: words(word)) == [problem]


def test_a_flag_is_named():
    assert wrong(lambda: load(None, [("method", "zzz", "--method")])) == [f"--method: no method 'zzz'; there are {EVERY}"]
    assert wrong(lambda: load(None, [("out", 5, "--out")])) == ["--out: out: takes text, not 5; put it in quotes"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("LoRA", "did you mean 'lora'?"),
        ("P-Tuning v2", "did you mean 'ptuning_v2'?"),
        ("LoftQ", "here it is method.name=qlora method.init=loftq"),
        ("QDoRA", "here it is --method dora model.quantize=nf4"),
        ("LoRA+", "here it is --method lora method.plus_ratio=16"),
        ("PREFIX_TUNING", "here it is --method prefix"),
        ("IA3", "it is not in this version; the nearest is --method lora"),
    ],
)
def test_methods_by_the_names_of_other_programs(name, hint):
    assert wrong(lambda: words(f"method={name}")) == [f"method: no method {name!r}; {hint}; there are {EVERY}"]


@pytest.mark.parametrize("meant", sorted(set(METHODS_ELSEWHERE.values()) - {NEAREST}))
def test_what_they_are_told_to_write_is_understood(meant):
    run = words(*meant.replace("--method ", "method=").split()).run
    assert run != words("method=lora").run


@pytest.mark.parametrize(
    ("name", "ours"),
    [("NER", "tag"), ("token-classification", "tag"), ("classification", "classify"), ("Sequence_Classification", "classify")],
)
def test_tasks_by_the_names_of_other_programs(name, ours):
    [problem] = wrong(lambda: words(f"task.name={name}"))
    assert problem.endswith(f"not {name!r}; did you mean {ours!r}?")


@pytest.mark.parametrize("key", NOT_YET)
def test_settings_that_nothing_serves_are_refused_never_ignored(key):
    section, name = key.split(".")
    value: Any = {"evaluate.forgetting": ["a.jsonl"]}.get(key, "x")
    assert len(wrong(lambda: parse({section: {name: value}}))) == 1
    for harmless in NOT_YET[key]:
        parse({section: {name: harmless}})


def test_files_that_cannot_be_read(tmp_path):
    assert wrong(lambda: load(tmp_path / "none.yaml")) == [f"{tmp_path / 'none.yaml'}: no such file"]
    assert "cannot be read as YAML" in wrong(lambda: load(tmp_path))[0]
    (tmp_path / "latin.yaml").write_bytes(b"out: caf\xe9\n")
    assert "cannot be read as YAML" in wrong(lambda: load(tmp_path / "latin.yaml"))[0]


def test_a_run_does_not_change():
    with pytest.raises(ValueError, match="frozen"):
        parse({}).train.seed = 3


# --- writing back ---

RUNS: list[dict[str, Any]] = [
    {},
    {"method": "full", "train": {"steps": 7, "learning_rate": 1e-05, "weight_decay": 1e16}},
    {"method": {"name": "lora", "targets": ["q", "v"], "alpha": 3}, "model": {"quantize": "nf4", "double_quant": False}},
    {"method": {"targets": ["q_proj", "mlp.fc1"]}, "data": {"train": [{"source": "a.jsonl#5", "weight": 0.5}, {"source": "é 中"}]}},
    {"data": {"columns": {"prompt": "userInput.text", "completion": "labels"}, "prompt": "Q: {q}\n#A: {a}\t'\"\\", "evaluate": 0.1}},
    {"out": "2e-4", "data": {"format": "no", "test": "010", "evaluate": "null", "train": "1:30", "date": "2024-01-31"}},
    {"model": {"source": "~", "adapter": "true", "device": "cuda:1"}, "evaluate": {"metrics": ["a", "1"]}, "out": " # x "},
]


@pytest.mark.parametrize("values", RUNS, ids=str)
def test_what_is_written_is_read_back(tmp_path, values):
    run = parse(values)
    origins = dict.fromkeys(["out", "data.prompt", "data.train", "method.targets"], "data.prompt=two\nlines # and more")
    (tmp_path / "run.yaml").write_text(dump(run, origins), encoding="utf-8")
    again = load(tmp_path / "run.yaml").run
    assert again == run and type(again.method) is type(run.method)
    if not {"2e-4", "010"} & set(map(str, [values.get("out"), *values.get("data", {}).values()])):
        assert Run.model_validate(yaml.safe_load(dump(run))) == run, "any YAML reader reads the same"


def test_every_setting_is_written_with_its_origin():
    loaded = words("train.learning_rate=2e-4", "method=freeze")
    text = dump(loaded.run, loaded.origins)
    assert "  learning_rate: 0.0002  # train.learning_rate=2e-4\n" in text and "  name: freeze  # method=freeze\n" in text
    values = yaml.safe_load(text)
    assert {key: set(section) for key, section in values.items() if isinstance(section, dict)} == {
        key: set(section) for key, section in loaded.run.model_dump().items() if isinstance(section, dict)
    }


# --- described ---


def leaves(cls: Any) -> set[str]:
    return set(cls.model_fields)


def test_every_setting_has_a_line_in_the_table():
    keys = {row.key for row in table()}
    expected = {f"{section}.{name}" for section, cls in config.SECTIONS.items() for name in leaves(cls)}
    expected |= {f"method.{name} ({method})" for method, cls in SETTINGS.items() for name in leaves(cls) - {"name"}}
    expected |= {"method.name", "out", "serve_with", "data.train.N.source", "data.train.N.weight"}
    assert keys == expected and len(table()) == len(keys)
    assert all(row.sentence.endswith(".") and row.choices and row.default for row in table())


def test_what_settings_take_in_words():
    rows = {row.key: row for row in table()}
    assert rows["train.steps"].choices == "whole number ≥ 1 | null" and rows["train.steps"].default == "null"
    assert rows["train.warmup"].choices == "number ≥ 0 and < 1" and rows["train.warmup"].default == "0.05"
    assert rows["data.pack"].choices == "true | false" and rows["data.pack"].default == "true"
    assert rows["data.train"].choices == "text | [{source, weight}, ...]" and rows["data.train"].default == "''"
    assert rows["method.name"].choices == EVERY.replace(", ", " | ") and rows["method.name"].default == "auto"
    assert rows["data.train.N.source"].default == "needed"
    assert takes(Run.model_fields["train"]).startswith("{epochs, steps,")


def test_the_schema_describes_everything():
    made = schema()
    json.dumps(made)
    assert all(prop.get("description") for prop in made["properties"].values())
    for name, definition in made["$defs"].items():
        assert definition["description"], name
        assert all(prop.get("description") for prop in definition["properties"].values()), name
    assert made["$defs"]["Train"]["properties"]["steps"]["description"] == "Optimizer steps; overrides epochs."
    assert made["additionalProperties"] is False
    word, sections = made["properties"]["method"]["anyOf"]
    assert word["enum"] == config.METHOD_NAMES and len(sections["oneOf"]) == len(SETTINGS)
    assert made["$defs"]["LoRA"]["properties"]["name"]["enum"] == ["auto", "lora", "qlora"]


def test_records_are_plain():
    assert [each.name for each in dataclasses.fields(config.Row)] == ["key", "default", "choices", "sentence"]
    assert Loaded(parse({})).origins == {}


def test_settings_of_a_method_that_would_change_nothing_are_refused_with_their_place(yaml_file):
    found = wrong(lambda: load(yaml_file("method:\n  name: prompt\n  init: vocabulary\n  text: Sort the letters.\n")))
    assert found == [
        "RUN.yaml:4: method.text=Sort the letters. changes nothing: method.init=vocabulary begins from no text; leave one of the two out"
    ]
    found = wrong(
        lambda: load(
            overrides=[("method.name", "adapter", "--method"), *[(f"method.{k}", 8, f"method.{k}=8") for k in ("width", "reduction")]]
        )
    )
    assert found == ["method.reduction=8.0 changes nothing: method.width already says how wide the bottleneck is; leave one of the two out"]
