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
Targets = Literal["all"] | Annotated[list[Role] | list[str], Field(min_length=1, title="[role or ending of a path, ...]")]
Share = Annotated[float, Field(ge=0, lt=1, strict=True)]


class Settings(BaseModel):
    """A section of a run: unknown keys are errors, values do not change, the text under a field describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def idle(self) -> dict[str, str]:
        """Keys that were given and change nothing beside the other settings, each with the reason: they are refused, not passed over."""
        return {}


class Full(Settings):
    """Train every weight."""

    name: Literal["full"] = "full"
    """How the model is tuned: every weight is trained."""


class Freeze(Settings):
    """Train some blocks, freeze the rest."""

    name: Literal["freeze"] = "freeze"
    """How the model is tuned: some of its own blocks are trained, the rest is frozen."""
    layers: PositiveInt = 2
    """How many decoder blocks are trained."""
    end: Literal["last", "first"] = "last"
    """Which end of the model the trained blocks stand at; gradients stop at the first trained block."""
    pattern: str | None = None
    """A regular expression in place of `layers`: tensors whose whole name it matches are trained, such as `.*norm.*`."""
    embeddings: bool = False
    """Train the embeddings (and a head tied to them) too."""
    head: bool = False
    """Train the final norm and an untied head too."""

    def idle(self) -> dict[str, str]:
        beside = "method.pattern alone says what is trained"
        return _given(self, "layers", "end", because=beside) if self.pattern is not None else {}


class LoRA(Settings):
    """Low-rank updates beside frozen linear layers; over an NF4 base it is QLoRA."""

    name: Literal["lora"] = "lora"
    """How the model is tuned: low-rank updates beside frozen linear layers."""
    rank: PositiveInt = 8
    """Rank r of the update B·A."""
    alpha: PositiveFloat | Auto = "auto"
    """The update is scaled by alpha/rank (alpha/√rank with rslora); auto is 2·rank."""
    targets: Targets = "all"
    """Linear layers that are tuned: `all`, roles such as [q,v], or endings of module paths such as [q_proj,mlp.fc1]."""
    dropout: Share = 0.0
    """Dropout on the input of A while training."""
    rslora: bool = False
    """Scale by alpha/√rank (rank-stabilised LoRA, Kalajdzievski 2023)."""
    plus_ratio: PositiveFloat = 1.0
    """Learning rate of B over that of A (LoRA+, Hayou 2024: about 16); 1 is plain LoRA."""
    init: Literal["kaiming", "gaussian", "orthogonal", "loftq"] = "kaiming"
    """First values of A and B: kaiming and gaussian leave B zero; loftq (Li 2023) makes up for what NF4 rounds away."""
    loftq_iterations: PositiveInt = 1
    """With init=loftq: how often quantising and factoring alternate."""
    trainable_tokens: list[int | str] = []
    """Rows of the embedding (and of a tied head) that are trained too: token ids or tokens such as "<|im_start|>"."""
    modules_to_save: list[str] = []
    """Modules that are trained whole beside the updates and saved with them: lm_head, embed_tokens, endings of paths."""

    def idle(self) -> dict[str, str]:
        return {} if self.init == "loftq" else _given(self, "loftq_iterations", because=f"method.init={self.init} does not iterate")


class DoRA(Settings):
    """LoRA for the direction of each row, a trained length for its magnitude (Liu 2024); over NF4 it is QDoRA."""

    name: Literal["dora"] = "dora"
    """How the model is tuned: low-rank updates of each row's direction, and its length beside them."""
    rank: PositiveInt = 8
    """Rank r of the update B·A."""
    alpha: PositiveFloat | Auto = "auto"
    """The update is scaled by alpha/rank (alpha/√rank with rslora); auto is 2·rank."""
    targets: Targets = "all"
    """Linear layers that are tuned: `all`, roles such as [q,v], or endings of module paths such as [q_proj,mlp.fc1]."""
    dropout: Share = 0.0
    """Dropout on the input of A while training."""
    rslora: bool = False
    """Scale by alpha/√rank."""
    plus_ratio: PositiveFloat = 1.0
    """Learning rate of B over that of A; 1 is one rate for both."""
    trainable_tokens: list[int | str] = []
    """Rows of the embedding (and of a tied head) that are trained too: token ids or tokens such as "<|im_start|>"."""
    modules_to_save: list[str] = []
    """Modules that are trained whole beside the updates and saved with them: lm_head, embed_tokens, endings of paths."""


class PiSSA(Settings):
    """LoRA that begins with the leading singular vectors of each matrix (Meng 2024); over NF4 the rest is quantised (QPiSSA)."""

    name: Literal["pissa"] = "pissa"
    """How the model is tuned: the leading singular vectors of each matrix are trained, the rest is frozen."""
    rank: PositiveInt = 8
    """How many singular vectors are trained; the file for serving has twice this rank."""
    alpha: PositiveFloat | Auto = "auto"
    """The update is scaled by alpha/rank (alpha/√rank with rslora); auto is rank."""
    targets: Targets = "all"
    """Linear layers that are tuned: `all`, roles such as [q,v], or endings of module paths such as [q_proj,mlp.fc1]."""
    rslora: bool = False
    """Scale by alpha/√rank."""
    plus_ratio: PositiveFloat = 1.0
    """Learning rate of B over that of A; 1 is one rate for both."""
    niter: PositiveInt | Literal["exact"] = 4
    """Subspace iterations of the randomised SVD (Halko 2011), or exact for a full one."""
    trainable_tokens: list[int | str] = []
    """Rows of the embedding (and of a tied head) that are trained too: token ids or tokens such as "<|im_start|>"."""
    modules_to_save: list[str] = []
    """Modules that are trained whole beside the updates and saved with them: lm_head, embed_tokens, endings of paths."""


