"""torchtune on a job: its single-device recipe, compiled, packed, activations kept, on the shapes that it has.

Its recipes are no Trainer: each step's loss is taken from its metric logger; the order of its documents and when its weights were in
memory are not known.
"""

import runpy
import sys
import time
from pathlib import Path

from chats import written
from record import read_job, write

job = read_job()

from torchtune.training import metric_logging  # noqa: E402

SHAPES = {"llama-3.1-8b": ("llama3_1", "8B", "llama3_1_8b", "LLAMA3"), "llama-3.2-1b": ("llama3_2", "1B", "llama3_2_1b", "LLAMA3_2")}
model, full = Path(job["model"]), job["method"] == "full"
if model.name not in SHAPES:
    sys.exit(f"torchtune has no recipe for the shape {model.name}")
package, size, name, kind = SHAPES[model.name]
steps, began = [], time.time()
own = metric_logging.DiskLogger.log_dict


def log_dict(self, payload, step):
    if "loss" in payload:
        steps.append({"loss": float(payload["loss"]), "at": time.time(), "documents": None})
    return own(self, payload, step)


metric_logging.DiskLogger.log_dict = log_dict
recipe = f"{'full' if full else 'lora'}_finetune_single_device"
files = sorted(file.name for file in model.glob("*.safetensors"))
words = [
    "checkpointer._component_=torchtune.training.FullModelHFCheckpointer",
    f"checkpointer.checkpoint_dir={model}",
    f"checkpointer.checkpoint_files=[{','.join(files)}]",
    f"checkpointer.model_type={kind}",
    f"checkpointer.output_dir={job['out']}",
    "tokenizer._component_=torchtune.modules.transforms.tokenizers.HuggingFaceModelTokenizer",
    f"tokenizer.tokenizer_json_path={model / 'tokenizer.json'}",
    f"tokenizer.tokenizer_config_json_path={model / 'tokenizer_config.json'}",
    f"tokenizer.generation_config_path={model / 'generation_config.json'}",
    "~tokenizer.path",
    f"tokenizer.max_seq_len={job['row_tokens']}",
    "dataset._component_=torchtune.datasets.chat_dataset",
    "dataset.source=json",
    f"dataset.data_files={written(job['rows'])}",
    "dataset.split=train",
    "dataset.conversation_column=messages",
    "dataset.conversation_style=openai",
    "dataset.packed=True",
    "batch_size=1",
    f"gradient_accumulation_steps={1 if full else job['packed_per_step']}",
    "epochs=1",
    f"optimizer.lr={job['learning_rate']}",
    "metric_logger._component_=torchtune.training.metric_logging.DiskLogger",
    f"metric_logger.log_dir={job['out']}",
    "log_every_n_steps=1",
    "compile=True",
    f"enable_activation_checkpointing={full}",
    "dtype=bf16",
    "device=cuda",
    f"output_dir={job['out']}",
]
if full:
    words += ["optimizer_in_bwd=True"]
else:
    words += [
        f"model._component_=torchtune.models.{package}.lora_{name}",
        "model.lora_attn_modules=[q_proj,k_proj,v_proj,output_proj]",
        "model.apply_lora_to_mlp=True",
        f"model.lora_rank={job['rank']}",
        f"model.lora_alpha={job['alpha']}",
        "model.lora_dropout=0.0",
        "lr_scheduler.num_warmup_steps=0",
        "optimizer.weight_decay=0.0",
        "save_adapter_weights_only=True",
    ]
sys.argv = ["tune", "run", recipe, "--config", f"{package}/{size}_{'full' if full else 'lora'}_single_device", *words]
try:
    runpy.run_module("torchtune._cli.tune", run_name="__main__")
except SystemExit as end:
    if end.code:
        raise
write(job, loaded=None, began=began, steps=steps)
