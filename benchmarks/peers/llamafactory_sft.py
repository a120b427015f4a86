"""LLaMA-Factory on a job, through its own entry. default: padded batches of 4. best: neat packing, and on a GPU Liger's kernels and
flash attention where it is installed.

It trains in the number format that the model's config names. Its data set is the job's rows, in the order of the file.
"""

import importlib.util
from pathlib import Path

from record import read_job, watch

job = read_job()
watch(job)

from llamafactory.train.tuner import run_exp  # noqa: E402

packed, gpu = job["configuration"] == "best", job["device"] == "cuda"
rows, batch = Path(job["rows"]), min(4, job["rows_per_step"])
file = {
    "model_name_or_path": job["model"],
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "full" if job["method"] == "full" else "lora",
    "dataset": rows.stem,
    "dataset_dir": str(rows.parent),
    "template": job["template"],
    "cutoff_len": job["row_tokens"],
    "preprocessing_num_workers": 1,
    "dataloader_num_workers": 0,
    "disable_shuffling": True,
    "output_dir": job["out"],
    "logging_steps": 1,
    "save_strategy": "no",
    "plot_loss": False,
    "per_device_train_batch_size": 1 if packed else batch,
    "gradient_accumulation_steps": job["packed_per_step"] if packed else max(1, job["rows_per_step"] // batch),
    "learning_rate": job["learning_rate"],
    "num_train_epochs": 1.0,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0,
    "report_to": "none",
    "seed": 0,
    "bf16": job["dtype"] == "bfloat16",
}
if job["method"] != "full":
    file |= {"lora_rank": job["rank"], "lora_alpha": job["alpha"], "lora_target": "all", "use_dora": job["method"] == "dora"}
if job["quantize"]:
    file |= {"quantization_bit": 4, "quantization_method": "bnb", "double_quantization": True}
if job["template"] == "smollm2":  # its own ends with a full stop that the model's template has not
    file["default_system"] = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
if not (gpu and job["large"]):
    file["disable_gradient_checkpointing"] = True
if not gpu:
    file["use_cpu"] = True
if packed:
    file |= {"packing": True, "neat_packing": True}
    if gpu:
        file["enable_liger_kernel"] = True
        file["flash_attn"] = "fa2" if importlib.util.find_spec("flash_attn") else "sdpa"
run_exp(file)
