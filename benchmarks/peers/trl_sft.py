"""TRL + PEFT on a job. default: padded batches of 4, as its documentation begins. best: packed rows, best fit decreasing, and on a
GPU Liger's kernels.

Neither recomputes activations where they fit: TRL's own default would, and would be slower for it.
"""

import json

import torch
from record import read_job, watch

job = read_job()
watch(job)

from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

packed, gpu = job["configuration"] == "best", job["device"] == "cuda"


def conversation(row):
    front = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    question = row["instruction"] + ("\n" + row["input"] if row.get("input") else "")
    return {
        "prompt": [*front, {"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": row["output"]}],
    }


with open(job["rows"], encoding="utf-8") as file:
    rows = [conversation(row) for row in json.load(file)]
batch = min(4, job["rows_per_step"])
settings = SFTConfig(
    job["out"],
    per_device_train_batch_size=1 if packed else batch,
    gradient_accumulation_steps=job["packed_per_step"] if packed else max(1, job["rows_per_step"] // batch),
    learning_rate=job["learning_rate"],
    num_train_epochs=1,
    max_length=job["row_tokens"],
    packing=packed,
    lr_scheduler_type="cosine",
    warmup_steps=0,
    train_sampling_strategy="sequential",
    logging_steps=1,
    save_strategy="no",
    report_to="none",
    use_cpu=not gpu,
    bf16=job["dtype"] == "bfloat16",
    gradient_checkpointing=gpu and job["large"],
    use_liger_kernel=packed and gpu,
    dataloader_pin_memory=gpu,
)
more = {}
if job["quantize"]:
    more["quantization_config"] = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, job["dtype"]),
    )
adapter = None
if job["method"] != "full":
    from peft import LoraConfig

    adapter = LoraConfig(r=job["rank"], lora_alpha=job["alpha"], target_modules="all-linear", use_dora=job["method"] == "dora")
trainer = SFTTrainer(
    AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]), device_map="cuda" if gpu else None, **more),
    args=settings,
    train_dataset=Dataset.from_list(rows),
    peft_config=adapter,
    processing_class=AutoTokenizer.from_pretrained(job["model"]),
)
trainer.train()
