"""Side by side with TRL + PEFT (padded and packed) and LLaMA-Factory, on the same rows, in one run.

    python benchmarks/peers.py --data alpaca_en_demo.json              three rounds, medians into results/peers.json
    python benchmarks/peers.py --data alpaca_en_demo.json --rows 4 --repeats 1 --out try
    python benchmarks/peers.py --data alpaca_en_demo.json --method dora --out peers_dora     everyone's DoRA

Each peer gets a virtual environment of its own below build/peers (several GB, made once). Same model, rows, rank, targets,
learning rate, threads; 16 rows or about as many tokens for a step. Everyone is started in turn, round after round, in another
order each time, so that a slow minute meets all. Useful tokens are counted once, by Tunesmith's tokenizer and template, for
everyone; padding does not count. Memory is sampled from outside, in the same way for all.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from measure import MODEL, ROOT, figures, first_rows, fresh, medians, run, tunesmith, write
from safetensors.torch import load_file, save_file

from tunesmith import hardware
from tunesmith.models.source import locate

# name -> what its environment holds; the versions that the figures are about
ENVIRONMENTS = {
    "trl": ["trl==1.16.0", "peft==0.21.2", "transformers==5.23.0"],
    "llamafactory": ["llamafactory==0.9.5"],
}
CONSTRAINT = "torch==2.13.0"  # the torch that we are measured with


def main() -> None:
    arguments = read_arguments()
    work, threads = fresh("peers"), arguments.threads
    dtype = str(hardware.default_dtype(hardware.device("cpu"))[0]).removeprefix("torch.")
    folder = locate(MODEL).folder
    copy = in_dtype(folder, work / "model", dtype)
    rows = first_rows(arguments.data, arguments.rows, work / "rows.json")
    (work / "dataset_info.json").write_text('{"rows": {"file_name": "rows.json"}}', encoding="utf-8")
    contenders = {name: what for name, what in contenders_for(folder, dtype, rows, threads, arguments).items() if name in arguments.only}
    for environment in sorted({what["environment"] for what in contenders.values() if what["environment"]}):
        make_environment(arguments.environments / environment, ENVIRONMENTS[environment])

    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    tokens = 0
    order = list(contenders)
    for number in range(arguments.repeats):
        for name in order[number % len(order) :] + order[: number % len(order)]:
            out = f"{name}-{number}"
            command = [word.replace("{OUT}", out) for word in contenders[name]["command"]]
            if name == "llamafactory":
                (work / f"{out}.yaml").write_text(yaml.safe_dump(llamafactory_file(copy, work, out, arguments.method)), encoding="utf-8")
            measured = run(command, cwd=work, threads=threads, log=work / f"{out}.log")
            found = read_figures(name, work / out, measured.output)
            tokens = int(found.pop("tokens", tokens))
            rounds[name].append(found | {"process_seconds": measured.seconds, "peak_memory_bytes": measured.peak_memory_bytes})
            print(f"round {number + 1}/{arguments.repeats} {name}: {found['loop_seconds']:.1f} s", flush=True)
    for each in (each for found in rounds.values() for each in found):
        each["tokens_per_second"] = tokens / each["loop_seconds"]
    print(write(arguments.out, content(contenders, rounds, rows, tokens, threads, dtype) | {"method": arguments.method}))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a JSON list with instruction, input, output")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=hardware.physical_cores())
    parser.add_argument("--environments", type=Path, default=ROOT / "build" / "peers")
    parser.add_argument("--method", choices=("lora", "dora"), default="lora")
    parser.add_argument("--out", default="peers", help="name of the results file")
    parser.add_argument("--only", default="tunesmith,trl-padded,trl-packed,llamafactory")
    arguments = parser.parse_args()
    arguments.only = arguments.only.split(",")
    arguments.environments = arguments.environments.resolve()
    if "tunesmith" not in arguments.only:
        parser.error("--only: tunesmith belongs to it; everything is compared with it")
    return arguments


def contenders_for(folder: Path, dtype: str, rows: int, threads: int, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """name -> its title, environment and command line; `{OUT}` stands for the round's folder."""
    python = {name: str(arguments.environments / name / "bin" / "python") for name in ENVIRONMENTS}
    peer = str(Path(__file__).resolve().parent / "peer_trl.py")
    ours = ["train", "--model", MODEL, "--data", "rows.json", "--method", arguments.method, "method.rank=8"]
    ours += ["train.epochs=1", "train.learning_rate=2e-4"]
    ours += [f"train.tokens_per_step={max(512, rows * 55)}", f"train.threads={threads}", "--out", "{OUT}"]

    def trl(layout: str) -> list[str]:
        return [python["trl"], peer, str(folder), "rows.json", layout, dtype, str(threads), arguments.method]

    factory = [str(arguments.environments / "llamafactory" / "bin" / "llamafactory-cli"), "train", "{OUT}.yaml"]
    return {
        "tunesmith": {"title": "Tunesmith", "environment": None, "command": tunesmith(*ours)},
        "trl-padded": {"title": "TRL 1.16 + PEFT, padded batches of 4", "environment": "trl", "command": trl("pad")},
        "trl-packed": {"title": "TRL 1.16 + PEFT, packed to 1,024", "environment": "trl", "command": trl("pack")},
        "llamafactory": {"title": "LLaMA-Factory 0.9.5, as documented", "environment": "llamafactory", "command": factory},
    }


