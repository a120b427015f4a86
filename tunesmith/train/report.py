"""What a finished run shows to people: `loss.png` and the model card. Both are read from the run's own files."""

import json
from pathlib import Path
from typing import Any

from tunesmith import events
from tunesmith.config import Run
from tunesmith.methods.layouts import adapter_file
from tunesmith.train import folder


def write(out: Path, run: Run, finished: events.Finished) -> None:
    """Write `loss.png` and `README.md`. The model card names numbers only from events.jsonl, plan.json and data.json."""
    plot(out / folder.EVENTS, out / "loss.png")
    folder.write_text(out / "README.md", card(out, run, finished))


def plot(log: Path, target: Path) -> None:
    """The loss of every step, a running mean over it, and the evaluation losses."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    happened = list(events.read_events(log))
    steps = [e for e in happened if isinstance(e, events.Step) and not e.skipped]
    evaluated = [e for e in happened if isinstance(e, events.Evaluated)]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120)
    axes.plot([s.step for s in steps], [s.loss for s in steps], color="#9db4d0", linewidth=1, label="each step")
    axes.plot([s.step for s in steps], smoothed([s.loss for s in steps]), color="#1f4e8c", linewidth=2, label="running mean")
    if evaluated:
        axes.plot([e.step for e in evaluated], [e.loss for e in evaluated], "o-", color="#c2571a", label="evaluation")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss per learned token (nats)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(target)
    pyplot.close(figure)


def smoothed(values: list[float]) -> list[float]:
    """An exponential mean over about a twentieth of the run, without the pull of its first value."""
    decay = 1 - 1 / max(2.0, len(values) / 20)
    total, weight, result = 0.0, 0.0, []
    for value in values:
        total, weight = decay * total + value, decay * weight + 1
        result.append(total / weight)
    return result


def card(out: Path, run: Run, finished: events.Finished) -> str:
    """The model card, with the front matter that hubs read."""
    plan, data = folder.read_json(out / folder.PLAN), folder.read_json(out / folder.DATA)
    method = "qlora" if run.method.name == "lora" and run.model.quantize else run.method.name
    has_adapter = (out / "adapter").exists()
    front = {"base_model": run.model.source, "library_name": "peft" if has_adapter else "transformers", "tags": ["tunesmith", method]}
    lines = ["---", *[f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()], "---", f"# {out.name}", ""]
    lines += [
        f"{run.model.source} tuned with {method} ({plan['trainable_parameters']:,} of {plan['total_parameters']:,} parameters).",
        "",
        "| | |",
        "|---|---|",
        f"| training data | {_source(run)}: {data['rows']:,} rows, {data['documents']:,} documents |",
        f"| tokens of it | {data['tokens']:,}, of which {data['learned_tokens']:,} learned |",
        f"| rows cut / dropped | {data['cut']:,} / {len(data['dropped']):,} |",
        f"| steps, tokens seen | {finished.steps:,}, {finished.tokens:,} |",
        f"| learning rate | {run.train.learning_rate}, {run.train.schedule} |",
        f"| loss at the end | {finished.loss:.4f} |",
        *_best(out),
        *_served(out / "adapter"),
        f"| speed, time | {finished.tokens_per_second:,.0f} tokens/s, {finished.seconds:,.0f} s |",
        f"| peak memory | {finished.peak_memory_bytes / 1e9:.2f} GB |",
        "",
        "![loss](loss.png)",
        "",
        "Every setting is in `run.yaml`, what became of every row in `data.json`, every step in `events.jsonl`.",
        "",
        "```",
        f"tunesmith chat {out}",
        f"tunesmith evaluate {out} --data FILE",
        *([f"tunesmith merge {out} OUT"] if has_adapter else []),
        "```",
        "",
    ]
    return "\n".join(lines)


def _served(adapter: Path) -> list[str]:
    """How far an adapter that was trained over NF4 codes of a residual is, as others serve it, from what was trained."""
    apart = adapter_file.about(adapter).get("pissa", {}).get("weight_difference", {})
    said = "is {:.1%} away in its weights from what was trained; `tunesmith merge` makes just that"
    return [f"| the adapter over the original weights | {said.format(apart['original'])} |"] if apart else []


def _best(out: Path) -> list[str]:
    best = [event for event in events.read_events(out / folder.EVENTS) if isinstance(event, events.Evaluated) and event.best][-1:]
    return [f"| best evaluation loss | {event.loss:.4f} after step {event.step}, in best/ |" for event in best]


def _source(run: Run) -> str:
    train: Any = run.data.train
    return train if isinstance(train, str) else ", ".join(f"{source.source} (weight {source.weight:g})" for source in train)
