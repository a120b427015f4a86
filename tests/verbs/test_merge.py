import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from tests import runs
from tests.conftest import write_byte_tokenizer
from tests.runs import own_cache  # noqa: F401
from tunesmith import cli
from tunesmith.methods.layouts import layout
from tunesmith.models import load
from tunesmith.models.fingerprint import fingerprint
from tunesmith.tuned import open_tuned

IDS = torch.arange(3, 40)[None] * 7 % 256
STRONG = {"train.learning_rate": 0.05}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture(scope="module")
def done(tiny_llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lora") / "run"
    runs.finish(runs.settings(tiny_llama, data, out, STRONG))
    return out


@pytest.fixture(scope="module")
def quantized(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """QLoRA over GPT-2, whose matrices stand transposed in the checkpoint and not in the NF4 layers."""
    place = tmp_path_factory.mktemp("qlora")
    torch.manual_seed(0)
    sizes: Any = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
    GPT2LMHeadModel(GPT2Config(vocab_size=384, bos_token_id=259, eos_token_id=257, initializer_range=0.1, **sizes)).save_pretrained(
        place / "gpt2"
    )
    write_byte_tokenizer(place / "gpt2")
    runs.finish(runs.settings(place / "gpt2", data, place / "run", STRONG | {"method": {"name": "qlora", "rank": 4}}))
    return place / "run"


def test_a_merged_run_is_the_run(done: Path, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "merged"
    assert cli.main(["merge", str(done), str(out), "--max-kl", "1e-6"]) == 0
    printed = capsys.readouterr()
    facts = json.loads((out / "merge.json").read_text())
    assert facts == json.loads((done / "merge.json").read_text())
    difference = facts["difference_from_adapter"]
    assert (facts["changed_tensors"], facts["tensors"], facts["trained_over"]) == (14, 21, "float32")
    assert printed.out.startswith(f"{out}: 14 of 21 tensors changed; against the adapter on {difference['positions']} positions: KL ")
    assert 0 <= difference["mean_kl"] < 1e-9 and difference["top1_agreement"] == 1.0 and difference["positions"] > 100
    live, merged = logits(open_tuned(str(done)).model), logits(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32))
    assert (merged - live).abs().max() <= 1e-5 * live.abs().max()
    assert (live - logits(AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32))).abs().max() > 0.1
    assert logits(open_tuned(str(out), dtype="float32").model).shape == live.shape


def test_an_adapter_folder_is_merged_too(done: Path, tmp_path: Path) -> None:
    assert cli.main(["merge", str(done / "adapter"), str(tmp_path / "merged")]) == 0
    assert (tmp_path / "merged/merge.json").is_file() and not (done / "adapter" / "merge.json").exists()
    assert load_file(tmp_path / "merged/model.safetensors").keys()


def test_both_bases_are_measured_and_the_nearer_is_written(quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "merged"
    assert cli.main(["merge", str(quantized), str(out), "--max-kl", "1e-9"]) == 0
    facts, said = json.loads((out / "merge.json").read_text()), capsys.readouterr().err
    assert (facts["trained_over"], facts["base_weights"]) == ("nf4", "dequantised")
    original, dequantised = facts["bases"]["original"]["rows"]["mean_kl"], facts["bases"]["dequantised"]["rows"]["mean_kl"]
    assert 0 <= dequantised < 1e-9 and 1e-6 < original < 1
    assert f"dequantised weights KL {dequantised:.2e}" in said and f"original weights KL {original:.2e}" in said
    assert "the dequantised ones are nearer, the adapter was trained over NF4's rounding of the base" in said
    assert facts["difference_of_served_lora"]["mean_kl"] == pytest.approx(facts["bases"]["original"]["prompts"]["mean_kl"], rel=1e-3)
    live = logits(open_tuned(str(quantized)).model)
    assert (logits(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)) - live).abs().max() <= 1e-5 * live.abs().max()


def test_the_original_weights_are_taken_where_they_are_asked_for(
    quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    assert cli.main(["merge", str(quantized), str(out), "--base", "original"]) == 0
    facts, said = json.loads((out / "merge.json").read_text()), capsys.readouterr().err
    assert facts["base_weights"] == "original" and "but --base original was asked for" in said
    assert facts["difference_from_adapter"] == facts["bases"]["original"]["prompts"], "in memory and from the file alike"
    tuned, source = open_tuned(str(quantized)), load_file(Path(open_tuned(str(quantized)).run.model.source) / "model.safetensors")  # type: ignore[union-attr]
    after = load_file(out / "model.safetensors")
    assert after.keys() == source.keys()
    for path, module in tuned.tuning.adapter.items():
        name, update_IO = f"{path}.weight", 2.0 * (module.get_parameter("B") @ module.get_parameter("A")).T
        torch.testing.assert_close(after[name], source[name] + update_IO, rtol=1e-5, atol=1e-6)


def test_there_is_one_base_where_nothing_was_rounded(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source, more in ((done, ""), (done / "adapter", "name the run's folder, which says so")):
        assert cli.main(["merge", str(source), str(tmp_path / "out"), "--base", "dequantised"]) == 2
        said = capsys.readouterr().err
        assert f"--base dequantised: {source} was not trained over NF4, so there is one base" in said and more in said
    assert not (tmp_path / "out").exists()


def test_codes_of_a_residual_are_merged_as_they_were_trained_and_the_other_way_is_measured(
    quantized: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, run, out = quantized.parent / "gpt2", tmp_path / "run", tmp_path / "merged"
    runs.finish(runs.settings(source, data, run, STRONG | {"method": {"name": "pissa", "rank": 4}, "model.quantize": "nf4"}))
    assert cli.main(["merge", str(run), str(out), "--max-kl", "1e-6"]) == 0
    said, facts = capsys.readouterr(), json.loads((out / "merge.json").read_text())
    assert (facts["trained_over"], facts["base_weights"]) == ("nf4", "dequantised")
    faithful, served = facts["difference_from_adapter"], facts["difference_of_served_lora"]
    assert faithful["mean_kl"] < 1e-6 and served["mean_kl"] > 100 * max(faithful["mean_kl"], 1e-9)
    on_rows = facts["bases"]["original"]["rows"]["mean_kl"]
    assert "Served as a LoRA over the original ones: KL " in said.err and f"original weights KL {on_rows:.2e}" in said.err
    about = json.loads((run / "adapter/tunesmith.json").read_text())["pissa"]
    assert about["quantised"] and all(0.02 < about["weight_difference"][over] < 0.2 for over in ("original", "nf4"))
    live = logits(open_tuned(str(run)).model)
    assert (logits(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)) - live).abs().max() <= 1e-4 * live.abs().max()


def test_a_gate_of_the_user_s(quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["merge", str(quantized), str(tmp_path / "merged"), "--base", "original", "--max-kl", "1e-9"]) == 3
    said = capsys.readouterr().err
    assert "is above --max-kl 1e-09; the folder was written, do not serve it unseen" in said
    assert math.isfinite(json.loads((tmp_path / "merged/merge.json").read_text())["difference_from_adapter"]["mean_kl"])


@pytest.mark.parametrize("word", ["nan", "-1", "a"])
def test_a_gate_that_nothing_could_pass_is_refused_before_the_merge(
    word: str, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["merge", str(done), str(tmp_path / "merged"), "--max-kl", word]) == 2
    assert "is no KL divergence; write a number of nats" in capsys.readouterr().err and not (tmp_path / "merged").exists()


def test_an_output_that_is_there(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious").write_text("kept")
    assert cli.main(["merge", str(done), str(tmp_path)]) == 2
    assert cli.main(["merge", str(done), str(tmp_path / "precious")]) == 2
    assert capsys.readouterr().err.count("is not empty; name a new folder") == 2
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("precious", "kept")]


def test_there_is_nothing_to_merge(tiny_llama: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.finish(runs.settings(tiny_llama, data, tmp_path / "run", {"method": "full", "train.steps": 1}))
    assert cli.main(["merge", str(tmp_path / "run"), str(tmp_path / "out")]) == 2
    assert f"holds no adapter: there is nothing to merge; its whole model is in {tmp_path / 'run'}/model" in capsys.readouterr().err
    assert cli.main(["merge", str(tiny_llama), str(tmp_path / "out")]) == 2
    assert "holds no adapter: there is nothing to merge\n" in capsys.readouterr().err
    assert cli.main(["merge", str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["prompt", "ptuning", "prefix", "ptuning_v2", "adapter"])
def test_what_changes_no_matrix_is_not_merged(
    name: str, tiny_llama: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.finish(runs.settings(tiny_llama, data, tmp_path / "run", {"method": {"name": name}, "train.steps": 1}))
    monkeypatch.setattr(load, "load", None)  # refused before any weight is read
    assert cli.main(["merge", str(tmp_path / "run"), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    run = tmp_path / "run"
    assert f"{run}: what stands at " in said and f"serve the two together (`tunesmith serve {run}`)" in said
    assert f"`tunesmith export {run} --to peft --as lora --out OUT`" in said and "method.name=lora" in said
    assert not (tmp_path / "out").exists() and not (tmp_path / "run/merge.json").exists()


def test_a_full_disk_leaves_no_half_model(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tunesmith.export.merge.save_file", full)
    assert cli.main(["merge", str(done), str(tmp_path / "merged")]) == 2
    assert "merged: the disk is full" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def second(tiny_llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another adapter of the same base: another rank, fewer layers."""
    out = tmp_path_factory.mktemp("lora") / "second"
    changes = {"method": {"name": "lora", "rank": 2, "targets": ["q", "v"]}, "train.seed": 1}
    runs.finish(runs.settings(tiny_llama, data, out, STRONG | changes))
    return out


def update(folder: Path, layer: str) -> torch.Tensor:
    file = layout.read(folder)
    return file.facts["scales"][layer] * file.tensors[f"{layer}.B"] @ file.tensors[f"{layer}.A"]


def test_several_adapters_become_one(done: Path, second: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, layer = tmp_path / "both", "model.layers.0.self_attn.q_proj"
    assert cli.main(["merge", "--adapters", f"{done}=0.7", f"{second / 'adapter'}=-0.3", "--how", "concat", str(out)]) == 0
    said = capsys.readouterr()
    assert f"{out}: 0.7 {done / 'adapter'} + -0.3 {second / 'adapter'} (concat) as a LoRA of rank 4-6 in 14 layers" in said.out
    wanted = 0.7 * update(done / "adapter", layer) - 0.3 * update(second / "adapter", layer)
    torch.testing.assert_close(update(out, layer), wanted)
    assert not said.err and open_tuned(str(out), dtype="float32").has_adapter
    about = json.loads((out / "tunesmith.json").read_text())
    assert [each["adapter"] for each in about["composed"]["of"]] == [done.name, second.name] and about["base"]["layers"] == 2


def test_a_linear_combination_says_how_far_it_is_from_the_sum(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["merge", "--adapters", str(done), f"{done}=0.5", "--how", "linear", str(tmp_path / "c")]) == 0
    said = capsys.readouterr()
    assert "(linear) as a LoRA of rank 4 in 14 layers" in said.out
    assert "the update differs from the weighted sum by 94%; --how concat is exact" in said.err  # (1 + 1/sqrt 2)**2 against 1.5


@pytest.mark.parametrize(
    ("words", "reasons"),
    [
        (["nothing=0.5", "DONE=x", "DONE"], ["nothing: neither a run folder nor an adapter folder", "'x' is no number; write DIR=0.7"]),
        (["DONE", "SECOND", "--how", "linear"], ["linear needs the same rank everywhere", "ranks 4 (run), 2 (second)"]),
        (["DONE", "SECOND", "--max-kl", "1"], ["--max-kl compares a merged model with its adapter"]),
        (["DONE", "SECOND", "--base", "original"], ["--base is for an adapter that goes into its base"]),
        (["DONE", "SECOND", "--model", "OTHER"], ["was made for another base model", "the weights differ by"]),
        (["DONE", "ELSEWHERE"], ["only adapters of one base can be combined", "the weights differ by", "--model M says"]),
    ],
    ids=["names", "ranks", "max-kl", "base", "model", "bases"],
)
def test_what_cannot_be_combined(
    words: list[str], reasons: list[str], done: Path, second: Path, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, elsewhere = shutil.copytree(tiny_llama, tmp_path / "other"), shutil.copytree(second / "adapter", tmp_path / "elsewhere")
    save_file({name: t.flip(0).contiguous() for name, t in load_file(other / "model.safetensors").items()}, other / "model.safetensors")
    about = json.loads((elsewhere / "tunesmith.json").read_text())
    (elsewhere / "tunesmith.json").write_text(json.dumps(about | {"base": fingerprint(other)}))
    places = {"DONE": done, "SECOND": second, "OTHER": other, "ELSEWHERE": elsewhere}
    given = [next((word.replace(key, str(path)) for key, path in places.items() if word.startswith(key)), word) for word in words]
    assert cli.main(["merge", "--adapters", *given, *([] if "--how" in given else ["--how", "concat"]), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert all(reason in said for reason in reasons), said
    assert not (tmp_path / "out").exists()


def test_forms_of_the_command(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["merge", str(done)]) == 2
    assert cli.main(["merge", "a", "b", "--adapters", str(done)]) == 2
    assert cli.main(["merge"]) == 2
    for taken in ([done], [done, done], [done, f"{done}=0.5"], [done, done / "adapter"]):
        assert cli.main(["merge", "--adapters", *map(str, taken)]) == 2
    said = capsys.readouterr().err
    assert said.count("OUT is missing, a new folder for the combined adapter") == 4 and "DIR is missing" in said
    assert "OUT is missing, a new folder for the merged model" in said and "one folder more, for the result: a or b?" in said


def test_the_result_behind_the_adapters(done: Path, second: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "both"
    assert cli.main(["merge", "--adapters", f"{done}=0.7", str(second), str(out)]) == 0
    assert f"{out}: 0.7 {done / 'adapter'} + 1 {second / 'adapter'} (concat) as a LoRA of rank 4-6" in capsys.readouterr().out
