import gc
import json
import math
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import runs
from tests.conftest import write_byte_tokenizer
from tests.runs import own_cache  # noqa: F401
from tunesmith.errors import UserError
from tunesmith.export import bases
from tunesmith.export.difference import Difference
from tunesmith.export.live import Apart
from tunesmith.models import load as loading

STRONG = {"train.learning_rate": 0.05}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture(scope="module")
def quantized(tiny_llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """QLoRA beside some of the layers that NF4 rounds."""
    out = tmp_path_factory.mktemp("qlora") / "run"
    runs.finish(runs.settings(tiny_llama, data, out, STRONG | {"method": {"name": "qlora", "rank": 4, "targets": ["q", "v"]}}))
    return out


@pytest.fixture(scope="module")
def found(quantized: Path) -> bases.Trial:
    return bases.trial(str(quantized))


def test_layers_without_an_adapter_were_rounded_too(found: bases.Trial, tiny_llama: Path, tmp_path: Path) -> None:
    """q and v have one; what the adapter was trained over is the rounding of all seven kinds of layers."""
    assert found.kind == "dequantised" and len(found.foldings["original"].found) == 4 and len(found.foldings["dequantised"].found) == 14
    written = bases.write(found, tmp_path / "out")
    assert (written.changed, written.tensors) == (14, 21)
    rounded = loading.load(tiny_llama, dtype=torch.float32, quantize=True).model
    plain = loading.load(tmp_path / "out", dtype=torch.float32).model
    for path, layer in bases.nf4_layers(rounded):
        if not path.endswith(("q_proj", "v_proj")):
            assert torch.equal(plain.get_submodule(path).weight, layer.dequantized()), path


def test_two_models_never_stand_in_memory_at_once(quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[Any] = []
    most, load = [0], loading.load

    def counted(*arguments: Any, **named: Any) -> Any:
        gc.collect()
        assert not [one for one in alive if one() is not None], "another model is still there"
        base = load(*arguments, **named)
        alive.append(weakref.ref(base.model))
        most[0] += 1
        return base

    monkeypatch.setattr(loading, "load", counted)
    bases.write(bases.trial(str(quantized)), tmp_path / "out")
    assert most == [2], "the live one, and one in which both bases are measured"


def test_what_is_measured_in_memory_is_what_is_written(found: bases.Trial, tmp_path: Path) -> None:
    for kind in bases.KINDS:
        bases.write(replace(found, kind=kind), tmp_path / kind)
        model = loading.load(tmp_path / kind, dtype=torch.float32).model
        assert found.live.apart(found.live.ask(model)) == found.apart[kind]


def test_a_checkpoint_below_fp32_is_put_in_memory_as_its_file_rounds_it(found: bases.Trial, tiny_llama: Path, tmp_path: Path) -> None:
    """Double rounding or none would measure another model than the one that is written."""
    low = tmp_path / "low"
    loading.load(tiny_llama, dtype=torch.bfloat16).model.save_pretrained(low)
    write_byte_tokenizer(low)
    change = bases.merge.folding(low, found.foldings["original"].modules, found.foldings["original"].transposed, "model")
    model = loading.load(low, dtype=torch.float32).model
    bases.put(model, change)
    weight = model.model.layers[0].self_attn.q_proj.weight
    assert torch.equal(weight, weight.bfloat16().float())


def apart(kl: float, rows: float | None = None) -> Apart:
    return Apart(Difference(1, 0.0, kl, 1.0), None if rows is None else Difference(1, 0.0, rows, 1.0))


@pytest.mark.parametrize(
    ("original", "dequantised", "nearer"),
    [
        (apart(0.1), apart(0.01), "dequantised"),
        (apart(0.01), apart(0.1), "original"),
        (apart(0.01, 0.2), apart(0.1, 0.1), "dequantised"),
        (apart(0.1), apart(0.1), "original"),
        (apart(math.nan), apart(5.0), "dequantised"),
        (apart(5.0), apart(math.nan), "original"),
    ],
    ids=["dequantised", "original", "own data decides", "equal", "not a number", "nor here"],
)
def test_the_nearer_base(original: Apart, dequantised: Apart, nearer: str) -> None:
    assert bases.better({"original": original, "dequantised": dequantised}) == nearer


def test_servers_find_stops_and_names_beside_the_weights(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    """The base's generation config names one stop; its tokenizer's end is another."""
    base = tmp_path / "base"
    base.mkdir()
    for path in tiny_llama.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": 258, "temperature": 0.6}))
    runs.finish(runs.settings(base, data, tmp_path / "run", {"train.steps": 1}))
    bases.write(bases.trial(str(tmp_path / "run")), tmp_path / "out")
    assert json.loads((tmp_path / "out/generation_config.json").read_text()) == {"eos_token_id": [258, 257], "temperature": 0.6}
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] and config["torch_dtype"] == config["dtype"] == "float32"
    assert (tmp_path / "out/chat_template.jinja").read_bytes() == (base / "chat_template.jinja").read_bytes()


def test_a_task_s_head_is_written_along(tiny_llama: Path, tmp_path: Path) -> None:
    rows = [{"text": f"number {i}", "label": "even" if i % 2 == 0 else "odd"} for i in range(12)]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"method": {"name": "qlora", "rank": 2}, "task": {"name": "classify"}, "train.steps": 2}
    runs.finish(runs.settings(tiny_llama, tmp_path / "labels.jsonl", tmp_path / "run", changes))
    found = bases.trial(str(tmp_path / "run"))
    bases.write(found, tmp_path / "out")
    assert found.live.rows and found.kind == "dequantised"
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    again = loading.load(tmp_path / "out", dtype=torch.float32, own_head=False).model
    assert found.live.apart(found.live.ask(again)).worst_kl < 1e-8


def test_what_is_refused(tiny_llama: Path, quantized: Path) -> None:
    with pytest.raises(UserError, match="holds no adapter: there is nothing to merge"):
        bases.trial(str(tiny_llama))
    with pytest.raises(UserError, match=r"was not trained over NF4, so there is one base.*name the run's folder, which says so"):
        bases.trial(str(quantized / "adapter"), base="dequantised")
