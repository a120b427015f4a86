"""The shelf of export targets. What a target's file has stands in `target.py`."""

from types import ModuleType

from tunesmith.export import gguf, ollama, peft, safetensors, tgi, vllm

TARGETS: dict[str, ModuleType] = {
    "peft": peft,
    "safetensors": safetensors,
    "gguf": gguf,
    "ollama": ollama,
    "vllm": vllm,
    "tgi": tgi,
}
