"""`tunesmith quickstart`: model, data, before, training, after, the next command, on this machine in minutes."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

MODEL, TRAIN, TEST = "builtin:smollm2-135m-instruct", "builtin:tickets", "builtin:tickets-test"
TRAINING_SECONDS = 205  # on a slow machine; the whole thing stays under 5 minutes
METRICS = ["exact_match", "json_fields", "json_valid"]
TOKENS_PER_STEP = 480  # six tickets
LEARNING_RATE = 2e-3  # above the default: a few dozen steps have to do


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", help="run folder (default: runs/quickstart, or the next free number)")
    parser.add_argument("--steps", type=int, metavar="N", help="optimizer steps (default: as many as this machine does in a few minutes)")


def run(arguments: argparse.Namespace) -> int:
    """QLoRA on support tickets: other wordings held out, asked before and after."""
    from rich.console import Console

    from tunesmith import config
    from tunesmith.data.sources import load_samples
    from tunesmith.train import loop
    from tunesmith.train.setting import decide
    from tunesmith.tuned import open_tuned
    from tunesmith.verbs.progress import follow, spell_seconds, summary
    from tunesmith.verbs.signals import stopping
    from tunesmith.verbs.telling import tell

    begun = time.monotonic()
    console = Console(highlight=False)
    out = Path(arguments.out) if arguments.out else _free(Path("runs/quickstart"))
    values: dict[str, Any] = {
        "model.source": MODEL,
        "method": "qlora",
        "data.train": TRAIN,
        "data.test": TEST,
        "out": str(out),
        "train.tokens_per_step": TOKENS_PER_STEP,
        "train.learning_rate": LEARNING_RATE,
    }
    console.print("The task: support tickets to strict JSON. 400 generated tickets to learn from, 32 in other wordings to be asked.")
    console.print(f"The model: {MODEL}, 135 million parameters, tuned by QLoRA: 4-bit base, rank 8 on every linear layer.\n")

    samples, _ = load_samples(TEST)
    tell("asking the base model")
    tuned = open_tuned(MODEL)
    before = _ask(tuned, samples)
    values["train.steps"] = arguments.steps or _steps(tuned)
    del tuned

    loaded = config.load(None, [(key, value, "quickstart") for key, value in values.items()])
    setting = decide(loaded.run, loaded.origins, tell)
    with stopping() as asked:
        finished = follow(loop.begin(setting, stop=asked, tell=tell))
    assert finished is not None

    tell("asking the tuned model")
    after = _ask(open_tuned(str(out)), samples)
    console.print(_answers(samples, before, after, console.width))
    console.print(_scores(before, after))
    _store(out, before, after)
    console.print(summary(finished, out))
    console.print(f"Everything together took {spell_seconds(time.monotonic() - begun)}.\n\nNext:")
    for command, sentence in (
        (f"tunesmith chat {out} --compare", "talk to both"),
        (f"tunesmith merge {out} {out}/merged", "one model folder for any server"),
        (f"tunesmith train --model {MODEL} --data YOUR.jsonl --method qlora", "your own data"),
    ):
        console.print(f"  {command}   # {sentence}", soft_wrap=True)
    return 0


def _ask(tuned: Any, samples: list[Any]) -> Any:
    from tunesmith.evaluate.evaluate import evaluate
    from tunesmith.generate import Sampling

    def on_progress(done: int, of: int) -> None:
        print(f"\r… {done}/{of} answers", end="\n" if done == of else "", file=sys.stderr, flush=True)

    return evaluate(tuned, samples, metrics=METRICS, sampling=Sampling(max_new_tokens=48), on_progress=on_progress)


def _steps(tuned: Any) -> int:
    """As many steps as fit `TRAINING_SECONDS` at the speed of this machine, between 30 and 150: training reaches more than half
    of the measured matmul rate."""
    from tunesmith import hardware

    model = tuned.model
    width, inner = model.config.hidden_size, model.config.intermediate_size
    rate = hardware.matmul_flops(model.device, tuned.base.dtype, TOKENS_PER_STEP, inner, width)
    tokens_per_second = 0.55 * rate / (4 * sum(parameter.numel() for parameter in model.parameters()))
    return max(30, min(150, round(TRAINING_SECONDS * tokens_per_second / TOKENS_PER_STEP)))


def _answers(samples: list[Any], before: Any, after: Any, width: int) -> Any:
    """Four tickets, what each model said, and what was wanted where the tuned model is wrong."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="unseen tickets", show_lines=True, width=min(width, 150))
    for heading in ("ticket", "base model", "tuned model"):
        table.add_column(heading, ratio=1, overflow="fold")
    for sample, old, new in list(zip(samples, before.rows, after.rows, strict=True))[:4]:
        right = new.prediction == new.reference
        tuned_text = Text(new.prediction, "green" if right else "red")
        if not right:
            tuned_text.append(f"\nwanted: {new.reference}", "dim")
        base_text = Text(old.prediction[:200], "green" if old.prediction == old.reference else "red")
        table.add_row(sample.messages[-2]["content"], base_text, tuned_text)
    return table


def _scores(before: Any, after: Any) -> Any:
    from rich.table import Table

    table = Table(title=f"{len(after.rows)} unseen tickets, greedy answers")
    for heading in ("", "base", "tuned"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, label in (("json_valid", "valid JSON"), ("json_fields", "fields right (F1)"), ("exact_match", "whole answer right")):
        table.add_row(label, f"{before.scores[name]:.1%}", f"{after.scores[name]:.1%}")
    return table


def _store(out: Path, before: Any, after: Any) -> None:
    from tunesmith.evaluate.evaluation import record
    from tunesmith.train.folder import write_json, write_text

    facts = {"data": {"source": TEST, "rows": len(after.rows)}, "model": after.model, "scores": after.scores, "intervals": after.intervals}
    write_json(out / "scores.json", facts | {"against": {"model": before.model, "scores": before.scores, "intervals": before.intervals}})
    write_text(out / "predictions.jsonl", "".join(json.dumps(record(row), ensure_ascii=False) + "\n" for row in after.rows))


def _free(wanted: Path) -> Path:
    """The folder, or with the next number behind it where it holds something already."""
    number, folder = 1, wanted
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
