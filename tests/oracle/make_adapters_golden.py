"""What AdapterHub's `adapters` library makes of bottleneck adapters: folders as it saves them, logits, gradients.

It needs a `transformers` of its own, so this file runs in an environment of its own (`make verify-adapters`) and what it finds is
committed under `golden/adapters/`. The tests import from here how the models are made, and nothing of the library.

    python make_adapters_golden.py make FOLDER     write the golden folders, one a case
    python make_adapters_golden.py load FOLDER     load adapter folders that Tunesmith wrote, and compare with the logits beside them
"""

import json
import os
import sys
import zlib
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

EXPECTED = "expected.safetensors"  # logits, base (the logits without adapter), and a gradient under each tensor's name in the folder
NAME = "tunesmith"  # what the adapter is called in the folders
VOCABULARY, CHANNELS = 64, 32
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": CHANNELS, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_HEADS: dict[str, Any] = {**_SHAPE, "head_dim": 8}
_GPT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": CHANNELS,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_QUIET: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**_HEADS),
    "mistral": lambda: transformers.MistralConfig(**_HEADS),
    "qwen3": lambda: transformers.Qwen3Config(**_HEADS),
    "gemma3_text": lambda: transformers.Gemma3TextConfig(**_HEADS, query_pre_attn_scalar=8),
    "phi": lambda: transformers.PhiConfig(**_SHAPE),
    "gpt2": lambda: transformers.GPT2Config(**_GPT, **_QUIET),
    "gptj": lambda: transformers.GPTJConfig(**_GPT, **_QUIET, rotary_dim=4),
}
# variant -> (class of the library's configuration, what it is told)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "houlsby": ("DoubleSeqBnConfig", {"reduction_factor": 8}),
    "pfeiffer": ("SeqBnConfig", {"reduction_factor": 8}),
    "parallel": ("ParBnConfig", {"reduction_factor": 4}),
    # widths by layer, a layer left out, another activation, a factor
    "mixed": ("DoubleSeqBnConfig", {"reduction_factor": {"0": 5, "default": 10}, "non_linearity": "gelu", "scaling": 0.5}),
    "some": ("SeqBnConfig", {"reduction_factor": 8, "leave_out": [0], "non_linearity": "gelu_new"}),
}
CASES = [(family, variant) for family in CONFIGS for variant in ("houlsby", "pfeiffer", "parallel")]
CASES.remove(("phi", "parallel"))  # the library cannot compute it
CASES += [("llama", "mixed"), ("llama", "some")]
IDS_BT = torch.arange(18).mul(7).remainder(VOCABULARY - 3).add(3).view(2, 9)


@torch.no_grad()
def fill(name: str, parameter: torch.Tensor) -> None:
    """Values by name and shape, the same with every release of torch and transformers."""
    noise = torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(parameter.shape)).astype(np.float32))
    parameter.copy_(noise * parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else parameter + 0.1 * noise)


def made(family: str) -> Any:
    """The tiny model of a family, in fp32."""
    config = CONFIGS[family]()
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    for name, parameter in model.named_parameters():
        fill(name, parameter)
    model.tie_weights()
    return model.requires_grad_(False)


def loss_of(logits_BTV: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits_BTV[:, :-1].reshape(-1, VOCABULARY), IDS_BT[:, 1:].reshape(-1), reduction="sum")


def make(folder: Path) -> None:
    import adapters

    for family, variant in CASES:
        target = folder / f"{family}-{variant}"
        model = made(family)
        base = model(IDS_BT).logits
        adapters.init(model)
        kind, told = VARIANTS[variant]
        model.add_adapter(NAME, config=getattr(adapters, kind)(**told))
        model.train_adapter(NAME)
        model.eval()
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        for name, parameter in named.items():
            fill(name, parameter)
        model.save_adapter(str(target), NAME, use_safetensors=True, with_head=False)
        logits = model(IDS_BT).logits
        loss_of(logits).backward()
        expected = {"logits": logits.detach(), "base": base, **{name: p.grad for name, p in named.items() if p.grad is not None}}
        save_file(expected, target / EXPECTED)
        print(target.name, len(named), "tensors")


def load(folder: Path) -> None:
    import adapters

    wrong = []
    for target in sorted(folder.iterdir()):
        family = target.name.partition("-")[0]
        model = made(family)
        adapters.init(model)
        expected = load_file(target / EXPECTED)
        config = json.loads((target / "adapter_config.json").read_text())["config"]
        try:
            told: dict[str, Any] = {}
            name = model.load_adapter(str(target), use_safetensors=True, set_active=True, loading_info=told)
        except KeyError:  # an architecture that it does not know: meant for Tunesmith alone
            found = f"refused, {config['architecture']}"
            if config["architecture"] != "tunesmith":
                wrong.append(target.name)
        else:
            model.eval()
            with torch.no_grad():
                difference = ((model(IDS_BT).logits - expected["logits"]).abs().max() / expected["logits"].abs().max()).item()
            found = f"{difference:.1e}"
            if difference > 1e-5 or told["missing_keys"] or told["unexpected_keys"] or name != NAME:
                wrong.append(target.name)
        print(target.name, found)
    if wrong:
        sys.exit(f"not the same: {', '.join(wrong)}")


if __name__ == "__main__":
    {"make": make, "load": load}[sys.argv[1]](Path(sys.argv[2]))
