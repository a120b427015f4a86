"""What every contender writes down, in the same way; imported inside the peers' own environments, so torch and transformers only.

`watch(job)` before a trainer is made: each optimizer step's loss and time, the documents that it really computed, and on a GPU the
memory. The trainer's own program stays as it is: the record is one callback and one look at the inputs of `training_step`.
"""

import functools
import json
import sys
import time
from importlib import metadata
from pathlib import Path

import torch
import transformers

NAMED = ("torch", "transformers", "peft", "trl", "bitsandbytes", "llamafactory", "axolotl", "unsloth", "torchtune", "liger-kernel")


def read_job() -> dict:
    """The job file that the script was started with; threads are set as it says."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    if job["device"] == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return job


def watch(job: dict) -> None:
    """From now on: note when weights are in memory, and record whatever Trainer is made."""
    note = {"loaded": None}
    own_load, own_init = transformers.PreTrainedModel.from_pretrained.__func__, transformers.Trainer.__init__

    @functools.wraps(own_load)
    def from_pretrained(cls, *arguments, **named):
        model = own_load(cls, *arguments, **named)
        note["loaded"] = time.time()
        return model

    @functools.wraps(own_init)
    def init(trainer, *arguments, **named):
        own_init(trainer, *arguments, **named)
        trainer.add_callback(Record(trainer, job, note))

    transformers.PreTrainedModel.from_pretrained = classmethod(from_pretrained)
    transformers.Trainer.__init__ = init


class Record(transformers.TrainerCallback):
    def __init__(self, trainer, job, note):
        self.job, self.note, self.micro, self.steps, self.began = job, note, [], [], None
        own = trainer.training_step

        def seen(model, inputs, *rest, **named):
            self.micro.append({key: inputs[key] for key in ("input_ids", "labels", "attention_mask") if inputs.get(key) is not None})
            return own(model, inputs, *rest, **named)

        trainer.training_step = seen

    def on_train_begin(self, arguments, state, control, **named):
        self.began = time.time()

    def on_step_end(self, arguments, state, control, **named):
        self.steps.append({"micro": self.micro})
        self.micro = []

    def on_log(self, arguments, state, control, logs=None, **named):
        if logs and "loss" in logs and self.steps and "loss" not in self.steps[-1]:  # the device has been waited for: the loss is a number
            self.steps[-1] |= {"loss": float(logs["loss"]), "at": time.time()}

    def on_train_end(self, arguments, state, control, **named):
        steps = [{"loss": step.get("loss"), "at": step.get("at"), "documents": documents(step["micro"], self.job)} for step in self.steps]
        write(self.job, loaded=self.note["loaded"], began=self.began, steps=steps)


def write(job: dict, **found) -> None:
    """record.json in the job's folder."""
    if job["device"] == "cuda":
        found["allocated_bytes"], found["reserved_bytes"] = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    found["versions"] = {name: metadata.version(name) for name in NAMED if _has(name)}
    folder = Path(job["out"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.json").write_text(json.dumps(found), encoding="utf-8")


def documents(micro: list, job: dict) -> list:
    """The documents of a step's batches, padding and packing undone: {ids, learned} or {ids, label}.

    Every document of a case begins with the same tokens, `job["begin"]`: there a packed row is parted. What stands behind a
    document's last learned token has no part in the loss; padding goes with it.
    """
    found = []
    for batch in micro:
        ids_BT = batch["input_ids"].cpu()
        if job["classify"]:
            kept_BT = batch["attention_mask"].cpu().bool()
            labels = batch["labels"].cpu().tolist()
            found += [{"ids": ids[kept].tolist(), "label": label} for ids, kept, label in zip(ids_BT, kept_BT, labels, strict=True)]
            continue
        for ids, labels in zip(ids_BT.tolist(), batch["labels"].cpu().tolist(), strict=True):
            found += parted(ids, labels, job["begin"])
    return found


def parted(ids: list, labels: list, begin: list) -> list:
    """The documents of one row."""
    starts = [at for at in range(len(ids)) if ids[at : at + len(begin)] == begin] if begin else []
    starts = [0, *[at for at in starts if at]]
    found = []
    for first, last in zip(starts, [*starts[1:], len(ids)], strict=True):
        learned = [at for at in range(first + 1, last) if labels[at] != -100]
        if learned:
            end = learned[-1] + 1
            found.append({"ids": ids[first:end], "learned": [int(label != -100) for label in labels[first:end]]})
    return found


def _has(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
