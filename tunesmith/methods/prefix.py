"""Prefix tuning: every layer's attention finds trained keys and values in front of each document (Li & Liang 2021,
arXiv:2101.00190, section 4; with an encoder or without, section 4.3).

    attention(q) = softmax(q·[P_k ; K]ᵀ / √E)·[P_v ; V]          P_k, P_v [heads, P, E] are trained, K and V are the document's

         layer l     │ P_k P_v │ k v of the document ...
                          ▲
      encoder none:  table_l [P, 2·heads·E]
      mlp:           S_l + W_l·tanh(M·e + b) + c_l       e [P, h] one for all layers; S_l what the model itself computes for a text
      lstm:          S_l + W_l·LSTM(e) + c_l

The keys stand as they are attended to: no rotary embedding is applied to them. Tokens of the document take the positions from P
on. Begun from a text's activations, the prefix is at first exactly that text in front of each document: the table holds them, or
S_l does (kept, not trained) while W_l and c_l are zero, so that an encoder learns what is to be added.

Cost: 2·P·heads·E parameters a layer without encoder; with one 2·heads·E·(h + 1) a layer and P·h + h² + h in common (lstm: 2·h for
h, and 8·h² + 8·h for each of its two directions in common). Attention reads P keys more for each token, nothing else changes.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import DynamicCache

from tunesmith.methods.parts import in_front
from tunesmith.methods.rates import Rates
from tunesmith.methods.settings import Prefix as Settings
from tunesmith.methods.settings import PTuningV2
from tunesmith.methods.tuning import Start, Tuning
from tunesmith.models import front, prefix_attention, slots
from tunesmith.models.attention_layers import attention_layers
from tunesmith.models.draws import stream
from tunesmith.models.head import decoder_of

NF4 = True  # trains over an NF4 base
LEARNING_RATES = {576: 0.00036, 3072: 7e-5}  # of an encoder, by channels of the model
TABLE_RATES = {576: 2.8e-2, 3072: 5e-3}  # of a table that is trained as it is
WIDEST = 512  # of an encoder unless a width is asked for: at the width of a 7B model it would have 270M parameters


class Source(nn.Module):
    """What all layers of an encoder share: a vector for each position, and a layer over them. [P, width]."""

    def __init__(self, kind: str, tokens: int, hidden: int, device: Any = None):
        super().__init__()
        self.width = hidden if kind == "mlp" else 2 * hidden
        self.embedding = nn.Parameter(torch.empty(tokens, hidden, device=device))
        self.layer: Any = (
            nn.Linear(hidden, hidden, device=device)
            if kind == "mlp"
            else nn.LSTM(hidden, hidden, batch_first=True, bidirectional=True, device=device)
        )
        self._last: Tensor | None = None

    def forward(self) -> Tensor:
        """[P, width]"""
        if isinstance(self.layer, nn.LSTM):
            with torch.backends.cudnn.flags(enabled=False):  # it sums in no fixed order: a resumed run would not repeat it
                states: Tensor = self.layer(self.embedding[None])[0][0]
            return states
        return torch.tanh(self.layer(self.embedding))

    def made(self, anew: bool) -> Tensor:
        """Computed once a forward: `anew` for its first layer; the others take that.

        Saved past the hooks of activation recomputation: a block that is computed again would otherwise save what it did not
        save the first time, or the other way round, as layers do not come in the same order again.
        """
        if anew or self._last is None or self._last.requires_grad != torch.is_grad_enabled():
            with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
                self._last = self()
        return self._last


class Prefix(nn.Module):
    """Keys and values in front of one layer's documents, in fp32. The first layer's owns the encoder's common part."""

    def __init__(
        self, layer: int, tokens: int, heads: int, size: int, source: Source | None = None, owner: bool = False, start: bool = False,
        device: Any = None,
    ):  # fmt: skip
        super().__init__()
        self.layer, self.prefix_tokens, self.heads, self.size, self.owner = layer, tokens, heads, size, owner
        width = 2 * heads * size
        object.__setattr__(self, "_source", source)  # lent: it is a part of the owner alone
        if owner:
            self.source = source
        self.start: Tensor | None  # what an encoder begins from and adds to
        self.register_buffer("start", torch.empty(tokens, width, device=device) if start else None)
        if source is None:
            self.table = nn.Parameter(torch.empty(tokens, width, device=device))
        else:
            self.weight = nn.Parameter(torch.empty(width, source.width, device=device))
            self.bias = nn.Parameter(torch.empty(width, device=device))

    def flat(self) -> Tensor:
        """[P, 2·K·E]: for each position its keys, then its values."""
        source: Source | None = vars(self)["_source"]
        if source is None:
            return self.table
        made = nn.functional.linear(source.made(self.owner), self.weight, self.bias)
        return made if self.start is None else made + self.start

    def keys_values(self) -> tuple[Tensor, Tensor]:
        """Two [K, P, E]."""
        keys, values = self.flat().view(self.prefix_tokens, 2, self.heads, self.size).permute(1, 2, 0, 3).unbind()
        return keys, values

    def attach(self, layer: nn.Module) -> None:
        """Let our attention find the prefix at this layer."""
        prefix_attention.attach(layer, self)

    def detach(self, layer: nn.Module) -> None:
        """Let it find none."""
        prefix_attention.detach(layer)


