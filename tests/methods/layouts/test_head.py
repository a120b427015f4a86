"""A task's head beside an adapter that trains rows or a copy of a tied embedding: nothing follows it at the unused head."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_models import tiny
from tunesmith.errors import UserError
from tunesmith.methods import method
from tunesmith.methods.layouts import layout
from tunesmith.methods.settings import SETTINGS
from tunesmith.methods.tuning import Start, Tuning
from tunesmith.models import score

EMBEDDING = "model.embed_tokens"


def begun(model: Any, name: str = "lora", **settings: Any) -> Tuning:
    chosen = SETTINGS[name].model_validate(settings)
    tuning = method.build(model, chosen, quantized=False)
    method.give_head(model, tuning, score.make(model, "classify", ["bad", "good"]))
    method.begin(tuning, Start(model, None, 0, lambda path: torch.empty(0)), chosen)
    return tuning


@pytest.mark.parametrize(
    "settings", [{"trainable_tokens": [5, 7]}, {"modules_to_save": ["lm_head"]}, {"modules_to_save": ["embed_tokens"]}], ids=str
)
@pytest.mark.parametrize("name", ["lora", "dora"])
def test_a_tied_embedding_is_trained_beside_a_task_s_head(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = tiny("llama_tied")
    tuning = begun(model, name, rank=4, **settings)
    assert EMBEDDING in tuning.adapter and "lm_head" not in tuning.adapter
    with torch.no_grad():
        for parameter in tuning.parameters.values():
            parameter.add_(0.01)
    layout.write(tmp_path / "adapter", model, tuning, "some/base")
    again = layout.fit(layout.read(tmp_path / "adapter"), tiny("llama_tied"))
    assert list(again.parameters) == list(tuning.parameters) and "lm_head" not in again.adapter
    assert all(torch.equal(again.parameters[key], value) for key, value in tuning.parameters.items())
    assert method.unmergeable(again) == ""
    folded: Any = again.adapter[EMBEDDING]
    assert folded.folded(model.get_input_embeddings().weight).shape == (96, 64), "there is no other end that would have to hold it too"


def test_a_head_of_its_own_is_refused() -> None:
    with pytest.raises(UserError, match=r"lm_head is the language model.s head, which computes nothing for task\.name=classify"):
        begun(tiny("llama"), modules_to_save=["lm_head"])
