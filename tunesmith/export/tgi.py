"""`tgi`: a folder for Hugging Face's Text Generation Inference and the Docker command that starts it. It runs on GPUs only and in its own
image, so that it is not started here: what it reads is checked against its rules, and that is said.

    model/                        the whole model; with --keep-base, or several DIRs, the base
    adapters/NAME/                a LoRA of one rank and one alpha, with an update in every block
    launch.sh                     docker run ... ghcr.io/huggingface/text-generation-inference
"""

import gc
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import UserError
from tunesmith.export import agreement, served
from tunesmith.export.even import even, rank_for
from tunesmith.export.folder import name_both, name_stops
from tunesmith.export.target import Options, Proof, Source, Tell, Truth
from tunesmith.export.whole import copy
from tunesmith.methods.layouts import layout
from tunesmith.methods.method import unmergeable
from tunesmith.models import load as loading
from tunesmith.models import slots

SEVERAL = True
QUANTIZE: tuple[str, ...] = ()
SERVERS = ("tgi",)
LINEAR = "TGI passes over a linear rope scaling: positions would be wrong; serve it with vLLM"
IMAGE = "ghcr.io/huggingface/text-generation-inference:3.3.5"
MODEL, ADAPTERS, LAUNCH = "model", "adapters", "launch.sh"
RANKS = (8, *range(16, 129, 16))  # others it pads with zeros, and then divides alpha by the padded rank
# model_type -> computed by TGI's own code; of the first, LoRAs beside the base too.
WITH_ADAPTERS = ("llama", "mistral", "granite")
OWN = (
    *WITH_ADAPTERS, "phi3", "gemma", "gemma2", "gemma3_text", "cohere", "mixtral", "qwen2", "starcoder2", "phi", "falcon", "gpt_neox",
    "gptj", "gpt2", "opt", "bloom", "mpt",
)  # fmt: skip


def check(sources: Sequence[Source], options: Options) -> None:
    """Raises UserError for what TGI cannot serve, whole or as adapters."""
    config = loading.load_config(sources[0].base)
    kind = config.model_type
    problems = []
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "linear":
        problems.append(f"{sources[0].given}: {LINEAR}")
    for source in sources:
        if source.tuning.head is not None:
            problems.append(f"{source.given}: TGI serves text, and this predicts labels with a head; `tunesmith evaluate` uses it")
        elif not merges(sources, options):
            problems += _beside(source, kind)
        elif misfit := unmergeable(source.tuning, source.given):
            problems.append(f"{source.given}: {misfit}")
    if problems:
        raise UserError(*problems)


def _beside(source: Source, kind: str) -> list[str]:
    if source.adapter is None:
        return [f"{source.given} holds no adapter, so that there is nothing to put beside a base"]
    if kind not in WITH_ADAPTERS:
        return [
            f"{source.given}: TGI takes adapters beside {', '.join(WITH_ADAPTERS)}, and this is {kind}; export each alone, which merges it"
        ]
    found = served.verdict("tgi", served.traits_of(source.tuning))
    if found.how in ("as it is", "rewritten"):
        return []
    cure = (
        "export it alone, which merges it"
        if found.how == "merged"
        else f"`tunesmith export {source.given} --to tgi --as lora` fits a LoRA to it"
    )
    return [f"{source.given}: {reason}; {cure}" for reason in found.reasons]


def can_prove(options: Options) -> None:
    """Its rules are read here; TGI is not started."""


def merges(sources: Sequence[Source], options: Options) -> bool:
    """One source is merged, unless its base is to be kept."""
    return len(sources) == 1 and not options.keep_base


def write(sources: Sequence[Source], folder: Path, options: Options, tell: Tell) -> dict[str, Any]:
    """Model, adapters, launch script."""
    tell("writing the model")
    first = sources[0]
    if merges(sources, options):
        facts = first.whole.write(folder / MODEL)
    else:
        copy(first.base, folder / MODEL)
        name_stops(folder / MODEL, first.renderer.stops)
        name_both(folder / MODEL)
        facts = {"adapters": {source.name: _write_adapter(source, folder / ADAPTERS / source.name) for source in sources}}
    _one_template(folder / MODEL, first.renderer.template)
    launch = folder / LAUNCH
    launch.write_text(_launch(sources, merges(sources, options)), encoding="utf-8")
    launch.chmod(0o755)
    return facts | {"image": IMAGE}


def _write_adapter(source: Source, folder: Path) -> dict[str, Any]:
    """The adapter with one rank and one alpha. What it says of its base is a path inside the container."""
    assert source.adapter is not None
    skeleton = loading.skeleton(loading.load_config(source.base))
    tuning = layout.fit(layout.read(source.adapter), skeleton, device="cpu")
    rank = rank_for(served.traits_of(tuning).rank, RANKS)
    laid = even(tuning, skeleton, rank, everywhere=True)
    layout.write(folder, skeleton, laid, f"/data/{MODEL}")
    return {"rank": rank, "layers": len(laid.adapter)}


def _one_template(folder: Path, template: str) -> None:
    """TGI reads the chat template in tokenizer_config.json; transformers 5 writes a file of its own. Both, and the same."""
    path = folder / "tokenizer_config.json"
    if template and path.is_file():
        values = json.loads(path.read_text(encoding="utf-8")) | {"chat_template": template}
        path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _launch(sources: Sequence[Source], merged: bool) -> str:
    adapters = ",".join(f"{source.name}=/data/{ADAPTERS}/{source.name}" for source in sources)
    lora = "" if merged else f"  -e LORA_ADAPTERS={adapters} \\\n"
    ask = (
        ""
        if merged
        else f'\n# a request names its adapter: "parameters": {{"adapter_id": "{sources[0].name}"}}, or "model" on /v1/chat/completions'
    )
    return f"""#!/bin/sh
# Starts Text Generation Inference on http://127.0.0.1:8080; needs Docker and an NVIDIA GPU.{ask}
here=$(cd "$(dirname "$0")" && pwd)
exec docker run --rm --gpus all --shm-size 1g -p 127.0.0.1:8080:80 \\
  -v "$here":/data \\
{lora}  {IMAGE} --model-id /data/{MODEL} "$@"
"""


