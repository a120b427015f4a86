"""What each method can be told. Importable without torch, so that help and schema answer at once.

One class a method, one line each in `SETTINGS`; the method's own file takes its class from here.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Role = Literal["q", "k", "v", "o", "gate", "up", "down"]
Auto = Literal["auto"]
# Strict: true is no number, and "8" in quotes is a text.
PositiveInt = Annotated[int, Field(ge=1, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, strict=True)]
Share = Annotated[float, Field(ge=0, lt=1, strict=True)]


class Settings(BaseModel):
    """A section of a run: unknown keys are errors, values do not change, the text under a field describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Full(Settings):
    """Train every weight."""

    name: Literal["full"] = "full"
    """How the model is tuned: every weight is trained."""


class Freeze(Settings):
    """Train the last blocks, freeze the rest."""

    name: Literal["freeze"] = "freeze"
    """How the model is tuned: the last blocks are trained, the rest is frozen."""
    layers: PositiveInt = 2
    """How many of the last decoder blocks are trained."""
    embeddings: bool = False
    """Train the embeddings (and a head tied to them) too."""
    head: bool = False
    """Train the final norm and an untied head too."""


class LoRA(Settings):
    """Low-rank updates beside frozen linear layers; over an NF4 base it is QLoRA."""

    name: Literal["lora"] = "lora"
    """How the model is tuned: low-rank updates beside frozen linear layers."""
    rank: PositiveInt = 8
    """Rank r of the update B·A."""
    alpha: PositiveFloat | Auto = "auto"
    """The update is scaled by alpha/rank (alpha/√rank with rslora); auto is 2·rank."""
    targets: Literal["all"] | Annotated[list[Role] | list[str], Field(min_length=1, title="[role or ending of a path, ...]")] = "all"
    """Linear layers that are tuned: `all`, roles such as [q,v], or endings of module paths such as [q_proj,mlp.fc1]."""
    dropout: Share = 0.0
    """Dropout on the input of A while training."""
    rslora: bool = False
    """Scale by alpha/√rank (rank-stabilised LoRA, Kalajdzievski 2023)."""
    plus_ratio: PositiveFloat = 1.0
    """Learning rate of B over that of A (LoRA+, Hayou 2024: about 16); 1 is plain LoRA."""


MethodSettings = Annotated[Full | Freeze | LoRA, Field(discriminator="name")]

SETTINGS: dict[str, type[Full] | type[Freeze] | type[LoRA]] = {
    "full": Full,
    "freeze": Freeze,
    "lora": LoRA,
}
