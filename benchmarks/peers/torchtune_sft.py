"""torchtune on a job: its own single-device recipe, compiled, packed, activations kept where they fit.

Its recipes are no Trainer: each step's loss is taken from its metric logger, and the rows come in their order, not shuffled. It has
llamas only, whose positions it scales for long texts as Llama 3.2 does: a small difference that the gate allows for.
"""

import json
import runpy
import sys
import time
from pathlib import Path

import yaml
from record import parted, read_job, write

job = read_job()

from torchtune.training import metric_logging  # noqa: E402
from torchtune_rows import Tokenizer, rows, shape  # noqa: E402

model, full, gpu = Path(job["model"]), job["method"] == "full", job["device"] == "cuda"
kind = json.loads((model / "config.json").read_text(encoding="utf-8"))["model_type"]
if kind != "llama":
    sys.exit(f"torchtune 0.6.1 has no builder for {kind} models")
packs = list(rows(Tokenizer(model, job["row_tokens"]), job["rows"]))
wanted = 1 if full else job["packed_per_step"]  # its optimizer in backward does not accumulate
accumulated = min((each for each in range(1, len(packs) + 1) if len(packs) % each == 0), key=lambda each: abs(each - wanted))
component = f"torchtune.models.llama3_2.{'' if full else 'lora_'}llama3_2"
adapter = {
    "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"],
    "apply_lora_to_mlp": True,
    "lora_rank": job["rank"],
    "lora_alpha": job["alpha"],
    "lora_dropout": 0.0,
    "use_dora": job["method"] == "dora",
    "quantize_base": job["quantize"],
}
file = {
    "output_dir": job["out"],
    "model": {"_component_": component} | shape(model) | ({} if full else adapter),
    "tokenizer": {"_component_": "torchtune_rows.Tokenizer", "folder": str(model), "max_seq_len": job["row_tokens"]},
    "checkpointer": {
        "_component_": "torchtune.training.FullModelHFCheckpointer",
        "checkpoint_dir": str(model),
        "checkpoint_files": sorted(each.name for each in model.glob("*.safetensors")),
        "recipe_checkpoint": None,
        "output_dir": job["out"],
        "model_type": "LLAMA3_2",
    },
    "resume_from_checkpoint": False,
    "save_adapter_weights_only": True,
    "dataset": {"_component_": "torchtune_rows.rows", "rows_file": job["rows"], "packed": True},
    "seed": 0,
    "shuffle": False,
    "batch_size": 1,
    "optimizer": {"_component_": "torch.optim.AdamW", "fused": True, "weight_decay": 0.0, "lr": job["learning_rate"]},
    "lr_scheduler": {"_component_": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup", "num_warmup_steps": 0},
    "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
    "epochs": 1,
    "max_steps_per_epoch": None,
    "gradient_accumulation_steps": accumulated,
    "clip_grad_norm": None if full else 1.0,
    "compile": gpu,
    "metric_logger": {"_component_": "torchtune.training.metric_logging.DiskLogger", "log_dir": job["out"] + "-logs"},
    "log_every_n_steps": 1,
    "log_peak_memory_stats": False,
    "device": job["device"],
    "dtype": {"float32": "fp32", "bfloat16": "bf16"}[job["dtype"]],
    "enable_activation_checkpointing": full,
    "enable_activation_offloading": False,
    "optimizer_in_bwd": full,
    "profiler": {"_component_": "torchtune.training.setup_torch_profiler", "enabled": False},
}
config = Path(job["out"] + ".yaml")
config.write_text(yaml.safe_dump(file), encoding="utf-8")

steps, began, own = [], time.time(), metric_logging.DiskLogger.log_dict


def log_dict(self, payload, step):
    if "loss" in payload:
        seen = [
            document
            for pack in packs[len(steps) * accumulated : (len(steps) + 1) * accumulated]
            for document in parted(pack["tokens"].tolist(), pack["labels"].tolist(), job["begin"])
        ]
        steps.append({"loss": float(payload["loss"]), "at": time.time(), "documents": seen})
    return own(self, payload, step)


metric_logging.DiskLogger.log_dict = log_dict
sys.argv = ["tune", "run", f"{'full' if full else 'lora'}_finetune_single_device", "--config", str(config)]
try:
    runpy.run_module("torchtune._cli.tune", run_name="__main__")
except SystemExit as end:
    if end.code:
        raise
write(job, loaded=None, began=began, steps=steps)