# --- what it is held against ---


def prove(sources: Sequence[Source], truths: Sequence[Truth], folder: Path, options: Options, tell: Tell) -> Proof:
    """TGI's rules, read off the files, and the model that they hold, computed by ours; TGI itself is not started."""
    tell("checking against TGI's rules")
    merged = merges(sources, options)
    failures = _files(folder / MODEL, sources[0]) + (
        [] if merged else [each for s in sources for each in _adapter(folder / ADAPTERS / s.name)]
    )
    base = loading.load(folder / MODEL, dtype=torch.float32)
    ropes, notes = _ropes(base.model, folder / MODEL)
    failures += ropes
    figures: dict[str, Any] = {}
    for source, truth in zip(sources, truths, strict=True):
        tuning = None if merged else layout.fit(layout.read(folder / ADAPTERS / source.name), base.model, base.model.device)
        slots.place(base.model, tuning.adapter if tuning else {})
        with torch.no_grad():
            found = [base.model(input_ids=torch.tensor([ids])).logits[0].float() for ids in truth.prompts]
        slots.lift(base.model, tuning.adapter if tuning else {})
        figures[source.name], wrong = agreement.same_logits(truth.logits, found)
        failures += wrong
        if truth.conversations:
            asked = [
                base.tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False) for talk in truth.conversations
            ]
            failures += agreement.same_ids(truth.prompts, asked, "the chat template")
    kind = base.model.config.model_type
    del base
    gc.collect()
    if kind not in OWN:
        notes.append(f"TGI has no code of its own for {kind} and computes it by transformers', slowly")
    notes.append("TGI was not started: it runs on a GPU, in its own image; launch.sh starts it")
    only = next(iter(figures.values())) if len(figures) == 1 else {"sources": figures}
    return Proof("nothing", only, tuple(failures), tuple(notes))


def _files(folder: Path, source: Source) -> list[str]:
    """What TGI's launcher and router read."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    failures = []
    if not (folder / "tokenizer.json").is_file():
        failures.append("there is no tokenizer.json, and TGI's router reads no other tokenizer")
    if not any(folder.glob("*.safetensors")):
        failures.append("there is no safetensors file")
    if config.get("dtype") != config.get("torch_dtype"):
        failures.append("config.json's dtype and torch_dtype say different things to transformers 5 and 4")
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope and config.get("rope_theta") != rope["rope_theta"]:
        failures.append(
            f"config.json names rope base {rope['rope_theta']} for transformers 5 and {config.get('rope_theta')} for 4, which TGI has"
        )
    settings = folder / "tokenizer_config.json"
    written = json.loads(settings.read_text(encoding="utf-8")).get("chat_template") if settings.is_file() else None
    beside = folder / "chat_template.jinja"
    if beside.is_file() and written is not None and beside.read_text(encoding="utf-8") != written:
        failures.append("chat_template.jinja and the template in tokenizer_config.json differ")
    stops = loading.stop_ids(folder, loading.load_config(folder))
    if lacking := sorted(source.renderer.stops - set(stops)):
        failures.append(f"generation_config.json does not name {lacking} among the tokens that end an answer")
    return failures


def _ropes(model: Any, folder: Path) -> tuple[list[str], list[str]]:
    """(failures, notes): the rotary frequencies that TGI makes of config.json against those that transformers computes with."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    computed = [module.inv_freq for module in model.modules() if isinstance(getattr(module, "inv_freq", None), torch.Tensor)]
    if not computed:
        return [], ["there are no rotary frequencies to compare" if "rope_theta" in config else "the model has no rotary positions"]
    if kind == "linear":
        return [LINEAR], []
    if kind not in ("default", "llama3"):
        return [], [f"rope scaling {kind}: TGI's own code for it was not compared"]
    theirs = read_by_tgi(config, 2 * computed[0].numel(), scaling if kind == "llama3" else None)
    apart = float((theirs / computed[0].cpu().float() - 1).abs().max())
    return ([f"TGI's rotary frequencies differ from transformers' by up to {apart:.1%}"] if not apart < 1e-5 else []), []


def read_by_tgi(config: dict[str, Any], size: int, scaling: dict[str, Any] | None) -> torch.Tensor:
    """[size / 2] inverse frequencies as transformers 4's names in config.json give them; 10,000 is the base where none is named."""
    base = float(config.get("rope_theta", 10000.0))
    plain = 1.0 / base ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    if scaling is None:
        return plain
    original, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wave = 2 * math.pi / plain
    smooth = ((original / wave - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * plain / factor + smooth * plain


def _adapter(folder: Path) -> list[str]:
    """TGI's reader of LoRAs: one alpha over one rank, no padding, every block, and no tensor that it passes over in silence."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    failures = []
    if config["rank_pattern"] or config["alpha_pattern"] or config["use_rslora"]:
        failures.append(f"{folder.name}: several ranks or alphas, of which TGI reads one")
    if config["r"] not in RANKS:
        failures.append(f"{folder.name}: rank {config['r']} would be padded, and its alpha be divided by the padded rank")
    if outside := sorted({name.rpartition(".")[2] for name in config["target_modules"]} - set(served.PROJECTIONS)):
        failures.append(f"{folder.name}: TGI has no place for {', '.join(outside)}")
    return failures
