"""Few labelled examples: P-tuning v2 with a task head against LoRA and full tuning, on classification and extraction.

    python benchmarks/few_examples.py --data-root DATA          goes on where it stopped; results/few_examples.jsonl and .json
    python benchmarks/few_examples.py --data-root DATA --data sst2 --methods lora --examples 64 --test-rows 20

DATA holds sst2/, tnews/, cluener/ and snips/ as their authors publish them. Every method has its own defaults; nothing is tuned to a
data set. A finished run is a line of the .jsonl and is not made again. SmolLM2-135M reads Chinese byte by byte, or nearly: tnews
and cluener show what a head learns over a base that hardly knows the language.
"""

import argparse
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measure import MODEL, RESULTS, WORK, figures, fresh, run, tunesmith, write

from tunesmith import hardware

METHODS = ("ptuning_v2", "lora", "full")
EPOCHS = {64: 6.0, 256: 3.0, 1000: 1.0}
TOKENS_PER_STEP = 256
# name -> title, task, score
DATA: dict[str, tuple[str, str, str]] = {
    "sst2": ("SST-2, English sentiment, 2 labels", "classify", "accuracy"),
    "snips": ("Snips, English slots", "tag", "entity_f1"),
    "tnews": ("TNEWS, Chinese headlines, 15 labels", "classify", "accuracy"),
    "cluener": ("CLUENER, Chinese entities, 10 types", "tag", "entity_f1"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--data", default=",".join(DATA), help="%(default)s")
    parser.add_argument("--methods", default=",".join(METHODS), help="%(default)s")
    parser.add_argument("--examples", default=",".join(map(str, EPOCHS)), help="%(default)s")
    parser.add_argument("--test-rows", type=int, default=300, help="a fixed sample of the test file (%(default)s)")
    parser.add_argument("--input", choices=("auto", "text", "chat"), default="auto", help="task.input (%(default)s)")
    parser.add_argument("--threads", type=int, default=hardware.physical_cores())
    parser.add_argument("--out", default="few_examples", help="name of the results file")
    arguments = parser.parse_args()
    log = RESULTS / f"{arguments.out}.jsonl"
    work = fresh("few-examples")
    for examples in map(int, arguments.examples.split(",")):
        for name in arguments.data.split(","):
            for method in arguments.methods.split(","):
                key = {"data": name, "examples": examples, "method": method, "input": arguments.input}
                if any(key.items() <= line.items() for line in lines(log)):
                    continue
                found = key | measure(name, examples, method, arguments, work)
                print(f"{name:8} {examples:5} {method:11} {found['score']:.1%}  {found['training']['loop_seconds']:.0f} s", flush=True)
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(found, ensure_ascii=False) + "\n")
    titles = {name: {"title": title, "task": task, "score": score} for name, (title, task, score) in DATA.items()}
    print(write(arguments.out, {"threads": arguments.threads, "data": titles, "runs": list(lines(log))}))


def lines(log: Path) -> Iterator[dict[str, Any]]:
    if log.exists():
        yield from map(json.loads, log.read_text(encoding="utf-8").splitlines())


def measure(name: str, examples: int, method: str, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train on so many examples, then score the test rows."""
    _, task, score = DATA[name]
    train, test = prepared(name, arguments.data_root.resolve())
    out = f"{name}-{examples}-{method}"
    words = ["train", "--model", MODEL, "--data", f"{train}#{examples}", "--method", method, "--out", out, f"task.name={task}"]
    words += [f"task.input={arguments.input}", f"train.epochs={EPOCHS.get(examples, 1.0)}", f"train.tokens_per_step={TOKENS_PER_STEP}"]
    words += [f"task.labels={json.dumps(labels(train, task), ensure_ascii=False)}", "train.checkpoint_every=100000"]
    asked = ["evaluate", out, "--data", f"{test}#{arguments.test_rows}", "--json"]
    run(tunesmith(*words), cwd=work, threads=arguments.threads, log=work / f"{out}-train.log")
    scored = run(tunesmith(*asked), cwd=work, threads=arguments.threads, log=work / f"{out}-evaluate.log")
    scores = json.loads(scored.output)
    return {
        "score": scores["scores"][score],
        "interval": scores["intervals"].get(score),
        "scores": {key: value for key, value in scores["scores"].items() if isinstance(value, float)},
        "training": figures(work / out),
        "evaluation_seconds": scored.seconds,
        "command": shlex.join(["tunesmith", *words])
        .replace(str(WORK.resolve()), "WORK")
        .replace(str(arguments.data_root.resolve()), "DATA"),
    }


def labels(path: Path, task: str) -> list[str]:
    """Those of all training rows: few examples do not show every label."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if task == "classify":
        return sorted({row["label"] for row in rows})
    return sorted({span["label"] for row in rows for span in row["spans"]})


def prepared(name: str, root: Path) -> tuple[Path, Path]:
    """Train and test files of {text, label} or {text, spans}, made once."""
    folder = WORK / "few-examples-data"
    folder.mkdir(parents=True, exist_ok=True)
    paths = (folder / f"{name}-train.jsonl", folder / f"{name}-test.jsonl")
    for path, rows in zip(paths, READERS[name](root), strict=True):
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return paths


def _sst2(root: Path) -> Iterator[list[dict[str, Any]]]:
    for part in ("train", "dev"):
        pairs = [line.split(" ", 1) for line in (root / f"sst2/{part}.txt").read_text(encoding="utf-8").splitlines() if line.strip()]
        yield [{"text": text.strip(), "label": ("negative", "positive")[int(label)]} for label, text in pairs]


def _tnews(root: Path) -> Iterator[list[dict[str, Any]]]:
    for part in ("train", "test"):
        rows = [json.loads(line) for line in (root / f"tnews/{part}.jsonl").read_text(encoding="utf-8").splitlines()]
        yield [{"text": row["sentence"], "label": row["label_desc"]} for row in rows]


def _cluener(root: Path) -> Iterator[list[dict[str, Any]]]:
    for part in ("train", "dev"):
        rows = [json.loads(line) for line in (root / f"cluener/{part}.jsonl").read_text(encoding="utf-8").splitlines()]
        yield [{"text": row["text"], "spans": _spans(row["label"])} for row in rows]


def _spans(found: dict[str, dict[str, list[list[int]]]]) -> list[dict[str, Any]]:
    """CLUENER's ends are included, ours are not."""
    places = [(start, end + 1, kind) for kind, texts in found.items() for ends in texts.values() for start, end in ends]
    return [{"start": start, "end": end, "label": kind} for start, end, kind in sorted(places)]


def _snips(root: Path) -> Iterator[list[dict[str, Any]]]:
    for part in ("train", "validate"):
        rows = []
        for path in sorted((root / "snips").glob(f"{part}_*.json")):
            [found] = json.loads(path.read_text(encoding="utf-8")).values()
            for item in found:
                text, spans = "", []
                for piece in item["data"]:
                    if "entity" in piece:
                        spans.append({"start": len(text), "end": len(text) + len(piece["text"]), "label": piece["entity"]})
                    text += piece["text"]
                rows.append({"text": text, "spans": spans})
        yield rows


READERS = {"sst2": _sst2, "tnews": _tnews, "cluener": _cluener, "snips": _snips}

if __name__ == "__main__":
    main()
