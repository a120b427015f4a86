"""`tunesmith export DIR ... --to TARGET --out OUT`: what was trained, as files that the program which will serve them has opened."""

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError

TARGETS = {
    "peft": "the adapter folder, for peft and what reads its layout",
    "safetensors": "a model folder for transformers, vLLM, SGLang; --quantize nf4",
    "gguf": "one file for llama.cpp; --quantize f32, f16, bf16, q8_0, q4_0, q4_k_m, q5_k_m, q6_k; --adapter-only",
    "ollama": "a GGUF file and a Modelfile; --quantize as gguf",
    "vllm": "a model, or base and adapters, with a launch script",
    "tgi": "a model, or base and adapters, with a Docker command",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "tunesmith export DIR [DIR ...] --to TARGET --out OUT [--quantize KIND] [--as lora[:RANK]] [--no-verify]"
    parser.add_argument(
        "sources", nargs="+", metavar="DIR", help="run folder, adapter folder or model; several of one base for vllm and tgi"
    )
    parser.add_argument("--to", choices=list(TARGETS), required=True, help="; ".join(f"{name}: {what}" for name, what in TARGETS.items()))
    parser.add_argument("--out", required=True, metavar="OUT", help="new folder")
    parser.add_argument("--quantize", metavar="KIND", help="store weights in fewer bits; the target says which kinds it takes")
    parser.add_argument("--as", dest="convert", metavar="lora[:RANK]", help="fit a LoRA to what the target cannot take as it is")
    parser.add_argument("--adapter-only", action="store_true", help="gguf: the LoRA alone, as a file beside its base's")
    parser.add_argument("--keep-base", action="store_true", help="vllm, tgi: do not merge; base and adapters side by side")
    parser.add_argument("--vllm-python", metavar="PYTHON", help="a Python that has vLLM, for the proof of --to vllm")
    parser.add_argument("--no-verify", action="store_true", help="leave the proof out; export.json says so")
    parser.add_argument("--model", metavar="M", help="the base of adapter folders that do not name it, or name it differently")


def run(arguments: argparse.Namespace) -> int:
    from tunesmith.export.target import Options

    options = Options(
        quantize=arguments.quantize,
        adapter_only=arguments.adapter_only,
        keep_base=arguments.keep_base,
        vllm_python=arguments.vllm_python,
    )
    return export_run(
        arguments.sources, arguments.to, Path(arguments.out), options,
        verify=not arguments.no_verify, model=arguments.model, convert=arguments.convert,
    )  # fmt: skip


def export_run(
    given: list[str],
    target: str,
    out: Path,
    options: Any,
    *,
    verify: bool = True,
    model: str | None = None,
    convert: str | None = None,
    anew: bool = False,
) -> int:
    """Export and prove; one line about it on stdout, and what the user should read on stderr. `anew`: in place of an earlier export.

    Raises UserError, ProofFailed.
    """
    if anew and (out / "export.json").is_file():
        pass  # what stands there goes once the new one is whole
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty; name a new folder")
    _rank(convert)
    from tunesmith.export.export import check, export
    from tunesmith.export.source import describe
    from tunesmith.train.checkpoint import write_whole
    from tunesmith.verbs.signals import tidying
    from tunesmith.verbs.telling import tell

    originals = [describe(each, model) for each in given]
    with tidying(), _as_asked(originals, convert, out, tell, lambda sources: check(target, sources, options)) as (sources, fitted):
        done = export(target, sources, out, options, verify=verify, fill=write_whole, tell=tell, fitted=fitted)
    _keep(given, target, done.facts)
    print(_line(out, target, done.facts, done.proof))
    for note in done.proof.notes if done.proof is not None else ["not proved: --no-verify"]:
        print(f"! {note}", file=sys.stderr)
    return 0


def _rank(convert: str | None) -> int | None:
    """The rank that `--as lora:RANK` asks for, None where it leaves that to us. Raises UserError."""
    if convert is None or convert == "lora":
        return None
    word, _, rank = convert.partition(":")
    if word != "lora" or not rank.isdigit() or int(rank) < 1:
        raise UserError(f"--as {convert}: write --as lora, or --as lora:16 for a rank of 16")
    return int(rank)


@contextmanager
def _as_asked(
    originals: list[Any], convert: str | None, out: Path, tell: Any, check: Callable[[list[Any]], None]
) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """(what is exported, what was fitted to it): the sources themselves, or LoRAs fitted to them, which last as long as this does.

    `check` is asked before anything is fitted, which takes minutes, and of what was fitted again. Raises UserError.
    """
    if convert is None:
        check(originals)
        yield originals, {}
        return
    from tunesmith.export.fitted import fit_lora, to_be
    from tunesmith.export.source import describe

    rank = _rank(convert)
    check([to_be(original, rank) for original in originals])
    out.resolve().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.resolve().parent, prefix=".fitted-") as aside:
        sources, fits = [], {}
        for original in originals:
            folder = Path(aside) / original.name
            fit = fit_lora(original.given, rank, folder, model=original.model, tell=tell)
            for sentence in fit.sentences():
                print(sentence.replace(f"{folder}: ", ""), file=sys.stderr)
            fits[original.name] = fit.facts()
            fitted = describe(str(folder))
            sources.append(dataclasses.replace(fitted, renderer=original.renderer, name=original.name))
        check(sources)
        yield sources, fits


def _keep(given: list[str], target: str, facts: dict[str, Any]) -> None:
    """The proof in the run folders too, by target."""
    from tunesmith.train.folder import read_json, write_json

    for each in given:
        folder = Path(each).expanduser()
        if (folder / "run.yaml").is_file():
            kept = read_json(folder / "export.json") if (folder / "export.json").is_file() else {}
            write_json(folder / "export.json", kept | {target: facts})


def _line(out: Path, target: str, facts: dict[str, Any], proof: Any) -> str:
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    said = f"{out}: {target}, {size / 1e6:,.1f} MB"
    if proof is None:
        return said
    figures = proof.figures
    told = [f"largest logit difference {figures['largest_logit_difference']:.1e}"] if "largest_logit_difference" in figures else []
    told += [f"KL {figures['mean_kl']:.1e} nats"] if "mean_kl" in figures else []
    who = "not started, but what it reads agrees" if proof.opened_by == "nothing" else f"{proof.opened_by} opened it and agrees"
    return f"{said}; {who}" + (f": {', '.join(told)}" if told else "")
