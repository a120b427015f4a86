"""Writes the tables between `<!-- bench:NAME -->` marks of README.md from results/NAME.json; a test compares the two.

    python benchmarks/readme.py

Only what was measured is shown, misses too; a table without its results file says so.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
README = Path(__file__).resolve().parent.parent / "README.md"
MISSING = "Not measured yet."


def filled(text: str, results: Path = RESULTS) -> str:
    """The README's text with every table made anew."""

    def replace(found: re.Match[str]) -> str:
        mark, name = found.group(1), found.group(2)
        return f"{mark}\n{block(name, results)}\n{mark}"

    return re.sub(r"(<!-- bench:(\w+) -->)\n.*?\n\1", replace, text, flags=re.DOTALL)


def block(name: str, results: Path = RESULTS) -> str:
    """One table with its machine under it. Raises KeyError for a name without a table."""
    table = TABLES[name]
    file = results / f"{name}.json"
    if not file.exists():
        return MISSING
    data = json.loads(file.read_text(encoding="utf-8"))
    return f"{table(data)}\n\n{machine(data)}"


def machine(data: dict[str, Any]) -> str:
    found = data["machine"]
    bf16 = "bfloat16 in hardware" if found["bf16_instructions"] else "no bfloat16 instructions"
    gpus = "".join(f", {gpu['name']}" for gpu in found["gpus"])
    return (
        f"{found['cpu']}, {data['threads']} threads on {found['physical_cores']} cores, {bf16}{gpus}, "
        f"{found['memory_bytes'] / 1e9:.0f} GB; torch {found['torch']}, transformers {found['transformers']}; {data['measured']}."
    )


def speed(data: dict[str, Any]) -> str:
    lines = ["| | tokens/s | share of the matmul rate | peak memory | to the first step |", "|---|---|---|---|---|"]
    for name, each in data["runs"].items():
        found = each["median"]
        lines.append(
            f"| {name} | {found['tokens_per_second']:.0f} | {found['share_of_matmul_rate']:.0%} | "
            f"{found['peak_memory_bytes'] / 1e9:.2f} GB | {found['seconds_to_first_step']:.1f} s |"
        )
    runs = f"medians of {data['repeats']} runs" if data["repeats"] > 1 else "one run each"
    told = f"SmolLM2-135M-Instruct, rank 8 on all linear layers, {data['rows']} alpaca rows, {runs} (`benchmarks/speed.py`)."
    return "\n".join([*lines, "", told])


def serve(data: dict[str, Any]) -> str:
    head = "| | tokens/s | ours over it | first token (p50, p95) | between tokens (p50, p95) | peak memory |"
    lines = [head, "|---|---|---|---|---|---|"]
    for name, each in data["contenders"].items():
        last, over = each["rounds"][-1], each.get("ours_8_over_this")
        ratio = "" if name == "ours_8" or over is None else f"{over:.2f}×"
        first, between = last["first_token_seconds"], last["between_tokens_seconds"]
        lines.append(
            f"| {each['title']} | {each['median']['tokens_per_second']:.1f} | {ratio} | "
            f"{first['p50']:.2f} s, {first['p95']:.2f} s | {1e3 * between['p50']:.0f} ms, {1e3 * between['p95']:.0f} ms | "
            f"{each['median']['peak_memory_bytes'] / 1e9:.2f} GB |"
        )
    prompts, answers = ("{} to {}".format(*data[key]) for key in ("prompt_tokens", "answer_tokens"))
    told = (
        f"SmolLM2-135M-Instruct, float32; {data['clients']} clients, prompts of {prompts} tokens that have nothing in common, answers of "
        f"{answers}; tokens of answers within {data['seconds']:.0f} s (`benchmarks/serve.py`)."
    )
    return "\n".join([*lines, "", told])


def suite(data: dict[str, Any]) -> str:
    """A table for each case; who could not be measured stands in it with the reason, and a curve that differs is said to."""
    return "\n\n".join([*(of_case(case) for case in data["cases"].values()), how(data)])


