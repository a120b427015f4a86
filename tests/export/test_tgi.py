import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.export.tiny_runs import run_of
from tests.runs import own_cache, quiet  # noqa: F401
from tunesmith.errors import UserError
from tunesmith.export import tgi
from tunesmith.export.source import describe
from tunesmith.export.target import Options, Proof
from tunesmith.export.truth import truth_of


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tgi")


@pytest.fixture(scope="module")
def runs_of(tiny_llama: Path, place: Path) -> list[Path]:
    some = run_of(tiny_llama, place, "some", method={"name": "lora", "rank": 5, "targets": ["q", "v"]})
    return [run_of(tiny_llama, place, "lora"), some]


def exported(given: list[Path], out: Path, options: Options = Options(), spoil: Any = None) -> Proof:  # noqa: B008
    sources = [describe(str(each)) for each in given]
    tgi.check(sources, options)
    truths = [truth_of(source, tgi.merges(sources, options), quiet) for source in sources]
    tgi.write(sources, out, options, quiet)
    if spoil is not None:
        spoil(out)
    return tgi.prove(sources, truths, out, options, quiet)


def test_two_adapters_beside_one_base(runs_of: list[Path], tmp_path: Path) -> None:
    proof = exported(runs_of, tmp_path)
    assert proof.failures == () and proof.opened_by == "nothing" and set(proof.figures["sources"]) == {"lora", "some"}
    assert any("was not started" in note for note in proof.notes)
    config = json.loads((tmp_path / "adapters" / "some" / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"], config["alpha_pattern"]) == (8, {}, {}), "rank 5 is padded here, with alpha to fit"
    assert config["base_model_name_or_path"] == "/data/model"
    launch = (tmp_path / "launch.sh").read_text()
    assert "-e LORA_ADAPTERS=lora=/data/adapters/lora,some=/data/adapters/some" in launch and tgi.IMAGE in launch
    assert (tmp_path / "launch.sh").stat().st_mode & 0o111


def test_one_is_merged_unless_its_base_is_kept(runs_of: list[Path], tmp_path: Path) -> None:
    assert exported(runs_of[:1], tmp_path / "merged").failures == ()
    assert not (tmp_path / "merged" / "adapters").exists() and "LORA_ADAPTERS" not in (tmp_path / "merged" / "launch.sh").read_text()
    settings = json.loads((tmp_path / "merged" / "model" / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == (tmp_path / "merged" / "model" / "chat_template.jinja").read_text()


def test_a_scaling_of_positions_that_it_passes_over_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    """Not in the proof alone, which --no-verify leaves out."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "long"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"passes over a linear rope scaling.*vLLM"):
        tgi.check([describe(str(folder))], Options())


def forget_rope(out: Path) -> None:
    path = out / "model" / "config.json"
    config = json.loads(path.read_text())
    config["rope_theta"] = 500000.0
    path.write_text(json.dumps(config))


def other_template(out: Path) -> None:
    path = out / "model" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": "{{ messages }}"}))


def other_alpha(out: Path) -> None:
    path = out / "adapters" / "some" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 1, "r": 5}))


@pytest.mark.parametrize(
    ("spoil", "failure"),
    [
        (forget_rope, "rope base"),
        (forget_rope, "rotary frequencies differ"),
        (other_template, "chat_template.jinja and the template in tokenizer_config.json differ"),
        (other_alpha, "rank 5 would be padded"),
        (other_alpha, "its logits differ"),
        (lambda out: (out / "model" / "tokenizer.json").rename(out / "model" / "tokenizer.bak"), "no tokenizer.json"),
    ],
)
def test_what_tgi_would_pass_over_is_found(spoil: Any, failure: str, runs_of: list[Path], tmp_path: Path) -> None:
    if failure == "no tokenizer.json":
        out = tmp_path / "model"
        exported(runs_of[:1], tmp_path, spoil=None)
        (out / "tokenizer.json").unlink()
        assert failure in "; ".join(tgi._files(out, describe(str(runs_of[0]))))
        return
    assert failure in "; ".join(exported(runs_of, tmp_path, spoil=spoil).failures)


@pytest.mark.parametrize(
    ("method", "options", "reason"),
    [
        ({"name": "dora", "rank": 4}, Options(keep_base=True), "does not know DoRA; export it alone, which merges it"),
        ({"name": "prefix", "tokens": 3}, Options(keep_base=True), "--to tgi --as lora"),
        ({"name": "prefix", "tokens": 3}, Options(), "--as lora"),
    ],
)
def test_what_it_does_not_take_is_refused(method: Any, options: Options, reason: str, tiny_llama: Path, place: Path) -> None:
    source = describe(str(run_of(tiny_llama, place, method["name"], method=method)))
    with pytest.raises(UserError, match=reason):
        tgi.check([source], options)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 50000.0},
        {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
)  # fmt: skip
def test_rotary_frequencies_as_tgi_computes_them(rope: dict[str, Any], tiny_llama: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_llama, rope_parameters=rope)
    own = AutoModelForCausalLM.from_config(config).model.rotary_emb.inv_freq
    theirs = tgi.read_by_tgi({"rope_theta": rope["rope_theta"]}, 16, rope if rope["rope_type"] == "llama3" else None)
    torch.testing.assert_close(theirs, own.float(), rtol=1e-6, atol=0)
    assert not torch.allclose(tgi.read_by_tgi({}, 16, None), own.float(), rtol=1e-3), "without the old name: a base of 10,000"