def llamafactory_file(folder: Path, work: Path, out: str, method: str) -> dict[str, Any]:
    """Its documented way to a LoRA run, on these rows: batches of 4, 4 of them for a step."""
    return {
        "model_name_or_path": str(folder),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 8,
        "lora_target": "all",
        "use_dora": method == "dora",
        "dataset": "rows",
        "dataset_dir": str(work),
        "template": "chatml",
        "cutoff_len": 1024,
        "preprocessing_num_workers": 1,
        "dataloader_num_workers": 0,
        "output_dir": str(work / out),
        "logging_steps": 1,
        "save_strategy": "no",
        "plot_loss": False,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "learning_rate": 2e-4,
        "num_train_epochs": 1.0,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "report_to": "none",
        "seed": 0,
    }


def in_dtype(folder: Path, copy: Path, dtype: str) -> Path:
    """The model as everyone computes it. LLaMA-Factory trains in the number format that config.json names, and bfloat16 on a CPU
    that lacks its instructions is fifty times slower than float32, which would say nothing about LLaMA-Factory."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("dtype", config.get("torch_dtype")) == dtype:
        return folder
    shutil.copytree(folder, copy)
    for file in copy.glob("*.safetensors"):
        tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    (copy / "config.json").write_text(json.dumps(config | {"dtype": dtype, "torch_dtype": dtype}, indent=2), encoding="utf-8")
    return copy


def read_figures(name: str, folder: Path, output: str) -> dict[str, float]:
    """Seconds of the training loop and the loss, as each program reports them."""
    if name == "tunesmith":
        found = figures(folder)
        return {key: found[key] for key in ("loop_seconds", "loss", "steps", "tokens")}
    if name == "llamafactory":
        found = json.loads((folder / "train_results.json").read_text(encoding="utf-8"))
        steps = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
        return {"loop_seconds": found["train_runtime"], "loss": found["train_loss"], "steps": steps}
    found = json.loads(output.strip().splitlines()[-1])
    return {key: found[key] for key in ("loop_seconds", "loss", "steps")}


def content(
    contenders: dict[str, dict[str, Any]], rounds: dict[str, list[dict[str, float]]], rows: int, tokens: int, threads: int, dtype: str
) -> dict[str, Any]:
    """The results file. Ratios are medians over rounds of (Tunesmith / peer) within a round."""
    results: dict[str, Any] = {}
    for name, found in rounds.items():
        ratios = {
            key: statistics.median(mine[key] / theirs[key] for mine, theirs in zip(rounds["tunesmith"], found, strict=True))
            for key in ("tokens_per_second", "peak_memory_bytes", "process_seconds")
        }
        results[name] = {"title": contenders[name]["title"], "median": medians(found), "tunesmith_over_this": ratios, "rounds": found}
    versions = {name: ENVIRONMENTS[name] for name in sorted({c["environment"] for c in contenders.values() if c["environment"]})}
    return {"rows": rows, "tokens": tokens, "threads": threads, "dtype": dtype, "versions": versions, "results": results}


def make_environment(folder: Path, packages: list[str]) -> None:
    """A virtual environment, once; a stamp says that it is whole."""
    stamp = folder / "ready"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == "\n".join(packages):
        return
    print(f"making {folder.name}'s environment: {', '.join(packages)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    constraints = folder / "constraints.txt"
    constraints.write_text(CONSTRAINT + "\n", encoding="utf-8")
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-q", "-c", str(constraints), *packages], check=True)
    if "llamafactory" in folder.name:
        mend_llamafactory(folder, pip)
    stamp.write_text("\n".join(packages), encoding="utf-8")


def mend_llamafactory(folder: Path, pip: list[str]) -> None:
    """Text training needs neither sound nor images, but importing LLaMA-Factory imports torchaudio, and transformers imports
    torchvision where it is installed. Their wheels hold CUDA code: beside a torch without CUDA, or with another CUDA version,
    torchaudio refuses in its version check, and torchvision's operators are missing. So torchvision goes, and torchaudio
    loses its compiled part, without which it imports and skips that check.
    """
    subprocess.run([*pip, "uninstall", "-q", "-y", "torchvision"], check=True)
    for library in folder.glob("lib/python*/site-packages/torchaudio/lib"):
        for file in library.glob("*.so"):
            file.unlink()
        shutil.rmtree(library / "__pycache__", ignore_errors=True)


if __name__ == "__main__":
    main()
