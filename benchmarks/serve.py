"""Serving side by side: the built-in engine with one and with eight LoRA adapters, `transformers`' generate, and vLLM.

    python benchmarks/serve.py                                        ours and transformers; results/serve.json
    python benchmarks/serve.py --vllm-python ENVIRONMENT/bin/python   and vLLM, in an environment of its own
    python benchmarks/serve.py --only ours_8,vllm_8 --rounds 3        some contenders, several rounds in turn

Every contender is a process of its own and gets the same requests: token ids of drawn prompts and how many tokens each answer has.
Sixteen clients ask again as soon as they have their answer; after `--seconds` the count ends. Answers do not end by themselves, and
everything is computed in the same dtype. A finished contender is written at once, and one that stands there is not measured again unless it
is named with `--again`.
"""

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

from measure import MODEL, RESULTS, Failed, fresh, medians, run, write

from tunesmith import hardware

ADAPTERS = 8
RANK = 8
REQUESTS = 512
SCRIPTS = Path(__file__).resolve().parent / "peers"
# name -> title, script, adapters, requests at once
CONTENDERS: dict[str, tuple[str, str, int, int]] = {
    "ours_8": ("Tunesmith, 8 adapters", "serve_ours.py", 8, 16),
    "ours_1": ("Tunesmith, 1 adapter", "serve_ours.py", 1, 16),
    "ours_0": ("Tunesmith, the base", "serve_ours.py", 0, 16),
    "transformers_1": ("transformers generate, one at a time", "serve_transformers.py", 0, 1),
    "transformers_16": ("transformers generate, batches of 16", "serve_transformers.py", 0, 16),
    "vllm_8": ("vLLM, 8 adapters", "serve_vllm.py", 8, 16),
    "vllm_1": ("vLLM, 1 adapter", "serve_vllm.py", 1, 16),
    "vllm_0": ("vLLM, the base", "serve_vllm.py", 0, 16),
}
FIGURES = ("tokens_per_second", "peak_memory_bytes")


def main() -> None:
    arguments = read_arguments()
    work, target = fresh("serve"), RESULTS / f"{arguments.out}.json"
    rounds: dict[str, list[dict[str, Any]]] = kept(target, set(arguments.again.split(",")))
    prepared = prepare(arguments, work)
    for turn in range(arguments.rounds):
        for name in arguments.only.split(","):
            if len(rounds.get(name, [])) > turn:
                continue
            found = measure(name, prepared, arguments, work)
            rounds.setdefault(name, []).append(found)
            print(f"{name:16} {in_words(found)}", flush=True)
            write(arguments.out, content(rounds, arguments))
    print(target)