def of_case(case: dict[str, Any]) -> str:
    lines = [
        f"**{case['title']}**: {facts(case)}",
        "",
        "| | useful tokens/s | ours over it | peak memory | ours over it | to the first step | of the matmul rate | loss curve |",
        "|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    for number, each in enumerate(case["contenders"].values()):
        if "error" in each:
            notes.append(f"{each['title']}: {each['error'].splitlines()[-1]}")
            lines.append(f"| {each['title']} | not measured, see below |  |  |  |  |  |  |")
            continue
        found, ratio = each["median"], each["ours_over_this"] if number else {}
        speed, memory = (f"{ratio[key]:.2f}×" if key in ratio else "" for key in ("tokens_per_second", "peak_memory_bytes"))
        share = f"{each['share_of_roofline']:.0%}" if "share_of_roofline" in each else ""
        first = f"{found['seconds_to_first_step']:.1f} s" if "seconds_to_first_step" in found else ""
        counts = each["gate"]["agrees"]
        if not counts:
            notes.append(f"{each['title']}: the curve differs: {each['gate']['why']}")
        cells = [f"{found['tokens_per_second']:.0f}", speed, f"{found['peak_memory_bytes'] / 1e9:.2f} GB", memory, first, share]
        lines.append(f"| {each['title']} | {' | '.join(cells)} | {'agrees' if counts else 'differs: does not count'} |")
    return "\n".join([*lines, *([""] if notes else []), *[f"- {note.replace('|', ' ')}" for note in notes]])


def facts(case: dict[str, Any]) -> str:
    words = [
        f"{case['documents']:,} rows, {case['tokens']:,} tokens, {case['learned_tokens']:,} learned, {case['rows_per_step']} rows a step"
    ]
    if case.get("matmul_flops"):
        words.append(f"matrix products at the model's shapes {case['matmul_flops'] / 1e9:,.0f} GFLOP/s")
    if case.get("made_up"):
        words.append("rows made up")
    if case.get("one_in", 1) > 1:
        words.append(f"peers took one row in {case['one_in']}")
    return "; ".join(words) + "."


def how(data: dict[str, Any]) -> str:
    rounds = f"medians of {data['rounds']} rounds" if data["rounds"] > 1 else "one round"
    return (
        f"Every program in turn, {rounds}, {data['dtype']} (`benchmarks/bench.py --suite {data['suite']} --level {data['level']}`). "
        "A loss curve agrees where it follows a float32 computation of the same documents by transformers and peft."
    )


def gpu_probe(data: dict[str, Any]) -> str:
    lines = ["| measurement | what | result |", "|---|---|---|"]
    for name, each in data["probes"].items():
        rows = [
            (what, "cannot be done here" if value is None else f"{value:,.4g} {each['unit']}".strip())
            for what, value in each["results"].items()
        ]
        rows += [("", f"ended with {each['error'].splitlines()[-1]}")] if "error" in each else []
        lines += [
            f"| {name if number == 0 else ''} | {' | '.join(cell.replace('|', ' ') for cell in row)} |" for number, row in enumerate(rows)
        ]
    return "\n".join(lines)


def methods(data: dict[str, Any]) -> str:
    lora = data["runs"]["lora"]["median"]
    lines = ["| | tokens/s | of LoRA's speed | peak memory | of LoRA's memory |", "|---|---|---|---|---|"]
    for name, each in data["runs"].items():
        found = each["median"]
        lines.append(
            f"| {name} | {found['tokens_per_second']:.0f} | {found['tokens_per_second'] / lora['tokens_per_second']:.0%} | "
            f"{found['peak_memory_bytes'] / 1e9:.2f} GB | {found['peak_memory_bytes'] / lora['peak_memory_bytes']:.0%} |"
        )
    runs = f"medians of {data['repeats']} runs" if data["repeats"] > 1 else "one run each"
    told = f"SmolLM2-135M-Instruct, each method at its default size, {data['rows']} alpaca rows, {runs} in turn (`benchmarks/speed.py`)."
    return "\n".join([*lines, "", told])


def method_steps(data: dict[str, Any]) -> str:
    lines = ["| | tokens/s | peft's | ours over it |", "|---|---|---|---|"]
    for name, ratio in data["ours_over_peft"].items():
        found = data["tokens_per_second"]
        lines.append(f"| {name} | {found[name]:.0f} | {found[f'peft {name}']:.0f} | {ratio:.2f}× |")
    told = (
        f"One optimizer step over {data['tokens']:,} tokens; {data['layers']} llama layers of {data['hidden']} channels, random weights, "
        f"{data['dtype']}{', NF4' if data['nf4'] else ''}; medians of {data['repeats']} (`benchmarks/method_steps.py`)."
    )
    return "\n".join([*lines, "", told])


def few_examples(data: dict[str, Any]) -> str:
    methods = list(dict.fromkeys(run["method"] for run in data["runs"]))
    lines = [f"| task | examples | {' | '.join(methods)} |", f"|---|---|{'---|' * len(methods)}"]
    for examples, name in dict.fromkeys((run["examples"], run["data"]) for run in data["runs"]):
        found = {run["method"]: run for run in data["runs"] if (run["data"], run["examples"]) == (name, examples)}
        cells = [f"{found[method]['score']:.1%}" if method in found else "" for method in methods]
        lines.append(f"| {data['data'][name]['title']}: {data['data'][name]['score']} | {examples} | {' | '.join(cells)} |")
    told = "SmolLM2-135M-Instruct with a task head, every method's own defaults, 6, 3 and 1 epochs (`benchmarks/few_examples.py`)."
    return "\n".join([*lines, "", told])


def before_after(data: dict[str, Any]) -> str:
    lines = ["| task | score | before | after | difference (95 % interval) | trained on |", "|---|---|---|---|---|---|"]
    for task in data["tasks"].values():
        for number, (name, before) in enumerate(task["before"]["scores"].items()):
            head = [task["title"], f"{task['training']['tokens']:,.0f} tokens, {task['training']['loop_seconds'] / 60:.0f} min"]
            title, trained = head if number == 0 else ["", ""]
            cells = [score(name, before), score(name, task["after"]["scores"][name]), interval(task["difference"].get(name))]
            lines.append(f"| {title} | {name} | {' | '.join(cells)} | {trained} |")
    commands = [f"{t['title']}: {t['rows']} test rows, greedy answers.\n\n{fenced(t['commands'])}" for t in data["tasks"].values()]
    return "\n".join([*lines, "", "\n\n".join(commands)])


def fenced(lines: list[str]) -> str:
    return "\n".join(["```", *lines, "```"])


def score(name: str, value: float | None) -> str:
    if value is None:
        return "not finite"
    return f"{value:.3g}" if name in ("loss", "perplexity") else f"{100 * value:.1f} %"


def interval(difference: dict[str, Any] | None) -> str:
    if difference is None:
        return ""
    low, high = difference["interval"]
    return f"{100 * difference['value']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def data(found: dict[str, Any]) -> str:
    median, rounds = found["median"], f"median of {found['repeats']} rounds" if found["repeats"] > 1 else "one round"
    lines = [
        f"From a file of {found['mb']} MB to proved tokens at {median['whole_mb_per_second']:.2f} MB of rendered text a second, with the "
        f"processes' start; the tokenizer alone, on rendered texts and all cores, does {median['tokenizer_mb_per_second']:.2f} MB/s: "
        f"a share of {median['share_of_tokenizer']:.0%} ({rounds}).",
        "",
        "| with `train.steps` | first step after | memory of the run | memory of its processes |",
        "|---|---|---|---|",
    ]
    for name, each in found["large"].items():
        run, others = each["peak_anonymous_bytes"] / 1e6, each["processes_peak_anonymous_bytes"] / 1e6
        lines.append(f"| {name} | {each['seconds_from_command_to_first_step']:.1f} s | {run:.0f} MB | {others:.0f} MB |")
    told = "Alpaca rows; seconds from the command on, the import of torch included; a tiny model; anonymous memory (`benchmarks/data.py`)."
    return "\n".join([*lines, "", told])


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "bench_cpu": suite,
    "bench_gpu": suite,
    "gpu_probe": gpu_probe,
    "speed": speed,
    "methods": methods,
    "method_steps": method_steps,
    "serve": serve,
    "serve_short": serve,
    "data": data,
    "before_after": before_after,
    "few_examples": few_examples,
}

if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
