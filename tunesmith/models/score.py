"""A task's head: one linear layer on hidden states, named `score` as in the classes of `transformers`.

    logits [N, L] = h [N, C] · weight [L, C]ᵀ + bias [L]

It stands in place of the language model's own head: at a document's last token to classify it, at the last token of each word
to tag it. Weights, logits and losses are fp32 whatever the base is: L labels cost nothing beside a vocabulary.

Shapes: N positions, C channels, L labels.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING

from tunesmith.errors import UserError
from tunesmith.models.draws import stream
from tunesmith.models.head import decoder_of
from tunesmith.models.matrix import tensor_files

NAMES = ("score", "classifier")  # what classes of `transformers` call their head
DROPOUT: dict[str, float] = {"classify": 0.0, "tag": 0.1}  # on the hidden states while training, as those classes have it
# By channels of the model, whatever the method's own rate is: that of a table of keys and values would throw a matrix about.
LEARNING_RATES = {576: 1e-3, 3072: 2e-4}
SPREAD = 0.02  # of the first values where the model's config does not say
_CLASSES: dict[str, tuple[Any, Any, str]] = {
    "classify": (MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModelForSequenceClassification, "ForSequenceClassification"),
    "tag": (MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING, AutoModelForTokenClassification, "ForTokenClassification"),
}


class Score(nn.Module):
    """Scores of labels. `labels` are in the order of the rows of `weight`; only a tagger has a bias.

    `input` (text or chat) is how texts are fed to it: it stands here because what is saved has to know.
    """

    bias: nn.Parameter | None

    def __init__(self, task: str, labels: Sequence[str], width: int, *, input: str = "text", spread: float = SPREAD, device: Any = None):
        super().__init__()
        self.training = False  # as adapters: whoever trains turns dropout on
        self.task, self.labels, self.input = task, tuple(labels), input
        self.spread, self.dropout = spread, DROPOUT[task]
        self.class_weights_L: Tensor | None = None  # what each label's losses are multiplied by, where they are not alike
        self.weight = nn.Parameter(torch.empty(len(labels), width, dtype=torch.float32, device=device))
        self.bias = nn.Parameter(torch.zeros(len(labels), dtype=torch.float32, device=device)) if task == "tag" else None

    def forward(self, h_NC: Tensor) -> Tensor:
        """[N, C] hidden states of any dtype to [N, L] logits in fp32."""
        h_NC = F.dropout(h_NC.float(), self.dropout, self.training) if self.dropout else h_NC.float()
        return F.linear(h_NC, self.weight, self.bias)

    @torch.no_grad()
    def begin(self, seed: int) -> None:
        """First values, as `transformers` draws them: normal weights as wide as the model's own, no bias."""
        self.weight.copy_(torch.empty(self.weight.shape).normal_(std=self.spread, generator=stream(seed, "score.weight")))
        if self.bias is not None:
            self.bias.zero_()

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """What is trained of it, by the names that checkpoints use."""
        return {f"score.{name}": parameter for name, parameter in self.named_parameters()}

    @property
    def about(self) -> dict[str, Any]:
        """What `tunesmith.json` says of it."""
        return {"task": self.task, "labels": list(self.labels), "input": self.input}


def make(model: Any, task: str, labels: Sequence[str], device: Any = None, *, input: str = "text") -> Score:
    """A head for this model, without values. Raises UserError where nothing can be told apart, or the class shows no hidden states."""
    if len(labels) < 2:
        raise UserError(f"task.name={task}: there is nothing to tell apart, the data has {len(labels)} label(s): {', '.join(labels)}")
    if decoder_of(model) is model:
        raise UserError(
            f"task.name={task}: {type(model).__name__} does not show the hidden states below its own head; "
            "take task.name=generate (or task.head=words), which lets the model write the label"
        )
    spread = getattr(model.config.get_text_config(), "initializer_range", None) or SPREAD
    return Score(task, labels, model.get_output_embeddings().weight.shape[1], input=input, spread=spread, device=device)


def replaced(model: Any) -> set[str]:
    """Names of the tensors that compute nothing beside a task's head: those of the language model's head, where nothing else uses them."""
    shared = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    unused = {id(parameter) for parameter in model.get_output_embeddings().parameters()} - shared
    return {name for name, parameter in model.named_parameters() if id(parameter) in unused}


