import json
from pathlib import Path
from typing import Any

import pytest

from tests.runs import own_cache  # noqa: F401
from tunesmith import cli, config

LLAMAFACTORY = """
### model
model_name_or_path: MODEL
trust_remote_code: true

### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 4
lora_target: q_proj,v_proj

### dataset
dataset: spell
template: llama3
cutoff_len: 128
max_samples: 20
overwrite_cache: true

### output
output_dir: saves/mine
logging_steps: 10
plot_loss: true

### train
per_device_train_batch_size: 2
gradient_accumulation_steps: 2
learning_rate: 1.0e-4
max_steps: 3
warmup_ratio: 0.1
neftune_noise_alpha: 5
bf16: false
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as LLaMA-Factory's users have them: its YAML, and data/dataset_info.json beside the data."""
    monkeypatch.chdir(tmp_path)
    rows = [{"conversations": [{"from": "human", "value": f"Spell {i}"}, {"from": "gpt", "value": "one two"}]} for i in range(24)]
    entry = {"file_name": "spell.json", "formatting": "sharegpt", "columns": {"messages": "conversations"}}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "spell.json").write_text(json.dumps(rows))
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps({"spell": entry}))
    (tmp_path / "theirs.yaml").write_text(LLAMAFACTORY)
    return tmp_path


def test_a_llamafactory_file_becomes_a_run_that_trains(here: Path, tiny_llama: Path, capsys: Any) -> None:
    (here / "theirs.yaml").write_text(LLAMAFACTORY.replace("MODEL", str(tiny_llama)))
    assert cli.main(["import-config", "theirs.yaml", "--out", "run.yaml"]) == 0
    run = config.load(Path("run.yaml")).run
    assert (run.model.source, run.data.train, run.data.max_length, run.out) == (str(tiny_llama), "spell#20", 128, "saves/mine")
    assert isinstance(run.method, config.LoRA) and (run.method.rank, run.method.targets) == (4, ["q_proj", "v_proj"])
    assert (run.train.steps, run.train.learning_rate, run.train.warmup, run.train.epochs) == (3, 1e-4, 0.1, 3.0)
    capsys.readouterr()
    assert cli.main(["train", "run.yaml", "model.dtype=float32", "train.threads=1"]) == 0
    assert "saves/mine: 3 steps" in capsys.readouterr().out
    report = json.loads(Path("saves/mine/data.json").read_text())
    assert report["documents"] == 20


def test_each_setting_says_which_key_it_came_from(here: Path, capsys: Any) -> None:
    assert cli.main(["import-config", "theirs.yaml"]) == 0
    shown, said = capsys.readouterr()
    lines = [line.strip() for line in shown.splitlines()]
    assert "rank: 4  # lora_rank (line 10)" in lines
    assert "train: spell#20  # dataset (line 14), max_samples (line 17)" in lines
    assert "targets: [q_proj, v_proj]  # lora_target (line 11)" in lines
    assert "schedule: linear  # LLaMA-Factory's default" in lines
    (here / "run.yaml").write_text(shown)
    config.load(here / "run.yaml")
    assert "# not carried over:\n#   neftune_noise_alpha: 5: no setting here\n" in shown
    assert "\nNOT carried over:\n  neftune_noise_alpha: 5: no setting here\n" in said
    assert "  template: llama3: the model's own chat template is used" in said
    assert "next: tunesmith train RUN.yaml --dry-run" in said


def test_what_makes_no_run_is_refused_with_all_reasons(here: Path, capsys: Any) -> None:
    (here / "theirs.yaml").write_text("stage: dpo\nfinetuning_type: oft\ndataset: spell\nlora_rank: 8\n")
    assert cli.main(["import-config", "theirs.yaml", "--out", "run.yaml"]) == 2
    said = capsys.readouterr().err
    assert "stage (line 1): DPO is not in this version" in said and "finetuning_type (line 2): oft is no method" in said
    assert "no model_name_or_path" in said and not Path("run.yaml").exists()


def test_a_value_that_our_setting_does_not_take_is_named_by_their_key(here: Path, capsys: Any) -> None:
    (here / "theirs.yaml").write_text(LLAMAFACTORY.replace("lora_rank: 4", "lora_rank: 0"))
    assert cli.main(["import-config", "theirs.yaml"]) == 2
    assert "lora_rank (line 10): method.rank: takes whole number ≥ 1, not 0" in capsys.readouterr().err


def test_a_run_file_that_was_changed_by_hand_is_not_overwritten(here: Path, capsys: Any) -> None:
    assert cli.main(["import-config", "theirs.yaml", "--out", "deep/run.yaml"]) == 0
    assert cli.main(["import-config", "theirs.yaml", "--out", "deep/run.yaml"]) == 0  # the same again
    Path("deep/run.yaml").write_text("out: mine\n")
    assert cli.main(["import-config", "theirs.yaml", "--out", "deep/run.yaml"]) == 2
    assert "deep/run.yaml: is there already and is not overwritten" in capsys.readouterr().err
    assert Path("deep/run.yaml").read_text() == "out: mine\n"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.yaml", "alpha: 1\nbeta: 2\n", "not recognised as a file of LLaMA-Factory, Axolotl, ms-swift; its keys are alpha, beta"),
        ("x.yaml", "model: {source: a}\ndata: {train: b}\n", "this is a run file of ours already: tunesmith train x.yaml"),
        ("x.yaml", "stage: [\n", "x.yaml:2: not valid YAML"),
        ("x.json", '{"stage": }', "x.json: not valid JSON"),
        ("x.yaml", "stage: sft\nstage: pt\n", "stage stands twice"),
        ("", "", "none.yaml: no such file"),
    ],
)
def test_files_that_are_none(here: Path, capsys: Any, name: str, text: str, words: str) -> None:
    if name:
        (here / name).write_text(text)
    assert cli.main(["import-config", name or "none.yaml"]) == 2
    assert words in capsys.readouterr().err


def test_json_too(here: Path, capsys: Any) -> None:
    values = {"model_name_or_path": "o/n", "stage": "sft", "dataset": "spell", "lora_rank": 16}
    (here / "theirs.json").write_text(json.dumps(values, indent="\t"))
    assert cli.main(["import-config", "theirs.json"]) == 0
    assert "rank: 16  # lora_rank\n" in capsys.readouterr().out


def test_axolotl_and_swift_are_recognised(here: Path, capsys: Any) -> None:
    sets = [{"path": "data/spell.json", "type": "chat_template", "field_messages": "conversations"}]
    (here / "a.json").write_text(json.dumps({"base_model": "o/n", "datasets": sets, "adapter": "lora", "sequence_len": 256, "lora_r": 4}))
    (here / "s.json").write_text(json.dumps({"model": "o/n", "dataset": ["x.jsonl"], "tuner_type": "lora", "target_modules": "all-linear"}))
    assert cli.main(["import-config", "a.json"]) == 0
    assert "a file of Axolotl: 5 keys" in capsys.readouterr().err
    assert cli.main(["import-config", "s.json"]) == 0
    assert "a file of ms-swift: 4 keys" in capsys.readouterr().err
