import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests import runs
from tests.runs import own_cache  # noqa: F401
from tunesmith import config, hardware
from tunesmith.errors import UserError
from tunesmith.methods import lora
from tunesmith.methods.rates import rate_at
from tunesmith.train import setting
from tunesmith.train.setting import decide


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture(scope="module")
def adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA on q and v with rank 3, alpha 6 and dropout 0.1, in peft's layout."""
    folder = tmp_path_factory.mktemp("adapter")
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(2):
        for name, out in (("q_proj", 64), ("v_proj", 32)):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_"
            tensors |= {f"{prefix}A.weight": torch.ones(3, 64), f"{prefix}B.weight": torch.ones(out, 3)}
    save_file(tensors, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(values | {"base_model_name_or_path": str(tiny_llama)}))
    return folder


def refusal(run: config.Run, origins: dict[str, str] | None = None) -> str:
    with pytest.raises(UserError) as refused:
        decide(run, origins or {}, runs.quiet)
    return str(refused.value)


def plain(model: Path, rows: Path, **sections: Any) -> config.Run:
    return config.parse({"model": {"source": str(model)}, "data": {"train": str(rows)}} | sections)


# --- what is left to us ---


def test_nothing_stays_open_that_decides_the_run(tiny_llama: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "physical_cores", lambda: 3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = decide(plain(tiny_llama, data), {"data.train": "--data"}, runs.quiet)
    run = found.run
    assert run.train.threads == 3 and found.origins["train.threads"] == "auto: physical cores"
    assert run.model.device == str(found.device) and run.model.dtype == str(found.dtype).removeprefix("torch.")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", run.data.date)
    assert run.task.name == "generate"
    assert run.train.tokens_per_step == 512, "few tokens: the smallest step"
    assert run.train.row_tokens == 1024
    assert run.train.learning_rate == rate_at(lora.LEARNING_RATES, 64), "by the model's channels"
    assert run.train.checkpoint_every == run.evaluate.every == max(1, -(-found.steps // 10))
    assert run.train.recompute == "none"
    assert run.out == "runs/tiny-llama-lora-rows"
    assert found.origins["data.train"] == "--data"
    changed = {key for key, origin in found.origins.items() if origin.startswith("auto: ")}
    assert {"model.dtype", "data.date", "train.tokens_per_step", "train.learning_rate", "out"} <= changed


def test_what_was_decided_is_decided_again(tiny_llama: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run must not choose anew, on whatever day and machine."""
    first = decide(plain(tiny_llama, data), {}, runs.quiet)
    monkeypatch.setattr(hardware, "physical_cores", lambda: 64)
    monkeypatch.setattr(hardware, "default_dtype", lambda device: (torch.float16, "another machine"))
    again = decide(config.load(None, []).run.model_validate(first.run.model_dump()), first.origins, runs.quiet)
    assert again.run == first.run and again.origins == first.origins
    assert again.report == first.report and again.steps == first.steps


@pytest.mark.parametrize(
    ("wished", "threads", "why"),
    [
        ("2", 2, "OMP_NUM_THREADS"),
        ("1,2", 1, "OMP_NUM_THREADS"),
        ("8", 4, "physical cores"),
        ("many", 4, "physical cores"),
        ("", 4, "physical cores"),
    ],
)
def test_threads_are_at_most_the_physical_cores(wished: str, threads: int, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "physical_cores", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", wished)
    assert setting.threads() == (threads, why)


def test_steps_come_from_epochs_unless_they_are_set(tiny_llama: Path, data: Path) -> None:
    train = {"tokens_per_step": 200}
    tokens = decide(plain(tiny_llama, data, train=train), {}, runs.quiet).documents.tokens
    assert decide(plain(tiny_llama, data, train=train | {"epochs": 2}), {}, runs.quiet).steps == 2 * round(tokens / 200)
    assert decide(plain(tiny_llama, data, train=train | {"steps": 5}), {}, runs.quiet).steps == 5


def test_a_fraction_is_held_out(tiny_llama: Path, data: Path) -> None:
    values = {"train": str(data), "evaluate": 0.25}
    found = decide(plain(tiny_llama, data, data=values), {}, runs.quiet)
    assert found.evaluation is not None
    held, kept = set(found.evaluation.origins), set(found.documents.origins)
    assert (len(held), len(kept)) == (6, 18) and not held & kept
    assert found.report["evaluation"]["rows"] == 6 and found.report["rows"] == 18
    again = decide(plain(tiny_llama, data, data=values), {}, runs.quiet).evaluation
    assert again is not None and set(again.origins) == held


def test_raw_text_is_split(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("It was a bright cold day. " * 40)
    values = {"train": str(tmp_path / "book.txt"), "max_length": 128}
    found = decide(plain(tiny_llama, tmp_path, data=values), {}, runs.quiet)
    assert (found.run.task.name, found.run.data.on_overlength) == ("text", "split")
    assert len(found.documents) > 5 and int(found.documents.lengths_D.max()) <= 128
    assert found.documents.tokens >= 1040, "nothing is thrown away"


def test_a_task_that_the_data_is_not_made_of(tiny_llama: Path, data: Path) -> None:
    assert "task.name is text, but the data is made of conversations" in refusal(plain(tiny_llama, data, task={"name": "text"}))


@pytest.mark.parametrize(
    ("method", "source", "name"),
    [
        ("qlora", "x/My Rows.jsonl#500", "runs/tiny-llama-qlora-my-rows"),
        ("full", "builtin:tickets", "runs/tiny-llama-full-tickets"),
        ("lora", [{"source": "a.csv", "weight": 2.0}, {"source": "b.csv"}], "runs/tiny-llama-lora-a"),
    ],
)
def test_a_run_folder_says_what_is_in_it(method: str, source: Any, name: str, tiny_llama: Path) -> None:
    from tunesmith.models.source import locate

    run = config.parse({"model": {"source": str(tiny_llama)}, "data": {"train": source}, "method": method})
    assert setting._out(run, locate(str(tiny_llama))) == name


# --- what is refused ---


def test_everything_that_is_missing_is_said_at_once() -> None:
    said = refusal(config.parse({}))
    assert "model.source is missing: --model" in said and "data.train is missing: --data" in said


@pytest.mark.parametrize(
    ("method", "free", "said"),
    [
        ("lora", 10e9, r"need 14.7 GB while loading, and 10.0 GB are free on cpu; with model.quantize=nf4 they would need 4.4 GB"),
        ("full", 10e9, r"need 14.7 GB .*; a model of at most about 4.5B parameters in bfloat16 fits here"),
        ("qlora", 2e9, r"need 4.4 GB .*; a model of at most about 0.9B parameters in bfloat16, or 2.9B with model.quantize=nf4 fits here"),
    ],
)
def test_a_model_too_large_for_memory(
    method: str, free: float, said: str, tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked of the config alone: a Llama of seven billion parameters, of which this folder holds next to none."""
    model = tmp_path / "large"
    shutil.copytree(tiny_llama, model)
    shape = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "head_dim": 128}
    values = json.loads((model / "config.json").read_text()) | shape | {"num_key_value_heads": 8, "vocab_size": 32000}
    (model / "config.json").write_text(json.dumps(values))
    monkeypatch.setattr(hardware, "free_memory", lambda device: int(free))
    run = runs.settings(model, data, tmp_path / "run", {"method": method, "model.dtype": "bfloat16"})
    found = refusal(run)
    assert re.search("large: its weights " + said, found), found


def test_full_tuning_of_nf4(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    said = refusal(runs.settings(tiny_llama, data, tmp_path / "run", {"method": "full", "model.quantize": "nf4"}))
    assert "NF4 codes have no gradient; take method.name=lora (QLoRA), or model.quantize=null" in said


def test_a_target_that_is_not_in_the_model(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    said = refusal(runs.settings(tiny_llama, data, tmp_path / "run", {"method": {"name": "lora", "targets": ["q", "fc1"]}}))
    assert "no linear layer fc1 in this model; roles: q k v o gate up down; layers: down_proj, gate_proj" in said


def test_tensorboard_is_asked_for_before_anything_else(
    tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    said = refusal(runs.settings(tiny_llama, data, tmp_path / "run", {"train.tensorboard": True}))
    assert "train.tensorboard needs the package tensorboard: pip install tensorboard" in said


# --- an adapter to go on from ---


def test_the_adapter_s_own_shape_is_what_run_yaml_says(adapter: Path, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    changes = {"model.adapter": str(adapter), "method": {"name": "lora", "dropout": 0.2, "plus_ratio": 16.0}}
    found = decide(runs.settings(tiny_llama, data, tmp_path / "run", changes), {}, runs.quiet)
    method: Any = found.run.method
    assert (method.rank, method.alpha, method.targets, method.dropout) == (3, 6.0, ["q_proj", "v_proj"], 0.2)
    assert found.tuning.count == 2 * (3 * 64 + 64 * 3 + 3 * 64 + 32 * 3)
    assert {module.dropout for module in found.tuning.adapter.values()} == {0.2}, "this run's, not that of the file"
    assert set(found.tuning.learning_rate_ratios.values()) == {16.0} and len(found.tuning.learning_rate_ratios) == 4
    again = decide(found.run, found.origins, runs.quiet)
    assert again.run == found.run


def test_the_base_is_the_one_that_the_adapter_names(adapter: Path, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    found = decide(runs.settings("", data, tmp_path / "run", {"model.adapter": str(adapter), "method": "lora"}), {}, runs.quiet)
    assert found.run.model.source == str(tiny_llama) and found.origins["model.source"] == f"auto: of the adapter {adapter}"
    nameless = shutil.copytree(adapter, tmp_path / "nameless")
    values = json.loads((nameless / "adapter_config.json").read_text())
    (nameless / "adapter_config.json").write_text(json.dumps(values | {"base_model_name_or_path": None}))
    said = refusal(runs.settings("", data, tmp_path / "run", {"model.adapter": str(nameless)}))
    assert said.startswith(f"model.source is missing, and the adapter {nameless} does not name its base: --model FOLDER")


def test_another_rank_than_the_adapter_s_is_refused(adapter: Path, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    run = runs.settings(tiny_llama, data, tmp_path / "run", {"model.adapter": str(adapter), "method": {"name": "lora", "rank": 16}})
    said = refusal(run, {"method.rank": "method.rank=16"})
    assert f"method.rank=16: method.rank is 3 of the adapter {adapter}; leave the setting out" in said


def test_a_run_that_names_no_origins_is_not_changed_in_silence(adapter: Path, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    """As a program makes it; ids of tokens are filled in by us, and are the user's all the same."""
    cases: list[tuple[dict[str, Any], str]] = [
        ({"rank": 16}, "method.rank=16: method.rank is 3 "),
        ({"trainable_tokens": ["a"]}, "method.trainable_tokens is [] "),
    ]
    for given, said in cases:
        method: dict[str, Any] = {"name": "lora", **given}
        run = runs.settings(tiny_llama, data, tmp_path / "run", {"model.adapter": str(adapter), "method": method})
        assert said in (found := refusal(run)) and found.endswith("leave the setting out")


def test_another_base_is_refused_with_shapes(adapter: Path, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    wide = AutoConfig.from_pretrained(other)
    wide.hidden_size, wide.head_dim = 128, 32
    AutoModelForCausalLM.from_config(wide).save_pretrained(other)
    said = refusal(runs.settings(other, data, tmp_path / "run", {"model.adapter": str(adapter)}))
    assert f"{adapter} was made for another base model ({tiny_llama})" in said
    assert "model.layers.0.self_attn.q_proj: made for (64, 64), the layer is (128, 128) (in, out)" in said


def test_an_adapter_is_gone_on_from_with_its_own_method(adapter: Path, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    said = refusal(runs.settings(tiny_llama, data, tmp_path / "run", {"model.adapter": str(adapter), "method": "full"}))
    assert f"model.adapter: the method is lora of the adapter {adapter}, not full; leave method.name out" in said
    said = refusal(runs.settings(tiny_llama, data, tmp_path / "run", {"model.adapter": str(tmp_path)}))
    assert "neither a run folder nor an adapter folder (adapter_config.json is missing)" in said


def test_how_an_adapter_begins_is_no_setting_of_a_run_that_goes_on_from_one(
    adapter: Path, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    method = {"name": "lora", "init": "gaussian", "dropout": 0.2}
    said = refusal(runs.settings(tiny_llama, data, tmp_path / "run", {"model.adapter": str(adapter), "method": method}))
    assert said == "method.init says how an adapter begins, and that of model.adapter has begun; leave it out"


def test_a_measurement_that_is_not_there_yet_is_said_not_passed_over(tiny_llama: Path, data: Path) -> None:
    assert not [note for note in decide(plain(tiny_llama, data), {}, runs.quiet).notes if "forgetting" in note]
    asked = decide(plain(tiny_llama, data, evaluate={"forgetting": True}), {}, runs.quiet)
    assert [note for note in asked.notes if note.startswith("evaluate.forgetting: this version does not measure")]


def test_rows_left_out_while_reading_count_among_the_fates(tiny_llama: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\nno json\n{"prompt": "c", "completion": "d"}\n', encoding="utf-8")
    values = {"model": {"source": str(tiny_llama)}, "data": {"train": str(rows), "on_bad_row": "skip"}}
    report = decide(config.parse(values), {}, runs.quiet).report
    assert report["rows"] == 4 and report["kept"] == 2
    assert report["rows"] == report["kept"] + report["cut"] + report["split"] + len(report["dropped"])
    assert [row["origin"].rpartition(":")[2] for row in report["dropped"]] == ["2", "3"]


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_documents_that_leave_no_place_for_what_stands_in_front_are_refused_before_the_weights_are_read(
    method: str, tiny_llama: Path, tmp_path: Path
) -> None:
    """The tiny model takes 512 positions."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "Spell it.", "completion": "a" * 440}) + "\n")
    sections: dict[str, Any] = {"method": {"name": method, "tokens": 20}, "train": {"steps": 1}}
    longest = decide(plain(tiny_llama, rows, **sections), {}, runs.quiet).documents.lengths_D.max()
    rows.write_text(json.dumps({"prompt": "Spell it.", "completion": "a" * (440 + 512 - 20 - longest)}) + "\n")
    decide(plain(tiny_llama, rows, **sections), {}, runs.quiet)
    rows.write_text(json.dumps({"prompt": "Spell it.", "completion": "a" * (441 + 512 - 20 - longest)}) + "\n")
    said = refusal(plain(tiny_llama, rows, **sections))
    assert "up to 493 tokens, 20 stand in front" in said and "takes 512 positions" in said and "data.max_length=492" in said
    assert decide(plain(tiny_llama, rows, train={"steps": 1}), {}, runs.quiet).steps == 1, "nothing stands in front"
