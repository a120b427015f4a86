"""`safetensors`: a model folder that `transformers`, vLLM, SGLang and TGI open; with `--quantize nf4` its layers in 4 bits as
bitsandbytes keeps them."""

import gc
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from tunesmith.errors import UserError
from tunesmith.export import agreement, four_bits
from tunesmith.export.target import Options, Proof, Source, Tell, Truth
from tunesmith.methods.method import unmergeable
from tunesmith.models import load as loading
from tunesmith.models.load import quiet

SEVERAL = False
QUANTIZE: tuple[str, ...] = ("nf4",)
SERVERS = ("vllm", "tgi")
_CLASSES = {"": "AutoModelForCausalLM", "classify": "AutoModelForSequenceClassification", "tag": "AutoModelForTokenClassification"}


def check(sources: Sequence[Source], options: Options) -> None:
    """Raises UserError for what cannot become part of the base's matrices."""
    [source] = sources
    if misfit := unmergeable(source.tuning, source.given):
        raise UserError(f"{source.given}: {misfit}")
    if options.quantize == "nf4":
        four_bits.check(source.base)


def can_prove(options: Options) -> None:
    """transformers opens it, which is always here."""


def merges(sources: Sequence[Source], options: Options) -> bool:
    """Always."""
    return True


def write(sources: Sequence[Source], folder: Path, options: Options, tell: Tell) -> dict[str, Any]:
    """Weights, config, tokenizer, chat template; generation_config.json names every token that ends an answer."""
    [source] = sources
    tell("writing the model")
    facts = source.whole.write(folder)
    if options.quantize == "nf4":
        tell("quantising")
        facts |= four_bits.quantise(folder)
    return facts


def prove(sources: Sequence[Source], truths: Sequence[Truth], folder: Path, options: Options, tell: Tell) -> Proof:
    """`transformers` opens it without a missing tensor; logits, the prompts' tokens and what ends an answer are ours."""
    [source], [truth] = sources, truths
    version = transformers.__version__
    expected = truth.logits if options.quantize is None else _in_four_bits(source, truth)
    head = source.tuning.head
    tell(f"transformers {version} opens it")
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        auto = getattr(transformers, _CLASSES["" if head is None else head.task])
        model, info = auto.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        failures = [f"{kind.replace('_', ' ')}: {', '.join(map(str, sorted(info[kind])[:5]))}" for kind in info if _is_wrong(kind, info)]
        four_bits.compute_in_fp32(model)
        found = [_logits(model.eval(), ids) for ids in truth.prompts]
    stops = loading.stop_ids(folder, model.config)
    del model
    gc.collect()
    if head is not None and head.task == "classify":
        expected = tuple(logits[-1:] for logits in expected)
    figures, wrong = agreement.same_logits(expected, found)
    failures += wrong
    if options.quantize is not None and not wrong:
        figures["from_unquantised"] = agreement.same_logits(truth.logits, found, bound=float("inf"))[0]
    if head is None:
        failures += _talks(source, truth, folder, stops)
    return Proof(f"transformers {version}", figures, tuple(failures))


def _is_wrong(kind: str, info: dict[str, Any]) -> bool:
    return kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs") and bool(info[kind])


@torch.no_grad()
def _logits(model: Any, ids: list[int]) -> Tensor:
    """[T, V], or what a head gives: [T, labels], [1, labels]."""
    logits: Tensor = model(input_ids=torch.tensor([ids])).logits.float()
    return logits if logits.ndim == 2 else logits[0]


def _talks(source: Source, truth: Truth, folder: Path, stops: Sequence[int]) -> list[str]:
    """What a server does around the weights: the template's tokens, and where it stops."""
    failures = []
    if lacking := sorted(source.renderer.stops - set(stops)):
        failures.append(f"generation_config.json does not name {lacking} among the tokens that end an answer: a server would go on past it")
    if truth.conversations:
        tokenizer = loading.load_tokenizer(folder)
        asked = [list(tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)) for talk in truth.conversations]
        failures += agreement.same_ids(truth.prompts, asked, "its chat template")
    return failures


def _in_four_bits(source: Source, truth: Truth) -> tuple[Tensor, ...]:
    """Logits of the model as it was before anything was written, its layers rounded by our own NF4."""
    model = source.whole.in_memory()
    four_bits.round_in_memory(model, source.base)
    with torch.no_grad():
        found = tuple(model(input_ids=torch.tensor([ids])).logits[0].float() for ids in truth.prompts)
    del model
    gc.collect()
    return found