def measure(name: str, prepared: dict[str, Any], arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    _, script, adapters, batch = CONTENDERS[name]
    result = work / f"{name}.result.json"
    job = prepared | {"adapters": prepared["adapters"][:adapters], "batch": batch, "result": str(result), "seconds": arguments.seconds}
    job["requests"] = [
        request | {"adapter": f"customer-{number % adapters}" if adapters else ""} for number, request in enumerate(prepared["requests"])
    ]
    file = work / f"{name}.job.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    python = arguments.vllm_python if script == "serve_vllm.py" else None
    command = [str(python or sys.executable), str(SCRIPTS / script), str(file)]
    result.unlink(missing_ok=True)
    try:
        run(command, cwd=work, threads=arguments.threads, log=work / f"{name}.log", limit=arguments.seconds + 240)
    except Failed as error:
        return {"error": str(error).strip().splitlines()[-1]}
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def prepare(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The model in the dtype that all compute in, adapters with drawn values, and the requests."""
    import torch

    from tunesmith.methods import method
    from tunesmith.methods.layouts import layout
    from tunesmith.methods.settings import LoRA
    from tunesmith.models import load
    from tunesmith.models.source import locate

    located = locate(arguments.model)
    device = hardware.device("auto")
    config = load.load_config(located.folder)
    base = load.skeleton(config)
    adapters = []
    for number in range(ADAPTERS):
        settings = LoRA(rank=RANK)
        tuning = method.build(base, settings, quantized=False, device="cpu")
        generator = torch.Generator().manual_seed(number)
        for parameter in tuning.parameters.values():
            parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
        folder = work / f"customer-{number}"
        layout.write(folder, base, tuning, str(located.folder))
        adapters.append({"name": folder.name, "folder": str(folder)})
    draw = random.Random(0)
    requests = [
        {"ids": [draw.randrange(100, config.get_text_config().vocab_size) for _ in range(draw.randint(*arguments.prompt))],
         "tokens": draw.randint(*arguments.answer)}
        for _ in range(REQUESTS)
    ]  # fmt: skip
    return {
        "source": arguments.model,
        "model": str(located.folder),
        "dtype": str(hardware.default_dtype(device)[0]).removeprefix("torch."),
        "device": str(device),
        "threads": arguments.threads,
        "clients": arguments.clients,
        "rank": RANK,
        "adapters": adapters,
        "requests": requests,
    }


def content(rounds: dict[str, list[dict[str, Any]]], arguments: argparse.Namespace) -> dict[str, Any]:
    """What the results file holds: medians over rounds, and ratios to the first contender's within a round."""
    contenders: dict[str, Any] = {}
    whole = {name: [each for each in found if "error" not in each] for name, found in rounds.items()}
    for name, found in rounds.items():
        entry: dict[str, Any] = {"title": CONTENDERS[name][0], "rounds": found}
        if whole[name]:
            entry["median"] = medians({key: each[key] for key in FIGURES} for each in whole[name])
            pairs = [pair for pair in zip(whole.get("ours_8", []), whole[name], strict=False) if pair[1]["tokens_per_second"]]
            if pairs:
                ratio = medians({"tokens_per_second": mine["tokens_per_second"] / each["tokens_per_second"]} for mine, each in pairs)
                entry["ours_8_over_this"] = ratio["tokens_per_second"]
        contenders[name] = entry
    return {
        "model": arguments.model,
        "threads": arguments.threads,
        "clients": arguments.clients,
        "seconds": arguments.seconds,
        "prompt_tokens": arguments.prompt,
        "answer_tokens": arguments.answer,
        "rank": RANK,
        "contenders": contenders,
    }


def kept(target: Path, again: set[str]) -> dict[str, list[dict[str, Any]]]:
    """Rounds that an earlier call has measured on this machine."""
    if not target.exists():
        return {}
    known = json.loads(target.read_text(encoding="utf-8"))
    if known["machine"] != hardware.describe():
        raise SystemExit(f"{target.name} was measured on another machine or with other libraries: delete it or take --out NAME")
    return {name: entry["rounds"] for name, entry in known["contenders"].items() if name not in again}


def in_words(found: dict[str, Any]) -> str:
    if "error" in found:
        return f"not measured: {found['error']}"
    first, between = found["first_token_seconds"], found["between_tokens_seconds"]
    return (
        f"{found['tokens_per_second']:6.1f} tokens/s; first token {first['p50']:.2f} s (p95 {first['p95']:.2f}), "
        f"between tokens {1000 * between['p50']:.0f} ms (p95 {1000 * between['p95']:.0f}), {found['peak_memory_bytes'] / 1e9:.2f} GB"
    )


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL, help="%(default)s")
    parser.add_argument("--only", help="some of " + ",".join(CONTENDERS))
    parser.add_argument("--again", default="", help="contenders that are measured anew")
    parser.add_argument("--vllm-python", type=Path, help="the Python of an environment with vLLM")
    parser.add_argument("--seconds", type=float, default=60.0, help="that each contender is measured for (%(default)s)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--prompt", type=int, nargs=2, default=(32, 128), help="tokens of a prompt, from and to")
    parser.add_argument("--answer", type=int, nargs=2, default=(32, 96), help="tokens of an answer, from and to")
    parser.add_argument("--threads", type=int, default=hardware.physical_cores())
    parser.add_argument("--out", default="serve", help="name of the results file")
    arguments = parser.parse_args()
    arguments.prompt, arguments.answer = list(arguments.prompt), list(arguments.answer)
    if not arguments.only:
        arguments.only = ",".join(name for name in CONTENDERS if arguments.vllm_python or not name.startswith("vllm"))
    return arguments


if __name__ == "__main__":
    main()
