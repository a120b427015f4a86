"""transformers' Trainer and peft's LoRA with a task head on a classification job. default: every text padded to 128 tokens, as the
scripts of the P-tuning papers do. best: padded to the longest of its batch."""

import json

import torch
from record import read_job, watch

job = read_job()
watch(job)

from datasets import Dataset  # noqa: E402
from peft import LoraConfig, TaskType, get_peft_model  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

with open(job["rows"], encoding="utf-8") as file:
    rows = [json.loads(line) for line in file]
gpu, longest = job["device"] == "cuda", job["configuration"] == "best"
tokenizer = AutoTokenizer.from_pretrained(job["model"])
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
texts = [row["text"] for row in rows]
encoded = tokenizer(texts, truncation=True, max_length=128, padding=False if longest else "max_length")
encoded["labels"] = [job["labels"].index(row["label"]) for row in rows]
model = AutoModelForSequenceClassification.from_pretrained(job["model"], num_labels=len(job["labels"]), dtype=getattr(torch, job["dtype"]))
model.config.pad_token_id = tokenizer.pad_token_id
adapter = LoraConfig(r=job["rank"], lora_alpha=job["alpha"], target_modules="all-linear", task_type=TaskType.SEQ_CLS)
batch = min(32, job["rows_per_step"])
settings = TrainingArguments(
    job["out"],
    per_device_train_batch_size=batch,
    gradient_accumulation_steps=max(1, job["rows_per_step"] // batch),
    learning_rate=job["learning_rate"],
    num_train_epochs=1,
    lr_scheduler_type="cosine",
    train_sampling_strategy="sequential",
    logging_steps=1,
    save_strategy="no",
    report_to="none",
    use_cpu=not gpu,
    bf16=job["dtype"] == "bfloat16",
    dataloader_pin_memory=gpu,
)
Trainer(
    get_peft_model(model, adapter),
    args=settings,
    train_dataset=Dataset.from_dict(dict(encoded)),
    data_collator=DataCollatorWithPadding(tokenizer),
).train()
