"""Who is measured: one line a contender, each peer in its default configuration and in the best that it documents for the device.

A contender is a script below `peers/`, run inside its own environment on a job file. What a configuration means stands there.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Contender:
    title: str
    environment: str | None  # of environments.py; None is our own
    script: str  # below peers/
    configuration: str  # default or best
    settings: tuple[str, ...] = ()  # of ours alone: KEY=VALUE


CONTENDERS: dict[str, Contender] = {
    "tunesmith": Contender("Tunesmith", None, "ours.py", "default"),
    "tunesmith-unshared": Contender("Tunesmith, prefixes not shared", None, "ours.py", "default", ("data.share_prefixes=false",)),
    "tunesmith-16bit": Contender("Tunesmith, base in 16 bits", None, "ours.py", "default", ("model.quantize=null",)),
    "tunesmith-small": Contender("Tunesmith, smallest memory", None, "ours.py", "best", ("train.recompute=offload",)),
    "tunesmith-full": Contender("Tunesmith", None, "ours.py", "best", ("train.optimizer_in_backward=true", "train.recompute=offload")),
    "trl-default": Contender("TRL + PEFT, padded", "trl", "trl_sft.py", "default"),
    "trl-best": Contender("TRL + PEFT, packed", "trl", "trl_sft.py", "best"),
    "llamafactory-default": Contender("LLaMA-Factory, padded", "llamafactory", "llamafactory_sft.py", "default"),
    "llamafactory-best": Contender("LLaMA-Factory, neat packing", "llamafactory", "llamafactory_sft.py", "best"),
    "trainer-default": Contender("transformers + PEFT, padded to 128", "trl", "trainer_classify.py", "default"),
    "trainer-best": Contender("transformers + PEFT, padded to the longest", "trl", "trainer_classify.py", "best"),
    "axolotl-default": Contender("Axolotl, padded", "axolotl", "axolotl_sft.py", "default"),
    "axolotl-best": Contender("Axolotl, Liger, kernels, packed", "axolotl", "axolotl_sft.py", "best"),
    "unsloth-default": Contender("Unsloth, padded", "unsloth", "unsloth_sft.py", "default"),
    "unsloth-best": Contender("Unsloth, packed", "unsloth", "unsloth_sft.py", "best"),
    "torchtune-best": Contender("torchtune, compiled, packed", "torchtune", "torchtune_sft.py", "best"),
}
