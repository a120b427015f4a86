"""Unsloth on a job, as its notebooks do it. default: padded batches of 2. best: packed rows, and no recomputation where the model is
small. Its own gradient checkpointing stays on for large models, as it documents."""

import unsloth  # noqa: F401  before transformers, as it asks
from record import read_job, watch

job = read_job()
watch(job)

from chats import conversations  # noqa: E402
from datasets import Dataset  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402
from unsloth import FastLanguageModel  # noqa: E402
from unsloth.chat_templates import train_on_responses_only  # noqa: E402

ROLES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
packed = job["configuration"] == "best"
model, tokenizer = FastLanguageModel.from_pretrained(
    model_name=job["model"],
    max_seq_length=job["row_tokens"],
    dtype=None,
    load_in_4bit=job["quantize"],
    full_finetuning=job["method"] == "full",
)
if job["method"] != "full":
    model = FastLanguageModel.get_peft_model(
        model,
        r=job["rank"],
        lora_alpha=job["alpha"],
        lora_dropout=0,
        bias="none",
        target_modules=ROLES,
        use_gradient_checkpointing="unsloth" if job["large"] or not packed else False,
        random_state=0,
    )
texts = [tokenizer.apply_chat_template(each, tokenize=False) for each in conversations(job["rows"])]
batch = 1 if packed else min(2, job["rows_per_step"])
settings = SFTConfig(
    output_dir=job["out"],
    dataset_text_field="text",
    max_length=job["row_tokens"],
    packing=packed,
    per_device_train_batch_size=batch,
    gradient_accumulation_steps=job["packed_per_step"] if packed else max(1, job["rows_per_step"] // batch),
    learning_rate=job["learning_rate"],
    num_train_epochs=1,
    lr_scheduler_type="cosine",
    warmup_steps=0,
    logging_steps=1,
    save_strategy="no",
    report_to="none",
    seed=0,
)
trainer = SFTTrainer(model=model, processing_class=tokenizer, train_dataset=Dataset.from_dict({"text": texts}), args=settings)
train_on_responses_only(trainer, instruction_part="<|im_start|>user\n", response_part="<|im_start|>assistant\n").train()
