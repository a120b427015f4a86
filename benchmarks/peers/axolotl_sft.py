"""Axolotl on a job, through its own command. default: padded batches of 2. best: what its optimisation page asks for: sample packing,
flash attention where it is installed, Liger's kernels with the fused cross entropy, and its own LoRA kernels."""

import importlib.util
from pathlib import Path

import yaml
from record import read_job, watch

job = read_job()
watch(job)

from chats import written  # noqa: E402

best = job["configuration"] == "best"
flash = importlib.util.find_spec("flash_attn") is not None
batch = 1 if best else min(2, job["rows_per_step"])
file = {
    "base_model": job["model"],
    "load_in_4bit": job["quantize"],
    "chat_template": "tokenizer_default",
    "datasets": [{"path": written(job["rows"]), "ds_type": "json", "type": "chat_template", "roles_to_train": ["assistant"]}],
    "shuffle_merged_datasets": False,
    "dataset_prepared_path": job["out"] + "-prepared",
    "val_set_size": 0.0,
    "output_dir": job["out"],
    "sequence_len": job["row_tokens"],
    "sample_packing": best,
    "pad_to_sequence_len": best,
    "attn_implementation": "flash_attention_2" if flash else "sdpa",  # packed rows go through torch's own varlen attention then
    "micro_batch_size": batch,
    "gradient_accumulation_steps": job["packed_per_step"] if best else max(1, job["rows_per_step"] // batch),
    "num_epochs": 1,
    "optimizer": "adamw_torch_fused",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "lr_scheduler": "cosine",
    "learning_rate": job["learning_rate"],
    "warmup_steps": 0,
    "bf16": True,
    "gradient_checkpointing": job["large"],
    "logging_steps": 1,
    "save_strategy": "no",
    "seed": 0,
}
if job["method"] != "full":
    file |= {"adapter": "qlora" if job["quantize"] else "lora", "lora_r": job["rank"], "lora_alpha": job["alpha"]}
    file |= {"lora_dropout": 0.0, "lora_target_linear": True, "peft_use_dora": job["method"] == "dora"}
if best:
    file["plugins"] = ["axolotl.integrations.liger.LigerPlugin"]
    file |= {"liger_rope": True, "liger_rms_norm": True, "liger_glu_activation": True, "liger_fused_linear_cross_entropy": True}
    if job["method"] != "full":
        file |= {"lora_mlp_kernel": True, "lora_qkv_kernel": True, "lora_o_kernel": True}
config = Path(job["out"] + ".yaml")
config.write_text(yaml.safe_dump(file), encoding="utf-8")

from axolotl.cli.train import do_cli  # noqa: E402

do_cli(config=str(config))
