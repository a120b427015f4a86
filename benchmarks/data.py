"""Reading and tokenising: what the tokenizer alone does on all cores beside the whole way from file to tokens, and a large
file's first step, second start and memory.

    python benchmarks/data.py --data alpaca_en_demo.json                 into results/data.json
    python benchmarks/data.py --data alpaca_en_demo.json --mb 10 --large 100 --repeats 1 --out try      only a try

Both ways see the same rows. The tokenizer alone gets the texts already rendered, as one list per 1,000 rows, and its own
threads; the whole way reads JSON, renders the chat template, masks, fits and proves. Megabytes are of rendered text. The large
runs train a tiny model with random weights, made here, so that what is measured is the data's way and not the model's.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from measure import MODEL, ROOT, fresh, medians, write

from tunesmith import hardware

SAMPLED = 0.5  # seconds between two looks at a run's memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a JSON list with instruction, input, output")
    parser.add_argument("--mb", type=int, default=40, help="size of the file that is tokenised whole")
    parser.add_argument(
        "--large", type=int, default=1000, help="size in MB of the file that is not waited for; a quarter of it is compared"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="data", help="name of the results file")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    work = fresh("data")
    os.environ["TUNESMITH_CACHE"] = str(work / "cache")

    rounds: list[dict[str, float]] = []
    file = work / "rows.jsonl"
    grow(arguments.data, arguments.mb * 1_000_000, file)
    link_builtin(work)
    for number in range(arguments.repeats):
        found = {"tokenizer_mb_per_second": measured("alone", file), "whole_mb_per_second": measured("whole", file)}
        rounds.append(found | {"share_of_tokenizer": found["whole_mb_per_second"] / found["tokenizer_mb_per_second"]})
        print(f"round {number + 1}/{arguments.repeats}: {rounds[-1]}", flush=True)

    large: dict[str, Any] = {}
    tiny(work / "tiny")
    for size in (arguments.large // 4, arguments.large):
        big = work / f"{size}.jsonl"
        grow(arguments.data, size * 1_000_000, big)
        for which in ("first", "second"):
            large[f"{size} MB, {which} start"] = started(work, big, f"{size}-{which}")
            print(size, which, large[f"{size} MB, {which} start"], flush=True)
        big.unlink()
    content = {
        "threads": hardware.physical_cores(),
        "repeats": arguments.repeats,
        "mb": arguments.mb,
        "median": medians(rounds),
        "rounds": rounds,
        "large": large,
    }
    print(write(arguments.out, content))


def grow(data: Path, size: int, target: Path) -> None:
    """The rows of a JSON list as lines, again and again with a number in the instruction, until there are `size` bytes."""
    rows, taken, number = json.loads(data.read_text(encoding="utf-8")), 0, 0
    with open(target, "w", encoding="utf-8") as file:
        while taken < size:
            number += 1
            for row in rows:
                line = json.dumps(row | {"instruction": f"{row['instruction']} ({number})"}, ensure_ascii=False) + "\n"
                file.write(line)
                taken += len(line.encode())


def link_builtin(work: Path) -> None:
    """The built-in model stays where it is; everything else is cached anew."""
    from tunesmith.models.source import builtin_folder

    name = MODEL.removeprefix("builtin:")
    os.environ.pop("TUNESMITH_CACHE")
    there = builtin_folder(name)
    os.environ["TUNESMITH_CACHE"] = str(work / "cache")
    here = builtin_folder(name)
    here.parent.mkdir(parents=True)
    here.symlink_to(there)


def measured(way: str, file: Path) -> float:
    """Megabytes of rendered text a second, in a process of its own."""
    ended = subprocess.run(
        [sys.executable, __file__, way, str(file)], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    return float(ended.stdout.split()[-1])


def alone(file: Path) -> float:
    """The tokenizer on texts that are already rendered, its own threads on all cores."""
    tokenizer = loaded()
    texts = rendered(tokenizer, file)
    begun = time.perf_counter()
    for first in range(0, len(texts), 1000):
        tokenizer(texts[first : first + 1000], add_special_tokens=False)
    return sum(len(text.encode()) for text in texts) / 1e6 / (time.perf_counter() - begun)


def whole(file: Path) -> float:
    """The whole way, processes' start included."""
    from tunesmith.data.corpus.blocks import open_sources
    from tunesmith.data.corpus.documents import prepare
    from tunesmith.data.rendering.render import Renderer
    from tunesmith.data.sources import understand

    tokenizer = loaded()
    size = sum(len(text.encode()) for text in rendered(tokenizer, file))
    renderer = Renderer(tokenizer)
    begun = time.perf_counter()
    sources, cores = open_sources([str(file)], understand()), hardware.physical_cores()
    prepare(sources, renderer, max_length=1024, cache=file.parent / "tokens", workers=cores)
    seconds = time.perf_counter() - begun
    subprocess.run(["rm", "-rf", str(file.parent / "tokens")], check=True)
    return size / 1e6 / seconds


def loaded() -> Any:
    from tunesmith.models.load import load_tokenizer
    from tunesmith.models.source import locate

    return load_tokenizer(locate(MODEL).folder)


def rendered(tokenizer: Any, file: Path) -> list[str]:
    texts = []
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        question = f"{row['instruction']}\n{row['input']}" if row.get("input") else row["instruction"]
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]
        texts.append(tokenizer.apply_chat_template(turns, tokenize=False))
    return texts


def tiny(folder: Path) -> None:
    """A Llama of 64 channels and two layers with the built-in model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = loaded()
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **tokens)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def started(work: Path, data: Path, name: str) -> dict[str, float]:
    """A run of ten steps: seconds from the command to the end of its first step, and the memory of the run and its processes."""
    words = ["train", "--model", "tiny", "--data", data.name, "--out", name, "train.steps=10", "train.tokens_per_step=2048"]
    log = work / f"{name}.log"
    peak: dict[int, int] = {}
    begun = time.time()
    with open(log, "w", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tunesmith", *words],
            cwd=work,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=stderr,
            stderr=stderr,
        )
        while process.poll() is None:
            look(process.pid, peak)
            time.sleep(SAMPLED)
    if process.returncode:
        raise SystemExit(log.read_text(encoding="utf-8")[-2000:])
    happened = [json.loads(line) for line in (work / name / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    first = next(event for event in happened if event["event"] == "step")
    main_bytes = peak.pop(process.pid)
    return {
        "seconds_from_command_to_first_step": first["time"] - begun,
        "seconds": time.time() - begun,
        "peak_anonymous_bytes": main_bytes,
        "processes_peak_anonymous_bytes": sum(peak.values()),
    }


def look(process: int, peak: dict[int, int]) -> None:
    """Anonymous memory of a run and its processes: mapped files, whose pages the system may drop, do not count."""
    try:
        family = [psutil.Process(process), *psutil.Process(process).children(recursive=True)]
    except psutil.Error:
        return
    for each in family:
        try:
            taken = sum(place.anonymous for place in each.memory_maps(grouped=True))
        except psutil.Error:
            continue
        peak[each.pid] = max(peak.get(each.pid, 0), taken)


WAYS = {"alone": alone, "whole": whole}

if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in WAYS:
        print(WAYS[sys.argv[1]](Path(sys.argv[2])))
    else:
        main()
