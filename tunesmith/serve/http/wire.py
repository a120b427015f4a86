"""The bodies of requests, read once: unknown fields are left alone as OpenAI's server does, fields that would change the answer and are
not served here are refused by name, and so is every value out of range."""

import re
import secrets
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError, from_json

from tunesmith.serve.ask import Constraint
from tunesmith.serve.http.errors import bad

MOST_MESSAGES, MOST_CHOICES, MOST_STOPS, MOST_TOP = 4096, 128, 4, 20
SEEDS = 2**63  # exclusive, on both sides

# Field -> values beside null that change nothing. Any other value would change the answer, and is not served.
REFUSED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "web_search_options": (),
    "best_of": (1,),
    "suffix": ("",),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "early_stopping": (False,),
    "prompt_embeds": (),
    "prompt_logprobs": (0,),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "chat_template": (),
    "documents": ([],),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "logits_processors": ([],),
    "truncate_prompt_tokens": (),
    "skip_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "lora_adapter": (),
}
INSTEAD = {
    "functions": "send `tools`",
    "function_call": "send `tool_choice`",
    "best_of": "send `n`",
    "chat_template": "the model is fed by the template that it was trained with",
}


class Outline(BaseModel):
    """vLLM's name for what an answer must be."""

    model_config = ConfigDict(strict=True)
    json_: Any = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: Any = None


class Schema(BaseModel):
    model_config = ConfigDict(strict=True)
    name: str = ""
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class Format(BaseModel):
    model_config = ConfigDict(strict=True)
    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> "Format":
        if self.type == "json_schema" and (self.json_schema is None or self.json_schema.schema_ is None):
            raise PydanticCustomError("format", "json_schema needs its name and schema")
        return self


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)
    include_usage: bool = False


def _plain_values(value: dict[str, Any]) -> dict[str, Any]:
    """A template writes them beside its own special tokens, so no text that could hold one gets in."""
    for name, each in value.items():
        short = isinstance(each, str) and len(each) <= 64 and re.fullmatch(r"[\w .-]*", each)
        if not (short or each is None or isinstance(each, bool | int | float)):
            raise PydanticCustomError("variable", "{name}: true, false, a number or a short text of letters and digits", {"name": name})
    return value


Id = Annotated[int, Field(ge=0)]
Variables = Annotated[dict[str, Any], AfterValidator(_plain_values)]  # what a client sets for the chat template


