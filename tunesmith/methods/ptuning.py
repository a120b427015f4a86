"""P-tuning: virtual tokens in front of each document, made by a small encoder (Liu et al. 2021, "GPT understands, too",
arXiv:2103.10385).

    table [P, C] ──► encoder (mlp | lstm) ──► v1 ... vP   t1   t2   t3 ...
      trained          trained                     in front of each document, as in prompt tuning

A step changes the encoder, and so all virtual tokens together: they move faster than a table by itself would. Encoder and table
are kept in checkpoints, so that a run is resumed exactly. The adapter folder holds what the encoder makes of the table, [P, C],
and nothing else, as `peft` has it: whoever goes on from there trains a plain table (`method.name: prompt`).

Cost, for an encoder of width H (auto: C): mlp P·C + 2·C·H + H² + 2·H + C parameters; lstm P·C + 10·C·H + 36·H² + 34·H + C.
None of them is there when the model answers. The rest is prompt tuning's.
"""

from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.methods.parts import encoders
from tunesmith.methods.prompt import embed, filled, place_for, size_of
from tunesmith.methods.settings import PTuning as Settings
from tunesmith.methods.tuning import Start, Tuning
from tunesmith.models import slots

NF4 = True  # the base is only computed
LEARNING_RATES = {576: 0.0021, 3072: 1e-4}  # by channels of the model


class EncodedTokens(nn.Module):
    """Stands at the token embedding. Owns the encoder with its table, in fp32."""

    def __init__(self, encoder: encoders.MLP | encoders.LSTM):
        super().__init__()
        self.encoder = encoder
        self.train(False)
        self.virtual_tokens = encoder.embedding.shape[0]

    @property
    def says(self) -> dict[str, Any]:
        """What an adapter folder says of how the table was made."""
        hidden: Any = self.encoder.mlp[-1].in_features
        return {
            "peft_type": "P_TUNING",
            "encoder_reparameterization_type": self.encoder.kind,
            "encoder_hidden_size": hidden // 2 if self.encoder.kind == "LSTM" else hidden,
            "encoder_num_layers": encoders.LAYERS,
            "encoder_dropout": 0.0,
        }

    def table_PC(self) -> Tensor:
        """[P, C] in fp32, as the encoder makes it now."""
        made_PC: Tensor = self.encoder()
        return made_PC

    def forward(self, layer: nn.Module, ids: Tensor) -> Tensor:
        """[...] ids to [..., C] in the embedding's dtype."""
        return embed(layer, ids, self.table_PC)

    def changed(self, layer: nn.Module, ids: Tensor, y: Tensor) -> Tensor:
        """The same where the embedding's own output y is there already, of whatever tokens where the placeholders are."""
        return filled(layer, ids, y, self.table_PC)


def build(model: Any, settings: Settings, device: Any = None) -> Tuning:
    """Encoder and table, without values. Raises LookupError for models that virtual tokens cannot stand in front of."""
    path, width = place_for(model, settings.tokens)
    hidden = width if settings.hidden == "auto" else settings.hidden
    encoder = encoders.build(settings.encoder, settings.tokens, width, hidden, device)
    adapter: dict[str, nn.Module] = {path: EncodedTokens(encoder)}
    # the last layer is as much larger than it would be drawn as the model's embeddings ask for: so are its steps
    ratio = size_of(model) / encoder.natural_size
    ratios = {f"{path}.encoder.{name}": ratio for name in encoders.last_layer(encoder)}
    return Tuning(adapter, dict(slots.indexed(adapter)), ratios, layout="prompt", virtual_tokens=settings.tokens)


@torch.no_grad()
def init(tuning: Tuning, start: Start, settings: Settings) -> None:
    """Values that make virtual tokens of the size of the model's own embeddings."""
    [(path, module)] = tuning.adapter.items()
    encoders.begin(module.encoder, start.seed, path, size_of(start.model))  # type: ignore[arg-type]
