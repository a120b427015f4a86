"""`peft`: the adapter folder, for `peft.PeftModel` and all that reads its layout; its base is named, not copied."""

import gc
import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from tunesmith.errors import UserError
from tunesmith.export import agreement
from tunesmith.export.target import Options, Proof, Source, Tell, Truth
from tunesmith.methods.layouts.adapter_file import ABOUT, CONFIG, WEIGHTS
from tunesmith.models.load import quiet

SEVERAL = False
QUANTIZE: tuple[str, ...] = ()
SERVERS = ("peft",)

_README = """# {name}

An adapter over `{base}`, in the layout of [peft](https://github.com/huggingface/peft).

```python
from peft import PeftModel
from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("{base}"{labels})
model = PeftModel.from_pretrained(model, "THIS FOLDER")
tokenizer = AutoTokenizer.from_pretrained("{base}")
```
"""
_CLASSES = {"": "AutoModelForCausalLM", "classify": "AutoModelForSequenceClassification", "tag": "AutoModelForTokenClassification"}


def check(sources: Sequence[Source], options: Options) -> None:
    """Raises UserError for what peft cannot open."""
    [source] = sources
    if source.adapter is None:
        raise UserError(f"{source.given} holds no adapter: its whole model is exported with --to safetensors")
    agreement.refuse(source, "peft", "peft", "as it is")


def can_prove(options: Options) -> None:
    """Raises UserError where peft is not on this machine."""
    _peft()


def merges(sources: Sequence[Source], options: Options) -> bool:
    """Never."""
    return False


def write(sources: Sequence[Source], folder: Path, options: Options, tell: Tell) -> dict[str, Any]:
    """Config, tensors, what only we read, and how to load it."""
    [source] = sources
    assert source.adapter is not None
    copy_adapter(source, folder, source.base_name)
    head = source.tuning.head
    labels = "" if head is None else f", num_labels={len(head.labels)}"
    text = _README.format(name=source.name, base=source.base_name, auto=_CLASSES["" if head is None else head.task], labels=labels)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return {"base": source.base_name, "trained_over": "nf4" if source.quantized else "the base's own weights"}


def copy_adapter(source: Source, folder: Path, base: str) -> None:
    """The adapter folder with another name for its base."""
    assert source.adapter is not None
    folder.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, ABOUT):
        if (source.adapter / name).is_file():
            shutil.copyfile(source.adapter / name, folder / name)
    config = json.loads((source.adapter / CONFIG).read_text(encoding="utf-8")) | {"base_model_name_or_path": base}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def prove(sources: Sequence[Source], truths: Sequence[Truth], folder: Path, options: Options, tell: Tell) -> Proof:
    """peft puts it over the base, in fp32; logits equal ours. Raises UserError where peft is not installed."""
    [source], [truth] = sources, truths
    version, PeftModel = _peft()
    tell(f"peft {version} opens it")
    head = source.tuning.head
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")  # of its optional parts, and of labels' weights that are still to be loaded
        auto = getattr(transformers, _CLASSES["" if head is None else head.task])
        labels = {} if head is None else {"num_labels": len(head.labels)}
        base = auto.from_pretrained(source.base, dtype=torch.float32, **labels)
        model = PeftModel.from_pretrained(base, folder).eval()
        found = [_logits(model, ids) for ids in truth.prompts]
    del base, model
    gc.collect()
    expected = [logits[-1:] if head is not None and head.task == "classify" else logits for logits in truth.logits]
    figures, failures = agreement.same_logits(expected, found)
    return Proof(f"peft {version}", figures, tuple(failures), _notes(source))


@torch.no_grad()
def _logits(model: Any, ids: list[int]) -> torch.Tensor:
    """[T, V], or what a head gives: [T, labels], [1, labels]; without those of virtual tokens."""
    logits: torch.Tensor = model(input_ids=torch.tensor([ids])).logits.float()
    return logits if logits.ndim == 2 else logits[0, -len(ids) :]


def _notes(source: Source) -> tuple[str, ...]:
    notes = []
    if Path(source.base_name).is_absolute():
        notes.append(f"its base is named by a path of this machine ({source.base_name}); elsewhere load the base first, as README.md shows")
    if source.quantized:
        notes.append("trained over NF4, proved over the base's own weights: the difference is in export.json")
    return tuple(notes)


def _peft() -> tuple[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import peft
    except ImportError:
        raise UserError("peft is not installed, so the export cannot be proved: pip install peft, or --no-verify") from None
    return peft.__version__, peft.PeftModel
