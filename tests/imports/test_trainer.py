import pytest

from tunesmith.data.sample import BadRow
from tunesmith.imports import trainer
from tunesmith.imports.batch import Measured
from tunesmith.imports.translation import Translation


def settings(given):
    t = Translation("Tool", given)
    trainer.arguments(t)
    t.finish(trainer.CARRIED, trainer.NEEDLESS, trainer.LEFT, trainer.READ)
    return t


@pytest.mark.parametrize(
    ("given", "setting", "value"),
    [
        ({}, "train.learning_rate", 5e-5),
        ({}, "train.schedule", "linear"),
        ({}, "train.warmup", 0.0),
        ({"learning_rate": "1e-4"}, "train.learning_rate", 1e-4),
        ({"num_train_epochs": 2.0}, "train.epochs", 2.0),
        ({"max_steps": 40}, "train.steps", 40),
        ({"optim": "adamw_torch"}, "train.optimizer", "adamw"),
        ({"optim": "paged_adamw_8bit"}, "train.optimizer", "paged_adamw_8bit"),
        ({"optim": "adafactor"}, "train.optimizer", "adamw"),
        ({"lr_scheduler_type": "constant_with_warmup"}, "train.schedule", "constant"),
        ({"lr_scheduler_type": "cosine_with_restarts"}, "train.schedule", "cosine"),
        ({"warmup_ratio": 0.1}, "train.warmup", 0.1),
        ({"warmup_steps": 10, "max_steps": 200}, "train.warmup", 0.05),
        ({"warmup_steps": 0.1}, "train.warmup", 0.1),
        ({"warmup_steps": 0}, "train.warmup", 0.0),
        ({"bf16": True}, "model.dtype", "bfloat16"),
        ({"fp16": True, "bf16": False}, "model.dtype", "float16"),
        ({"save_steps": 500}, "train.checkpoint_every", 500),
        ({"eval_steps": 50, "eval_strategy": "steps"}, "evaluate.every", 50),
        ({"report_to": "tensorboard"}, "train.tensorboard", True),
        ({"gradient_checkpointing": True}, "train.recompute", "blocks"),
        ({"disable_gradient_checkpointing": True}, "train.recompute", "none"),
        ({"max_grad_norm": 0.5}, "train.clip", 0.5),
        ({"use_cpu": True}, "model.device", "cpu"),
    ],
)
def test_values(given, setting, value):
    assert settings(given).settings[setting] == value


@pytest.mark.parametrize(
    ("given", "setting"),
    [
        ({"max_steps": -1}, "train.steps"),
        ({"save_steps": 0.1}, "train.checkpoint_every"),
        ({"save_strategy": "epoch", "save_steps": 5}, "train.checkpoint_every"),
        ({"eval_steps": 50, "eval_strategy": "epoch"}, "evaluate.every"),
        ({"report_to": "none"}, "train.tensorboard"),
        ({"bf16": False}, "model.dtype"),
    ],
)
def test_values_that_say_nothing_here(given, setting):
    assert setting not in settings(given).settings


def test_what_changes_is_said():
    assert "adafactor is not here" in settings({"optim": "adafactor"}).changed[0]
    assert "10 of 200" in settings({"warmup_steps": 10, "max_steps": 200}).changed[0]
    assert "write 10 over the run's steps" in settings({"warmup_steps": 10}).changed[0]
    assert settings({"report_to": "wandb"}).left[0].startswith("report_to: wandb: trackers are not served")
    assert settings({"deepspeed": "z3.json"}).left == ["deepspeed: z3.json: several devices and machines are not in this version yet"]
    assert settings({"save_strategy": "epoch"}).left[0].startswith("save_strategy: epoch: checkpoints come by default ten times")


@pytest.mark.parametrize(
    ("size", "seen", "value"),
    [(0.1, "", 0.1), (50, Measured((100, 400), 1.0), 0.1), (50, Measured((100, None), 1.0), 0.05), (50, "", 0.05), (0, "", None)],
)
def test_rows_held_out(size, seen, value):
    t = Translation("Tool", {"val": size})
    trainer.held_out(t, "val", seen)
    assert t.settings.get("data.evaluate") == value
    assert bool(t.changed) is (size == 50)


def test_rows_that_cannot_be_used_are_left_out_where_there_are_some():
    t = Translation("Tool", {})
    trainer.bad_rows(t, Measured((10,), 1.0))
    assert not t.settings
    trainer.bad_rows(t, Measured((10,), 1.0, (BadRow("a.json", 3, "empty"), BadRow("a.json", 9, "empty"))))
    assert (
        t.settings == {"data.on_bad_row": "skip"} and "2 rows cannot be used, such as a.json:3: empty. Tool goes on without" in t.changed[0]
    )
