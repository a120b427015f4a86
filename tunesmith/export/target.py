"""The records of an export: what is handed over, how it answers while it is still ours, and what a target says it did.

A target's file has

    SEVERAL                                      whether several adapters of one base may stand in one folder
    QUANTIZE                                     the words that --quantize takes; empty where nothing is quantised
    SERVERS                                      which lines of `served.SERVERS` open its folder
    check(sources, options)                      UserError, with every reason, before any weight is read
    merges(sources, options)                     whether what it writes is one whole model (and not a base and adapters beside it)
    can_prove(options)                           UserError where the program that proves it is not on this machine
    write(sources, folder, options, tell)        fills an empty folder; facts for export.json
    prove(sources, truths, folder, options, tell)   opens the folder with the program that will serve it: a `Proof`

`sources` are of one base, in the order given, and one where SEVERAL is False; `truths` belong to them by place, and were computed
before anything was written. Nothing that a target keeps in memory of one model outlives its function: two models might not fit.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from tunesmith.export.whole import Whole
from tunesmith.methods.tuning import Tuning

Tell = Callable[[str], None]  # a sentence of progress, for stderr


@dataclass(frozen=True, slots=True)
class Source:
    """A run's result, an adapter folder or a model, described without its weights."""

    name: str  # what it is served as, if nothing else is said: the folder's own name
    given: str  # as the user wrote it; `tuned.open_tuned(given, model=model)` opens it
    model: str | None  # --model: the base of an adapter folder that does not name it
    base: Path  # safetensors folder: of the base, or of the whole model where there is no adapter
    base_name: str  # hub id or absolute path under which others find the base
    adapter: Path | None  # folder in peft's layout; None: `base` holds everything
    run: Path | None  # the run folder
    quantized: bool  # the adapter was trained over NF4 codes of the base
    tuning: Tuning  # shapes alone, on the meta device; empty without an adapter
    whole: Whole  # `source.whole.write(folder)` fills a folder with the whole model: merged where there is an adapter
    renderer: Any  # `data.rendering.render.Renderer` (`Labelled` where a task's head predicts), with the base's tokenizer

    @property
    def tokenizer(self) -> Any:
        return self.renderer.tokenizer


@dataclass(frozen=True, slots=True)
class Options:
    """What may be asked beside a target and a folder."""

    quantize: str | None = None  # a word of the target's QUANTIZE
    adapter_only: bool = False  # gguf: the LoRA as a file of its own, without its base
    keep_base: bool = False  # vllm, tgi: base and adapters side by side, nothing merged; so with several sources anyway
    vllm_python: str | None = None  # a Python that has vLLM; None: TUNESMITH_VLLM_PYTHON, then build/vllm


@dataclass(frozen=True, slots=True)
class Truth:
    """What the model says while it is ours, in fp32, on a few conversations. All lists go by conversation.

    Of a target that merges it is the merged model, folded in memory and rounded as its checkpoint will be; of one that does not, the
    base as it is (never NF4) with the adapter beside it.
    """

    conversations: tuple[list[dict[str, Any]], ...]  # messages, the last one a user's; () where there is no chat template
    prompts: tuple[list[int], ...]  # their token ids as trained: `Renderer.prompt_ids`
    logits: tuple[Tensor, ...]  # [T, V] fp32, on the CPU: of each prompt's tokens
    answers: tuple[list[int], ...]  # likeliest tokens that follow the prompt, at most ANSWER of them, a stop token left out
    margins: tuple[list[float], ...]  # of each answer token: its logit above the next one's; small ones are ties
    base_answers: tuple[list[int], ...] = ()  # as `answers`, of the base without its adapter; empty without an adapter
    from_trained: dict[str, Any] | None = None  # how far what is exported is from what was trained: a merge rounds, an NF4 base is left


ANSWER = 16  # tokens of a truth's answers


@dataclass(frozen=True, slots=True)
class Proof:
    """What the program that serves the folder made of it. No failures: it agreed."""

    opened_by: str  # "transformers 5.23.0", "llama.cpp b9000 (xllamacpp 0.2)"; "nothing" where a target cannot be started here
    figures: dict[str, Any]  # into export.json
    failures: tuple[str, ...] = ()  # sentences: what differs, by how much, and what to do
    notes: tuple[str, ...] = field(default=())  # sentences that the user should read (what was not started, ties that were passed over)
