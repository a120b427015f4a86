"""AdapterHub's `adapters` 1.3 as the judge of bottleneck adapters, by what it computed and saved (`make verify-adapters` does it anew)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.oracle.make_adapters_golden import CASES, CONFIGS, EXPECTED, IDS_BT, NAME, loss_of, made
from tunesmith.errors import UserError
from tunesmith.methods import adapter, method
from tunesmith.methods.adapter import ELSEWHERE_OTHERWISE
from tunesmith.methods.layouts import adapterhub, layout
from tunesmith.methods.settings import Adapter

GOLDEN = Path(__file__).parent / "golden" / "adapters"
SAME = [case for case in CASES if case not in ELSEWHERE_OTHERWISE]
OTHERWISE = [case for case in CASES if case in ELSEWHERE_OTHERWISE]
same = pytest.mark.parametrize(("family", "variant"), SAME, ids="-".join)


def folder_of(family: str, variant: str) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = GOLDEN / f"{family}-{variant}"
    return folder, load_file(folder / EXPECTED)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def fitted(family: str, folder: Path) -> tuple[Any, Any]:
    model = made(family)
    tuning = layout.fit(layout.read(folder), model)
    method.place(model, tuning)
    return model, tuning


@pytest.mark.parametrize("family", CONFIGS)
def test_the_models_are_the_same(family):
    _, expected = folder_of(family, "houlsby")
    assert relative(made(family)(IDS_BT).logits, expected["base"]) < 1e-6


@same
def test_their_folders_load_here_and_agree(family, variant):
    folder, expected = folder_of(family, variant)
    model, _ = fitted(family, folder)
    with torch.no_grad():
        assert relative(model(IDS_BT).logits, expected["logits"]) < 1e-5
    assert relative(expected["base"], expected["logits"]) > 0.1, "the adapter does something"


@same
def test_gradients_agree(family, variant):
    folder, expected = folder_of(family, variant)
    model, tuning = fitted(family, folder)
    loss_of(model(IDS_BT).logits).backward()
    _, named = adapterhub.write(model, tuning, "")
    assert set(named) == set(expected) - {"logits", "base"}
    for key, parameter in named.items():
        assert parameter.grad is not None and relative(parameter.grad, expected[key]) < 1e-5, key


@same
def test_what_was_read_is_written_as_it_was(family, variant, tmp_path):
    """Their keys, their names, their values: what they load of their own folder they load of ours."""
    folder, _ = folder_of(family, variant)
    model, tuning = fitted(family, folder)
    layout.write(tmp_path, model, tuning, "")
    theirs, ours = (json.loads((each / layout.CONFIG).read_text()) for each in (folder, tmp_path))
    differ = {key for key in theirs if theirs[key] != ours[key]}
    assert set(theirs) == set(ours) and differ <= {"config", "version"} and ours["version"].startswith("tunesmith.")
    free = {"init_weights", "reduction_factor", "leave_out"}
    assert {key: value for key, value in theirs["config"].items() if key in ours["config"] and ours["config"][key] != value}.keys() <= free
    assert ours["config"].keys() <= theirs["config"].keys() and ours["config"]["leave_out"] == theirs["config"]["leave_out"]
    assert type(ours["config"]["scaling"]) is float
    before, after = load_file(folder / adapterhub.WEIGHTS), load_file(tmp_path / adapterhub.WEIGHTS)
    assert before.keys() == after.keys() and all(torch.equal(after[key], value) for key, value in before.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == [adapterhub.WEIGHTS, layout.CONFIG]


def test_reduction_factors_come_to_the_same_widths_there():
    folder, _ = folder_of("llama", "mixed")
    model, tuning = fitted("llama", folder)
    widths = [module.down.shape[0] for module in tuning.adapter.values()]
    assert widths == [6, 6, 3, 3]  # 32 // 5, 32 // 10
    factors = adapterhub.write(model, tuning, "")[0]["config"]["reduction_factor"]
    assert [int(32 // factors[str(block)]) for block in (0, 1)] == [6, 3]


def test_a_layer_that_they_left_out_has_no_module():
    _, tuning = fitted("llama", folder_of("llama", "some")[0])
    assert list(tuning.adapter) == ["model.layers.1"]


@pytest.mark.parametrize(("family", "variant"), OTHERWISE, ids="-".join)
def test_what_they_wire_otherwise_is_refused(family, variant):
    folder, expected = folder_of(family, variant)
    with pytest.raises(UserError, match=f"AdapterHub's {variant} adapter for {family} .* not served; .*method.variant={variant}"):
        fitted(family, folder)
    model = made(family)
    tuning = adapter.build(model, Adapter(variant=variant, reduction=4.0 if variant == "parallel" else 8.0))
    assert tuning.notes and "for Tunesmith alone" in tuning.notes[0]
    tensors = load_file(folder / adapterhub.WEIGHTS)
    for key, parameter in adapterhub.write(model, tuning, "")[1].items():
        with torch.no_grad():
            parameter.copy_(tensors[key])
    method.place(model, tuning)
    assert relative(model(IDS_BT).logits, expected["logits"]) > 0.01, "otherwise the table would be wrong"


@pytest.mark.parametrize(("family", "variant"), OTHERWISE, ids="-".join)
def test_ours_of_that_kind_load_here_and_not_there(family, variant, tmp_path):
    model = made(family)
    tuning = adapter.build(model, Adapter(variant=variant))
    for parameter in tuning.parameters.values():
        torch.nn.init.normal_(parameter, std=0.1)
    layout.write(tmp_path, model, tuning, "")
    again, _ = fitted(family, tmp_path)
    method.place(model, tuning)
    assert torch.equal(model(IDS_BT).logits, again(IDS_BT).logits)
    # theirs picks a class by this name, and fails for one that it does not have
    assert json.loads((tmp_path / layout.CONFIG).read_text())["config"]["architecture"] == NAME
