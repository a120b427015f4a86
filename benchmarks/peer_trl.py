"""TRL + PEFT on the rows that Tunesmith gets; run by peers.py inside TRL's own environment, not by hand.

    peer_trl.py MODEL_FOLDER rows.json pad|pack float32|bfloat16 THREADS lora|dora

Batches of 4 rows, 4 of them for a step; packed, rows of 1,024 tokens, 4 for a step. The last line of stdout is a JSON document.
"""

import json
import sys

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

folder, rows_file, layout, dtype, threads, method = sys.argv[1:]
torch.set_num_threads(int(threads))
with open(rows_file, encoding="utf-8") as file:
    rows = json.load(file)
conversations = [
    {
        "prompt": [{"role": "user", "content": row["instruction"] + ("\n" + row["input"] if row.get("input") else "")}],
        "completion": [{"role": "assistant", "content": row["output"]}],
    }
    for row in rows
]
packed = layout == "pack"
settings = SFTConfig(
    "trl-out",
    per_device_train_batch_size=1 if packed else 4,
    gradient_accumulation_steps=4,
    learning_rate=2e-4,
    num_train_epochs=1,
    max_length=1024,
    packing=packed,
    lr_scheduler_type="cosine",
    logging_steps=1,
    save_strategy="no",
    report_to="none",
    use_cpu=True,
    bf16=dtype == "bfloat16",
    gradient_checkpointing=False,
    dataloader_pin_memory=False,
)
trainer = SFTTrainer(
    AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)),
    args=settings,
    train_dataset=Dataset.from_list(conversations),
    peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", use_dora=method == "dora"),
    processing_class=AutoTokenizer.from_pretrained(folder),
)
result = trainer.train()
print(json.dumps({"loop_seconds": result.metrics["train_runtime"], "loss": result.metrics["train_loss"], "steps": result.global_step}))
