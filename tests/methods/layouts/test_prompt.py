"""Folders of virtual tokens: what is written, what is read, what is refused, all at once. `oracle/test_peft_prompt.py` has peft judge."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_models import tiny
from tunesmith.errors import UserError
from tunesmith.methods import prompt
from tunesmith.methods.layouts import layout
from tunesmith.methods.settings import Prompt as Settings


def written(folder: Any, family: str = "llama", tokens: int = 4) -> Any:
    model = tiny(family)
    tuning = prompt.build(model, Settings(tokens=tokens))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in tuning.parameters.values():
            parameter.normal_()
    layout.write(folder, model, tuning, "some/base")
    return tuning


@pytest.fixture
def folder(tmp_path):
    written(tmp_path / "adapter")
    return tmp_path / "adapter"


def change(folder, **values):
    config = json.loads((folder / layout.CONFIG).read_text())
    (folder / layout.CONFIG).write_text(json.dumps(config | values))


def problems(call) -> list[str]:
    with pytest.raises(UserError) as caught:
        call()
    return list(caught.value.problems)


def test_what_is_written(folder):
    assert json.loads((folder / layout.CONFIG).read_text()) == {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "some/base",
        "inference_mode": True,
        "num_virtual_tokens": 4,
        "token_dim": 64,
        "num_transformer_submodules": 1,
        "num_attention_heads": 4,
        "num_layers": 2,
        "modules_to_save": None,
        "prompt_tuning_init": "RANDOM",
    }
    stored = load_file(folder / layout.WEIGHTS)
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in stored.items()} == {"prompt_embeddings": ((4, 64), torch.float32)}


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_round_trip(family, tmp_path):
    tuning = written(tmp_path, family)
    again = layout.fit(layout.read(tmp_path), tiny(family))
    assert list(again.parameters) == list(tuning.parameters) and (again.layout, again.virtual_tokens) == ("prompt", 4)
    assert all(torch.equal(again.parameters[name], parameter) for name, parameter in tuning.parameters.items())
    assert layout.settings(layout.read(tmp_path), tiny(family)) == {"name": "prompt", "tokens": 4}


def test_values_of_half_precision_are_read_as_fp32(folder):
    save_file({"prompt_embeddings": torch.ones(4, 64, dtype=torch.bfloat16)}, folder / layout.WEIGHTS)
    assert layout.read(folder).tensors["table"].dtype == torch.float32


def test_everything_that_does_not_fit_is_said_at_once(folder):
    change(folder, num_virtual_tokens=9, token_dim=8, num_transformer_submodules=2, modules_to_save=["lm_head"])
    found = load_file(folder / layout.WEIGHTS)
    save_file(found | {"prompt_encoder.mlp": torch.ones(3)}, folder / layout.WEIGHTS)
    config, weights = folder / layout.CONFIG, folder / layout.WEIGHTS
    assert sorted(problems(lambda: layout.read(folder))) == sorted(
        [
            f"{config}: modules_to_save=['lm_head'] is not served",
            f"{config}: num_transformer_submodules=2 is for a model of several parts (an encoder and a decoder)",
            f"{config}: num_virtual_tokens is 9, but prompt_embeddings is (4, 64)",
            f"{config}: token_dim is 8, but prompt_embeddings is (4, 64)",
            f"{weights}: tensor prompt_encoder.mlp (3,) is not part of virtual tokens",
        ]
    )


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({}, "no prompt_embeddings"),
        ({"prompt_embeddings": torch.ones(4)}, r"prompt_embeddings is \(4,\), not a table \[virtual tokens, channels\]"),
        ({"prompt_embeddings": torch.ones(0, 64)}, r"prompt_embeddings is \(0, 64\), not a table"),
    ],
)
def test_files_without_a_table(folder, tensors, sentence):
    save_file(tensors, folder / layout.WEIGHTS)
    with pytest.raises(UserError, match=sentence):
        layout.read(folder)


def test_another_base_is_named(folder):
    model = tiny("llama")
    model.resize_token_embeddings(40, mean_resizing=False)
    assert layout.fit(layout.read(folder), model).virtual_tokens == 4, "how many words the base has does not matter"
    model.set_input_embeddings(torch.nn.Embedding(96, 32))
    assert problems(lambda: layout.fit(layout.read(folder), model)) == [
        f"{folder} was made for another base model (some/base):",
        "  model.embed_tokens: virtual tokens of 64 channels, the embedding has 32",
    ]
    save_file({"prompt_embeddings": torch.ones(300, 64)}, folder / layout.WEIGHTS)
    change(folder, num_virtual_tokens=300)
    assert problems(lambda: layout.fit(layout.read(folder), tiny("gpt2")))[1:] == [
        "  300 positions in front leave no room: this model takes 256; lower method.tokens"
    ]


def test_a_run_that_goes_on_takes_steps_as_large_as_the_one_that_began(tmp_path):
    """The size of the embeddings decides, not where the table came from; Gemma's are large."""
    tuning = written(tmp_path / "adapter", "gemma3")
    again = layout.fit(layout.read(tmp_path / "adapter"), tiny("gemma3"))
    assert again.learning_rate_ratios == tuning.learning_rate_ratios and min(again.learning_rate_ratios.values()) > 10