class Common(BaseModel):
    """What both ways of asking have."""

    model_config = ConfigDict(strict=True)
    model: Annotated[str, Field(min_length=1, max_length=256)]
    user: str | None = None  # whoever asks the client; a name that is split between versions answers each with one of them
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    seed: Annotated[int, Field(ge=-SEEDS, lt=SEEDS)] | None = None
    stop: str | list[str] = Field(default_factory=list)
    stop_token_ids: list[Id] = Field(default_factory=list)
    ignore_eos: bool = False
    min_tokens: Annotated[int, Field(ge=0)] = 0
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] = 1.0  # less, and logits are beyond what float32 holds
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict)
    response_format: Format | None = None
    structured_outputs: Outline | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, value: Any) -> list[str]:
        stops = [value] if isinstance(value, str) else value
        if len(stops) > MOST_STOPS or not all(stops):
            raise PydanticCustomError("stops", "a text, or up to {most} texts, none of them empty", {"most": MOST_STOPS})
        return stops

    @field_validator("logit_bias")
    @classmethod
    def _bias_by_id(cls, value: dict[str, float]) -> dict[str, float]:
        if not all(key.isascii() and key.isdigit() for key in value):
            raise PydanticCustomError("bias", "its keys are token ids")
        return value

    @property
    def stops(self) -> list[str]:
        assert isinstance(self.stop, list)
        return self.stop

    def sampling(self) -> dict[str, Any]:
        """The fields of an Ask that are the same whatever the prompt."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": max(self.top_k, 0),
            "min_p": self.min_p,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "repetition_penalty": self.repetition_penalty,
            "logit_bias": {int(key): value for key, value in self.logit_bias.items()},
            "min_tokens": self.min_tokens,
        }

    def first_seed(self) -> int:
        """Of the first choice; the next ones count up."""
        return secrets.randbelow(2**31) if self.seed is None else self.seed

    def constraint(self) -> Constraint | None:
        """What the answer must be. Raises Problem where two things are asked for."""
        found = [*_of_format(self.response_format), *_of_outline(self.structured_outputs)]
        guided = Outline(json=self.guided_json, regex=self.guided_regex, choice=self.guided_choice, grammar=self.guided_grammar)
        found += _of_outline(guided)
        if len(found) > 1:
            raise bad("an answer can be held to one thing only: response_format, structured_outputs or one of guided_*", "response_format")
        return found[0] if found else None


class ChatRequest(Common):
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    tools: list[dict[str, Any]] = Field(default_factory=list)
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    reasoning_effort: str | None = None
    chat_template_kwargs: Variables = Field(default_factory=dict)

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError("top", "top_logprobs needs logprobs: true")
        return self

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def wanted_logprobs(self) -> int:
        return (self.top_logprobs or 0) if self.logprobs else -1

    @property
    def variables(self) -> dict[str, Any]:
        effort = {"reasoning_effort": self.reasoning_effort} if self.reasoning_effort in ("minimal", "low", "medium", "high") else {}
        return {**effort, **self.chat_template_kwargs}


class CompletionRequest(Common):
    prompt: str | list[str] | list[Id] | list[list[Id]]
    max_tokens: Annotated[int, Field(ge=1)] = 16
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    echo: bool = False

    @field_validator("prompt")
    @classmethod
    def _not_empty(cls, value: Any, info: ValidationInfo) -> Any:
        if not value or (isinstance(value, list) and not all(each or each == 0 for each in value)):
            raise PydanticCustomError("prompt", "there is nothing in it")
        if isinstance(value, list) and isinstance(value[0], str | list) and len(value) * info.data.get("n", 1) > MOST_CHOICES:
            raise PydanticCustomError("prompt", "prompts times n: at most {most}", {"most": MOST_CHOICES})
        return value

    @property
    def wanted_logprobs(self) -> int:
        return -1 if self.logprobs is None else self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return self.prompt  # type: ignore[return-value]


def read(raw: bytes) -> dict[str, Any]:
    """A body's fields without those that are null. Raises Problem."""
    try:
        fields = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise bad(f"the body is no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise bad("the body is a JSON object")
    fields = {key: value for key, value in fields.items() if value is not None}
    for name, harmless in REFUSED.items():
        if name in fields and fields[name] not in harmless:
            instead = f"; {INSTEAD[name]}" if name in INSTEAD else ""
            raise bad(f"{name} is not served here{instead}", name, "unsupported_parameter")
    return fields


def _of_format(format: Format | None) -> list[Constraint]:
    if format is None or format.type == "text":
        return []
    schema = format.json_schema.schema_ if format.json_schema is not None else None
    return [Constraint("json", (schema if format.type == "json_schema" else None) or {})]


def _of_outline(outline: Outline | None) -> list[Constraint]:
    if outline is None:
        return []
    if outline.structural_tag is not None:
        raise bad("structural_tag is not served here", "structured_outputs", "unsupported_parameter")
    found = []
    if outline.json_ is not None:
        schema = outline.json_
        if isinstance(schema, str):
            try:
                schema = from_json(schema)
            except ValueError as error:
                raise bad(f"the schema is no JSON: {error}", "guided_json") from None
        if not isinstance(schema, dict):
            raise bad("a JSON schema is an object", "guided_json")
        found.append(Constraint("json", schema))
    if outline.json_object:
        found.append(Constraint("json", {}))
    if outline.regex is not None:
        found.append(Constraint("regex", outline.regex))
    if outline.choice is not None:
        found.append(Constraint("choice", outline.choice))
    if outline.grammar is not None:
        found.append(Constraint("lark", outline.grammar))
    return found