class Prompt(Settings):
    """Virtual tokens in front of each document (prompt tuning, Lester 2021)."""

    name: Literal["prompt"] = "prompt"
    """How the model is tuned: virtual tokens in front of each document."""
    tokens: PositiveInt = 20
    """How many virtual tokens."""
    init: Literal["text", "vocabulary", "random"] = "text"
    """First values: the embeddings of a text, of tokens drawn from the vocabulary, or random ones of their size."""
    text: str = ""
    """With init=text: what the virtual tokens begin as, repeated or cut to their number; empty names the task."""

    def idle(self) -> dict[str, str]:
        return {} if self.init == "text" else _given(self, "text", because=f"method.init={self.init} begins from no text")


class PTuning(Settings):
    """Virtual tokens made by a small encoder (P-tuning, Liu 2021); the encoder is left out of the file for serving."""

    name: Literal["ptuning"] = "ptuning"
    """How the model is tuned: virtual tokens in front of each document, made by an encoder."""
    tokens: PositiveInt = 20
    """How many virtual tokens."""
    encoder: Literal["mlp", "lstm"] = "mlp"
    """What makes the virtual tokens: three linear layers, or a bidirectional LSTM and two."""
    hidden: PositiveInt | Auto = "auto"
    """Width of the encoder; auto is the model's."""


class Prefix(Settings):
    """Keys and values in front of every layer's attention (prefix tuning, Li & Liang 2021)."""

    name: Literal["prefix"] = "prefix"
    """How the model is tuned: keys and values in front of every layer."""
    tokens: PositiveInt = 20
    """How many positions the prefix has."""
    encoder: Literal["none", "mlp", "lstm"] = "mlp"
    """What makes keys and values: a table, two linear layers, or an LSTM and one."""
    hidden: PositiveInt | Auto = "auto"
    """Width of the encoder; auto is the model's, at most 512."""
    init: Literal["activations", "random"] = "activations"
    """First values: what the model itself computes for a text, or random ones."""
    text: str = ""
    """With init=activations: the text, repeated or cut to the prefix's length; empty names the task."""

    def idle(self) -> dict[str, str]:
        found = _given(self, "text", because="method.init=random begins from no text") if self.init == "random" else {}
        return found | (
            _given(self, "hidden", because="method.encoder=none has no encoder that could be so wide") if self.encoder == "none" else {}
        )


class PTuningV2(Prefix):
    """Keys and values in front of every layer's attention, without encoder (P-tuning v2, Liu 2022)."""

    name: Literal["ptuning_v2"] = "ptuning_v2"  # type: ignore[assignment]
    """How the model is tuned: keys and values in front of every layer, usually with a task head."""
    encoder: Literal["none", "mlp", "lstm"] = "none"
    """What makes keys and values: a table, two linear layers, or an LSTM and one."""


class Adapter(Settings):
    """Small bottleneck layers between the model's own (Houlsby 2019, Pfeiffer 2020, He 2021)."""

    name: Literal["adapter"] = "adapter"
    """How the model is tuned: bottleneck layers between its own."""
    variant: Literal["pfeiffer", "houlsby", "parallel"] = "pfeiffer"
    """Where they stand: behind each MLP, behind attention and MLP, or beside the MLP."""
    reduction: PositiveFloat | Auto = "auto"
    """The bottleneck is this many times narrower than the model; auto is 16, and 2 for parallel, as AdapterHub has it."""
    width: PositiveInt | None = None
    """Channels of the bottleneck, in place of `reduction`."""
    activation: Literal["auto", "relu", "gelu", "gelu_new", "silu", "tanh"] = "auto"
    """Between the two layers; auto is relu (pfeiffer, parallel) or silu (houlsby), as AdapterHub has it."""
    scale: PositiveFloat | Auto = "auto"
    """What the update is multiplied by; auto is 1, and 4 for parallel."""
    dropout: Share = 0.0
    """Dropout on the update while training."""

    def idle(self) -> dict[str, str]:
        return _given(self, "reduction", because="method.width already says how wide the bottleneck is") if self.width is not None else {}


def _given(settings: Settings, *names: str, because: str) -> dict[str, str]:
    """Those of the settings that are not at their defaults."""
    fields = type(settings).model_fields
    return {name: because for name in names if getattr(settings, name) != fields[name].default}


MethodSettings = Annotated[
    Full | Freeze | LoRA | DoRA | PiSSA | Prompt | PTuning | Prefix | PTuningV2 | Adapter, Field(discriminator="name")
]

SETTINGS: dict[str, type[Settings]] = {
    "full": Full,
    "freeze": Freeze,
    "lora": LoRA,
    "dora": DoRA,
    "pissa": PiSSA,
    "prompt": Prompt,
    "ptuning": PTuning,
    "prefix": Prefix,
    "ptuning_v2": PTuningV2,
    "adapter": Adapter,
}
