"""A run's accelerations: recorded, kept on resume, off where the settings say so, and named where they are wrong."""

import json

from tests.step.test_forward import ALL, DOCUMENTS, TRUSTED, tuned
from tunesmith.config import Run, Train
from tunesmith.data.corpus.batches import make_row
from tunesmith.models import slots
from tunesmith.models.parts import norm
from tunesmith.step.forward import prepare
from tunesmith.train import folder
from tunesmith.train.accelerations import decided

ROW = make_row(DOCUMENTS, ALL)
NAMES = ["our own norms", "our own gated products", "our own rotary embedding", "our own products of low-rank updates"]


def decision(tmp_path, name="llama", **train):
    model, tuning = tuned(name)
    run = Run(train=Train(**train))
    found = decided(tmp_path, run, prepare(model, TRUSTED, "sdpa"), tuning, ROW)
    return model, found


def test_what_is_proved_is_on_and_recorded(tmp_path):
    model, found = decision(tmp_path)
    assert found.record == {"on": NAMES, "off": []} and found.warnings == ()
    assert "forward" in vars(model.model.norm)


def test_plain_is_plain(tmp_path):
    model, found = decision(tmp_path, kernels="plain")
    assert found.record == {"on": [], "off": []} and found.warnings == ()
    assert not any("forward" in vars(module) for module in model.model.modules() if "Norm" in type(module).__name__)
    assert all(module.plain for module in slots.placed(model).values() if hasattr(module, "low_rank"))


def test_what_is_wrong_is_off_with_a_warning_and_stays_off_on_resume(tmp_path, monkeypatch):
    right = norm._gradients_fp32
    monkeypatch.setattr(norm, "_gradients_fp32", lambda *given: tuple(None if g is None else g * 1.01 for g in right(*given)))
    model, found = decision(tmp_path)
    assert found.record == {"on": NAMES[1:], "off": NAMES[:1]}
    assert len(found.warnings) == 1 and found.warnings[0].startswith("our own norms ")
    assert "forward" not in vars(model.model.norm)
    monkeypatch.undo()
    (tmp_path / folder.PLAN).write_text(json.dumps({"accelerations": found.record}))
    again = decision(tmp_path)[1]
    assert again.record == found.record and again.warnings == ()


def test_elementwise_without_parts_is_said_to_save_nothing(tmp_path):
    assert "saves nothing" in decision(tmp_path, recompute="elementwise", kernels="plain")[1].warnings[0]
    assert decision(tmp_path, recompute="elementwise")[1].warnings == ()
