"""What LLaMA-Factory and ms-swift hand on to the Trainer of `transformers`: its arguments under their own names.

Readers that Axolotl shares take the name of the key.
"""

from tunesmith.data.sources import place
from tunesmith.imports.batch import Measured
from tunesmith.imports.translation import Translation

CARRIED = {
    "learning_rate": "train.learning_rate",
    "num_train_epochs": "train.epochs",
    "weight_decay": "train.weight_decay",
    "max_grad_norm": "train.clip",
    "seed": "train.seed",
    "output_dir": "out",
    "save_total_limit": "train.keep",
}
NEEDLESS = {
    "every step is in events.jsonl, and the curve in loss.png": "logging_steps logging_strategy logging_first_step logging_nan_inf_filter "
    "logging_dir log_on_each_node log_level log_level_replica plot_loss include_num_input_tokens_seen "
    "include_effective_tokens_per_second disable_tqdm skip_memory_metrics print_param_status",
    "a run folder that holds a run is never overwritten; `tunesmith resume DIR` goes on": "overwrite_output_dir",
    "a run is made by `tunesmith train`": "do_train",
    "tokenising is parallel and its result is kept by itself": "overwrite_cache preprocessing_num_workers preprocessing_batch_size "
    "tokenized_path dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
    "dataloader_multiprocessing_context dataloader_in_order remove_unused_columns data_shared_file_system train_sampling_strategy "
    "group_by_length length_column_name sortish_sampler label_names",
    "checkpoints hold whatever an exact resume needs": "save_only_model save_on_each_node save_safetensors ignore_data_skip "
    "restore_callback_states_from_checkpoint enable_jit_checkpoint",
    "the loss is a sum over tokens divided by their number over all micro-batches": "average_tokens_across_devices",
    "evaluation keeps sums, never logits": "prediction_loss_only eval_accumulation_steps eval_do_concat_batches "
    "eval_use_gather_object batch_eval_metrics per_device_eval_batch_size bf16_full_eval fp16_full_eval include_for_metrics",
    "memory is the loop's own matter": "torch_empty_cache_steps use_cache low_cpu_mem_usage use_reentrant_gc "
    "gradient_checkpointing_kwargs activation_checkpointing_kwargs",
    "the loop's loss and attention are its own, fast without these": "use_liger_kernel liger_kernel_config tf32",
    "the best weights by the evaluation loss are kept in adapter/best": "load_best_model_at_end metric_for_best_model greater_is_better",
}
LEFT = {
    "several devices and machines are not in this version yet": "deepspeed fsdp fsdp_config ddp_find_unused_parameters ddp_bucket_cap_mb "
    "ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout local_rank accelerator_config parallelism_config tp_size",
    "nothing is uploaded; the run folder is yours to push": "push_to_hub hub_token hub_private_repo hub_model_id hub_strategy "
    "hub_always_push hub_revision push_to_hub_model_id push_to_hub_organization push_to_hub_token",
    "trackers are not served; events.jsonl holds all they would show": "run_name project trackio_space_id trackio_bucket_id "
    "trackio_static_space_id",
    "AdamW's betas are 0.9 and 0.999, its epsilon 1e-8": "adam_beta1 adam_beta2 adam_epsilon optim_args",
    "no setting here": "optim_target_modules lr_scheduler_kwargs label_smoothing_factor neftune_noise_alpha data_seed "
    "dataloader_drop_last full_determinism debug auto_find_batch_size torch_compile_backend torch_compile_mode eval_delay eval_on_start "
    "use_mps_device half_precision_backend fp16_opt_level fp16_backend past_index jit_mode_eval use_ipex split_batches "
    "include_inputs_for_metrics include_tokens_per_second",
    "`tunesmith evaluate DIR` scores answers after training": "do_predict predict_with_generate generation_max_length "
    "generation_num_beams generation_config eval_num_beams compute_accuracy do_eval",
}
# keys that the functions below read
READ = (
    "optim lr_scheduler_type warmup_ratio warmup_steps bf16 fp16 pure_bf16 max_steps save_steps save_strategy eval_steps "
    "eval_strategy evaluation_strategy report_to gradient_checkpointing activation_checkpointing torch_compile use_cpu no_cuda "
    "resume_from_checkpoint per_device_train_batch_size gradient_accumulation_steps"
)