def learning_rates(settings: Settings | PTuningV2) -> Rates:
    """A table takes many times as large steps as the weights that make one."""
    return TABLE_RATES if settings.encoder == "none" else LEARNING_RATES


def build(model: Any, settings: Settings | PTuningV2, device: Any = None) -> Tuning:
    """One module a layer, at its attention, without values. Raises LookupError where a layer has no plain attention."""
    layers, config = attention_layers(model), model.config.get_text_config()
    in_front.check_room(model, settings.tokens)
    hidden = min(WIDEST, int(config.hidden_size)) if settings.hidden == "auto" else settings.hidden
    source = None if settings.encoder == "none" else Source(settings.encoder, settings.tokens, hidden, device)
    begun = source is not None and settings.init == "activations"
    adapter: dict[str, nn.Module] = {
        each.path: Prefix(each.index, settings.tokens, each.heads, each.size, source, source is not None and number == 0, begun, device)
        for number, each in enumerate(layers)
    }
    tuning = assembled(adapter, settings.tokens)
    tuning.about["method"] = settings.name
    if front.is_windowed(model):
        window = getattr(config, "sliding_window", None) or config.attention_chunk_size
        tuning.notes.append(
            f"layers with a window see the last {window} positions: the prefix is out of their sight from token "
            f"{max(0, window - settings.tokens) + 1} of a document on, there only the other layers attend to it"
        )
    return tuning


def assembled(adapter: dict[str, nn.Module], tokens: int) -> Tuning:
    """The modules as a tuning."""
    modules: dict[str, Any] = adapter
    fixed = {f"{path}.start": module.start for path, module in modules.items() if module.start is not None}
    return Tuning(adapter, dict(slots.indexed(adapter)), fixed=fixed, layout="prefix", prefix_tokens=tokens)


@torch.no_grad()
def init(tuning: Tuning, start: Start, settings: Settings | PTuningV2) -> None:
    """Random values as `peft` draws them, each name from its own stream; then what the model computes for the text.

    Raises UserError where the text has no tokens.
    """
    for name, parameter in tuning.parameters.items():
        numbers = stream(start.seed, name)
        values = torch.empty(parameter.shape)
        if name.endswith((".table", ".source.embedding")):
            values.normal_(generator=numbers)
        else:
            bound = _inputs(tuning, name) ** -0.5
            values.uniform_(-bound, bound, generator=numbers)
        parameter.copy_(values)
    if settings.init == "random":
        return
    modules: dict[str, Any] = tuning.adapter
    if start.tokenizer is None:  # nothing can be read: tokens drawn from the vocabulary
        rows = start.model.get_input_embeddings().weight.shape[0]
        ids_P = torch.randint(rows, (settings.tokens,), generator=torch.Generator().manual_seed(start.seed)).tolist()
    else:
        ids_P = in_front.text_ids(start, settings.text, settings.tokens)
    for module, values in zip(modules.values(), activations(start.model, ids_P, [m.layer for m in modules.values()]), strict=True):
        if module.start is None:
            module.table.copy_(values)
        else:
            module.start.copy_(values)
            module.weight.zero_()
            module.bias.zero_()


def _inputs(tuning: Tuning, name: str) -> int:
    """How many channels a linear layer's, or an LSTM's, weights add up over: its first values are of that size."""
    path, _, own = name.partition(".source.")
    modules: dict[str, Any] = tuning.adapter
    if own:
        return int(modules[path].source.embedding.shape[1])
    return int(modules[name.rpartition(".")[0]].weight.shape[1])


@torch.no_grad()
def activations(model: Any, ids_P: list[int], layers: list[int]) -> list[Tensor]:
    """What the model itself keeps for these tokens, at positions from 0 on: [P, 2·K·E] in fp32 for each layer asked for."""
    cache: Any = DynamicCache()  # not told of the model's windows: it keeps every position
    decoder_of(model)(input_ids=torch.tensor([ids_P], device=model.device), past_key_values=cache, use_cache=True)
    kept = [torch.stack([cache.layers[layer].keys[0], cache.layers[layer].values[0]]) for layer in layers]
    return [each_2KPE.float().permute(2, 0, 1, 3).flatten(1) for each_2KPE in kept]