def balanced(counts_L: Sequence[int]) -> Tensor:
    """Weights [L] with which every label counts alike, however often it occurs: all / (L · occurrences); 0 where it never does."""
    counts = torch.tensor(list(counts_L), dtype=torch.float32)
    return torch.where(counts > 0, counts.sum() / (len(counts) * counts.clamp(min=1)), 0.0)


# --- the same model as a class of `transformers` ---


@dataclass(frozen=True, slots=True)
class Counterpart:
    """The class of `transformers` with a head for the task over the same decoder."""

    class_name: str
    head: str  # "score", or "classifier" in some taggers


def is_task_class(name: str) -> bool:
    return name.endswith(tuple(ending for _, _, ending in _CLASSES.values()))


def counterpart(config: PretrainedConfig, task: str) -> Counterpart | None:
    """The class that would compute the same from the same tensors, or None where the library has none."""
    try:
        return _counterpart(type(config), config.to_json_string(use_diff=True), task)  # type: ignore[arg-type]
    except Exception:  # an architecture may refuse to be built with another head for reasons of its own
        return None


@cache
def _counterpart(config_class: type, text: str, task: str) -> Counterpart | None:
    mapping, auto, _ = _CLASSES[task]
    config = config_class.from_dict(json.loads(text))  # type: ignore[attr-defined]
    if config_class not in mapping:
        return None
    config.num_labels = 2
    with torch.device("meta"):
        model = auto.from_config(config)
    found = [(name, part) for name in NAMES if isinstance(part := getattr(model, name, None), nn.Linear)]
    if len(found) != 1 or (found[0][1].bias is not None) != (task == "tag"):
        return None
    return Counterpart(type(model).__name__, found[0][0])


def config_of(config: dict[str, Any], head: Score, found: Counterpart | None) -> dict[str, Any]:
    """config.json of a whole model with this head: the labels, in their order, and the class that opens it."""
    labels = {
        "id2label": {str(at): label for at, label in enumerate(head.labels)},
        "label2id": {label: at for at, label in enumerate(head.labels)},
    }
    return config | labels | ({} if found is None else {"architectures": [found.class_name]})


def read(folder: Path, about: dict[str, Any] | None = None, device: Any = None) -> Score | None:
    """The head that a whole model's folder holds, or None. `about` is what our own note there says of it, where there is one.

    Without it the class in config.json says the task, and `id2label` the labels. Raises UserError for a head that is no linear layer.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = str((config.get("architectures") or [""])[0])
    numbered = {int(at): str(label) for at, label in config.get("id2label", {}).items()}
    said: dict[str, Any] = {"labels": [numbered[at] for at in sorted(numbered)]}
    said["task"] = next((task for task, (_, _, ending) in _CLASSES.items() if name.endswith(ending)), "")
    said |= about or {}
    if not said["task"]:
        return None
    tensors = {}
    for key, file in tensor_files(folder).items():
        head, _, part = key.rpartition(".")
        if head in NAMES:
            with safe_open(file, framework="pt") as content:
                tensors[part] = content.get_tensor(key)
    return fitted(said, tensors, str(folder), device)


@torch.no_grad()
def fitted(said: dict[str, Any], tensors: dict[str, Tensor], where: str, device: Any = None) -> Score:
    """A head with values. `said` is as `Score.about`; labels that are not as many as rows are numbered.

    `tensors` are "weight" [L, C] and, for a tagger, "bias" [L]. Raises UserError for what does not fit.
    """
    task, labels = said["task"], said["labels"]
    weight = tensors.get("weight")
    if weight is None or weight.ndim != 2:
        raise UserError(f"{where}: no matrix score.weight, so its head is not one linear layer, and is not served")
    count, width = weight.shape
    if len(labels) != count:
        labels = [f"LABEL_{at}" for at in range(count)]  # what `transformers` calls labels that have no names
    head = Score(task, labels, width, input=said.get("input", "text"), device=device)
    wanted = {name.removeprefix("score."): parameter for name, parameter in head.tensors.items()}
    if set(tensors) != set(wanted) or any(tensors[name].shape != parameter.shape for name, parameter in wanted.items()):
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise UserError(f"{where}: a head of {shapes} is not served for task.name={task}: {', '.join(wanted)} are needed")
    for name, parameter in wanted.items():
        parameter.copy_(tensors[name])
    return head