OPTIMIZERS = {
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
ADAMW = ("adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_torch_xla")
SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant"}


def arguments(t: Translation, schedule_by_default: str = "linear", warmup_by_default: float = 0.0, rate_by_default: float = 5e-5) -> None:
    """All of them but batches, whose meaning hangs on the data. Defaults of the Trainer that ours differ from are written down."""
    steps(t)
    optimizer(t, "optim")
    schedule(t, "lr_scheduler_type", schedule_by_default)
    warmup(t, warmup_by_default)
    precision(t)
    saves(t)
    evaluations(t)
    trackers(t)
    recomputation(t)
    if "learning_rate" not in t.given:
        t.put("train.learning_rate", rate_by_default)
    if t.take("torch_compile"):
        t.put("train.compile", "auto", "torch_compile", said="compiling blocks is not in this version yet")
    if t.take("use_cpu") or t.take("no_cuda"):
        t.put("model.device", "cpu", "use_cpu" if "use_cpu" in t.given else "no_cuda")
    if t.has("resume_from_checkpoint"):
        t.drop("resume_from_checkpoint", "this file begins a run; `tunesmith resume DIR` goes on with one of ours")


def steps(t: Translation) -> None:
    found = t.number("max_steps")
    if found and found > 0:
        t.put("train.steps", int(found), "max_steps")


def optimizer(t: Translation, key: str) -> None:
    name = t.word(key)
    paged = "the paged form has 8-bit states here; train.optimizer=adamw has 32-bit ones"
    if name is None:
        return
    if name in OPTIMIZERS:
        t.put("train.optimizer", OPTIMIZERS[name], key)
    elif name in ADAMW:
        t.put("train.optimizer", "adamw", key)
    elif str(name) in ("paged_adamw", "paged_adamw_32bit"):
        t.put("train.optimizer", "paged_adamw_8bit", key, said=paged)
    else:
        t.put("train.optimizer", "adamw", key, said=f"{name} is not here; AdamW may want another learning rate")


def schedule(t: Translation, key: str, default: str) -> None:
    name = t.word(key)
    if name is None:
        t.put("train.schedule", default)
    elif name in SCHEDULES:
        t.put("train.schedule", SCHEDULES[name], key)
    else:
        near = "constant" if name in ("inverse_sqrt", "reduce_lr_on_plateau", "warmup_stable_decay") else "cosine"
        t.put("train.schedule", near, key, said=f"{name} is not here; {near} is nearest")


def warmup(t: Translation, default: float) -> None:
    """A share of the steps. A number of steps needs the number of all steps."""
    ratio, number = t.number("warmup_ratio"), t.number("warmup_steps")
    if number and number < 1:  # the Trainer's newer way to write a share
        ratio, number = number, None
        t.put("train.warmup", ratio, "warmup_steps")
    elif number:
        whole = t.number("max_steps")
        if whole and whole > number:
            said = f"a share of the steps: {number} of {whole}"
            t.put("train.warmup", round(number / whole, 6), "warmup_steps", "max_steps", said=said)
        else:
            t.put("train.warmup", 0.05, "warmup_steps", said=f"warm-up is a share of the steps here; write {number} over the run's steps")
    elif ratio is not None:
        t.put("train.warmup", ratio, "warmup_ratio")
    else:
        t.put("train.warmup", default, *[key for key in ("warmup_steps",) if key in t.given])


def precision(t: Translation) -> None:
    for key, dtype in (("bf16", "bfloat16"), ("pure_bf16", "bfloat16"), ("fp16", "float16")):
        value = t.take(key)
        if value is True or value == "full":
            t.put("model.dtype", dtype, key)
            return
    if t.given.get("bf16") == "auto":
        t.put("model.dtype", "auto", "bf16")


def saves(t: Translation) -> None:
    every, strategy = t.number("save_steps"), t.word("save_strategy")
    if strategy not in (None, "steps"):
        said = {"no": "checkpoints are always kept here, so that a kill loses little", "best": "the best weights are always kept, in best/"}
        often = "checkpoints come by default ten times in a run (train.checkpoint_every)"
        (t.drop if strategy == "epoch" else t.skip)("save_strategy", said.get(strategy, often))
    elif every and every >= 1:
        t.put("train.checkpoint_every", int(every), "save_steps")
        return
    if every:
        t.drop("save_steps", "checkpoints come by default ten times in a run (train.checkpoint_every)")


def evaluations(t: Translation) -> None:
    every = t.number("eval_steps")
    strategy = t.word("eval_strategy") or t.word("evaluation_strategy")
    key = "eval_strategy" if "eval_strategy" in t.given else "evaluation_strategy"
    if every and every >= 1 and strategy in (None, "steps"):
        t.put("evaluate.every", int(every), "eval_steps")
    elif every:
        t.drop("eval_steps", "evaluation comes by default ten times in a run (evaluate.every)")
    if strategy == "epoch":
        t.drop(key, "evaluation comes every evaluate.every steps, by default ten times in a run")
    elif strategy:
        t.skip(key, "the evaluation loss is measured wherever data.evaluate is given")


def held_out(t: Translation, key: str, seen: Measured | str) -> None:
    """Rows kept for evaluation: a share stays one; a number needs the number of all rows."""
    size = t.number(key)
    if not size:
        return
    rows = sum(count for count in seen.rows if count) if isinstance(seen, Measured) and None not in seen.rows else 0
    if size < 1:
        t.put("data.evaluate", float(size), key)
    elif rows > size:
        t.put("data.evaluate", round(size / rows, 6), key, said=f"a share of the rows here: {size:g} of {rows}")
    else:
        t.put("data.evaluate", 0.05, key, said=f"a share of the rows here, not their number: write {size:g} over their number")


def bad_rows(t: Translation, seen: Measured | str) -> None:
    """The other programs leave out rows that they cannot use, with a line in their log or without one; here a run stops at them."""
    if isinstance(seen, Measured) and seen.bad:
        first = seen.bad[0]
        count = f"{len(seen.bad)} rows cannot be used, such as {place(first)}"
        said = f"{count}. {t.tool} goes on without such rows; error would stop at them"
        t.put("data.on_bad_row", "skip", said=said)


def trackers(t: Translation) -> None:
    wanted = t.take("report_to", "none" if "report_to" in t.given else None)
    for name in wanted if isinstance(wanted, list) else [wanted] if wanted else []:
        if name in ("tensorboard", "all"):
            t.put("train.tensorboard", True, "report_to", said="needs the package tensorboard; other trackers are not served")
        elif name != "none":
            t.drop("report_to", "trackers are not served; events.jsonl holds all they would show (TensorBoard: train.tensorboard=true)")
        else:
            t.skip("report_to", "nothing is reported to anyone")


def recomputation(t: Translation) -> None:
    disabled = t.take("disable_gradient_checkpointing")
    if disabled is not None:
        t.put("train.recompute", "none" if disabled else "auto", "disable_gradient_checkpointing")
    for key in ("gradient_checkpointing", "activation_checkpointing"):
        if t.take(key):
            t.put("train.recompute", "blocks", key)
