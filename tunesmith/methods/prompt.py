"""Prompt tuning: P trained vectors stand in front of each document, the model stays as it is (Lester et al. 2021, arXiv:2104.08691).

    document      t1   t2   t3 ...                       ids of real tokens
    row           v1 ... vP   t1   t2   t3 ...           v: placeholders, ids beyond the vocabulary
                   │       │   │    │    │
                table [P, C]  the model's own embedding, frozen
                   └───────┴───┴────┴────┴──► first block

Real tokens stand at positions P, P+1, ... as they do in `peft`. The table is in the space of what the embedding gives (behind a
scale, where the class has one, and before a projection), and is cast to its dtype.

Cost: P·C parameters; each document is P tokens longer, in attention and in the cache too. Gradients go down to the first block,
but no gradient of a weight is made: 4N FLOP a token.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunesmith.methods.parts import in_front
from tunesmith.methods.settings import Prompt as Settings
from tunesmith.methods.tuning import Start, Tuning
from tunesmith.models import slots
from tunesmith.models.draws import stream

NF4 = True  # the base is only computed
LEARNING_RATES = {576: 0.011, 3072: 1e-3}  # by channels of the model
USUAL_SIZE = 0.02  # root mean square of the embeddings of most models as they are first drawn
COMMON_TOKENS = 5000  # first values come from so many ordinary tokens: the lowest ids are the most frequent pieces of text
_SAMPLE = 4096  # embeddings that are measured


class VirtualTokens(nn.Module):
    """Stands at the token embedding. Owns the table [P, C] in fp32."""

    def __init__(self, tokens: int, width: int, device: Any = None):
        super().__init__()
        self.training = False
        self.virtual_tokens = tokens
        self.table = nn.Parameter(torch.zeros(tokens, width, dtype=torch.float32, device=device))

    @property
    def says(self) -> dict[str, Any]:
        """What an adapter folder says of how the table was made: RANDOM asks its reader for neither text nor tokenizer."""
        return {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "RANDOM"}

    def table_PC(self) -> Tensor:
        """[P, C] in fp32."""
        return self.table

    def forward(self, layer: nn.Module, ids: Tensor) -> Tensor:
        """[...] ids to [..., C] in the embedding's dtype."""
        return embed(layer, ids, self.table_PC)

    def changed(self, layer: nn.Module, ids: Tensor, y: Tensor) -> Tensor:
        """The same where the embedding's own output y is there already, of whatever tokens where the placeholders are."""
        return filled(layer, ids, y, self.table_PC)


def embed(layer: nn.Module, ids: Tensor, table_PC: Callable[[], Tensor]) -> Tensor:
    """What the embedding makes of ids [...], with rows of the table where they are placeholders: [..., C] in the layer's own dtype."""
    vocabulary = layer.weight.shape[0]  # type: ignore[union-attr, index]
    return filled(layer, ids, slots.own_forward(layer, ids.clamp(max=vocabulary - 1)), table_PC)  # type: ignore[operator]


def filled(layer: nn.Module, ids: Tensor, y: Tensor, table_PC: Callable[[], Tensor]) -> Tensor:
    """The embedding's output y [..., C] with rows of the table where the ids are placeholders."""
    vocabulary = layer.weight.shape[0]  # type: ignore[union-attr, index]
    at = (ids >= vocabulary).nonzero(as_tuple=True)  # type: ignore[operator]
    if at[0].numel() == 0:  # an answer's later tokens
        return y
    # cast behind the look-up, so that gradients of many documents are summed in fp32
    return y.index_put(at, F.embedding(ids[at] - vocabulary, table_PC()).to(y.dtype))


def build(model: Any, settings: Settings, device: Any = None) -> Tuning:
    """The table, without values. Raises LookupError for models that it cannot stand in front of."""
    path, width = place_for(model, settings.tokens)
    return assembled(model, path, VirtualTokens(settings.tokens, width, device))


def assembled(model: Any, path: str, module: VirtualTokens) -> Tuning:
    """A table as a tuning, with steps of the size that this model's embeddings ask for."""
    adapter: dict[str, nn.Module] = {path: module}
    ratios = {f"{path}.table": size_of(model) / USUAL_SIZE}
    return Tuning(adapter, dict(slots.indexed(adapter)), ratios, layout="prompt", virtual_tokens=module.virtual_tokens)


@torch.no_grad()
def init(tuning: Tuning, start: Start, settings: Settings) -> None:
    """The embeddings of a text or of drawn tokens, or normal draws of their size. Raises UserError for a text without tokens."""
    [(path, module)] = tuning.adapter.items()
    table: Any = module.table
    embedding = start.model.get_input_embeddings()
    generator = stream(start.seed, f"{path}.table")
    if settings.init == "random":
        table.copy_(torch.randn(table.shape, generator=generator) * size_of(start.model))
        return
    if settings.init == "text" and start.tokenizer is not None:
        ids = in_front.text_ids(start, settings.text, len(table))
    else:
        ordinary = ordinary_ids(start.tokenizer, embedding.weight.shape[0])[:COMMON_TOKENS]
        order = torch.randperm(len(ordinary), generator=generator).tolist()
        ids = [ordinary[order[i % len(order)]] for i in range(len(table))]
    table.copy_(slots.own_forward(embedding, torch.tensor(ids, device=embedding.weight.device)))


def ordinary_ids(tokenizer: Any, rows: int) -> list[int]:
    """Ids of real tokens, without special ones and without the embedding's spare rows; every row where there is no tokenizer."""
    if tokenizer is None:
        return list(range(rows))
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    return [token for token in range(min(rows, len(tokenizer))) if token not in special] or list(range(rows))


def place_for(model: Any, tokens: int) -> tuple[str, int]:
    """Path and width of the token embedding. Raises LookupError for models that cannot have so many virtual tokens in front."""
    config, embedding = model.config.get_text_config(), model.get_input_embeddings()
    if getattr(config, "hidden_size_per_layer_input", None) and getattr(config, "vocab_size_per_layer_input", None):
        raise LookupError("this architecture looks each token up once more in every block, where virtual tokens have no row; take lora")
    in_front.check_room(model, tokens)
    path = next(path for path, module in model.named_modules() if module is embedding)
    return path, embedding.weight.shape[1]


@torch.no_grad()
def size_of(model: Any) -> float:
    """Root mean square of what the embedding gives for real tokens, to two digits; that of most models on the meta device.

    It differs widely (by √C alone where the class multiplies): a step that suits one model is far too large or small for another.
    """
    embedding = model.get_input_embeddings()
    rows, device = embedding.weight.shape[0], embedding.weight.device
    if device.type == "meta":
        return USUAL_SIZE
    ids = torch.arange(0, rows, max(1, rows // _SAMPLE), device=device)
    size = slots.own_forward(embedding, ids).float().square().mean().sqrt().item()
    return float(f"{size:.2g}") or USUAL_SIZE
