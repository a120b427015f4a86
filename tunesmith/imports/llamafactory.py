"""LLaMA-Factory's YAML or JSON (`llamafactory-cli train FILE`). Every key of its own dataclasses stands in a table or is read below."""

from typing import Any

from tunesmith.imports import trainer, updates
from tunesmith.imports.batch import Measured, tokens_per_step
from tunesmith.imports.translation import Translation, is_off, joined, names, plain

NAME = "LLaMA-Factory"
# keys that nobody else has
SIGNS = "model_name_or_path finetuning_type stage cutoff_len template dataset_dir lora_target val_size neat_packing lora_rank"

CARRIED = trainer.CARRIED | {
    "lora_dropout": "method.dropout",
    "lora_rank": "method.rank",
    "lora_alpha": "method.alpha",
    "loraplus_lr_ratio": "method.plus_ratio",
    "use_rslora": "method.rslora",
    "double_quantization": "model.double_quant",
}
THEIR_NEEDLESS = {
    "the model's own chat template is used, in training and in serving": "template tool_format",
    "files are read row by row": "streaming buffer_size",
    "a new adapter is made unless model.adapter is given": "create_new_adapter",
    "the loop's loss and attention are its own, fast without these": "flash_attn use_unsloth use_unsloth_gc enable_liger_kernel "
    "use_v1_kernels upcast_layernorm upcast_lmhead_output use_fast_tokenizer",
    "padding is never learned": "ignore_pad_token_for_loss",
    "no program of a model is ever run": "trust_remote_code",
    "a device map is not needed": "quantization_device_map use_kv_cache",
    "a PiSSA is always saved as a LoRA of the base as it was": "pissa_convert",
}
THEIR_LEFT = {
    "not a method of this version": "oft_rank oft_block_size oft_target module_dropout",
    "embeddings that are trained whole (method.modules_to_save) learn at the run's rate": "loraplus_lr_embedding",
    "optimizers of this kind are not here; AdamW is used": "use_galore galore_target galore_rank galore_update_interval galore_scale "
    "galore_proj_type galore_layerwise use_apollo apollo_target apollo_rank apollo_update_interval apollo_scale apollo_proj "
    "apollo_proj_type apollo_scale_type apollo_layerwise apollo_scale_front use_badam badam_mode badam_start_block badam_switch_mode "
    "badam_switch_interval badam_update_ratio badam_mask_mode badam_verbose use_adam_mini use_muon",
    "the loss is the plain cross entropy": "use_dft_loss use_asft_loss asft_alpha use_eaft_loss eaft_alpha",
    "for preference training only, which is not in this version": "pref_beta pref_ftx pref_bco_weight pref_loss dpo_label_smoothing "
    "kto_chosen_weight kto_rejected_weight simpo_gamma ppo_buffer_size ppo_epochs ppo_score_norm ppo_target ppo_whiten_rewards ref_model "
    "ref_model_adapters ref_model_quantization_bit reward_model reward_model_adapters reward_model_quantization_bit reward_model_type "
    "ld_alpha",
    "it would change the model, which is left as it is": "resize_vocab add_tokens add_special_tokens new_special_tokens_config "
    "init_special_tokens rope_scaling shift_attn mixture_of_depths use_llama_pro train_from_scratch moe_aux_loss_coef split_special_tokens",
    "only text is learned": "media_dir image_max_pixels image_min_pixels image_do_pan_and_scan crop_to_patches video_max_pixels "
    "video_min_pixels video_fps video_maxlen use_audio_in_video audio_sampling_rate freeze_vision_tower freeze_multi_modal_projector "
    "freeze_language_model",
    "every answer is learned and no question is": "train_on_prompt mask_history",
    "say it in the data: a system column, or a system message in each conversation": "default_system",
    "thinking in earlier turns is what the model's own chat template makes of it": "preserve_thinking",
    "rows are always shuffled": "disable_shuffling",
    "one evaluation loss over all of data.evaluate": "eval_on_each_dataset",
    "a run goes on to its last step; the best weights are kept in best/": "early_stopping_steps",
    "where things are kept and who you are is said outside a run: HF_HOME, `hf auth login`": "cache_dir adapter_folder offload_folder "
    "hf_hub_token ms_hub_token om_hub_token",
    "another engine": "use_mca use_hyper_parallel hyper_parallel_args use_kt kt_weight_path kt_expert_checkpoint_path kt_use_lora_experts "
    "kt_lora_expert_num kt_lora_expert_intermediate_size fp8 fp8_backend fp8_enable_fsdp_float8_all_gather",
    "several devices and machines are not in this version yet": "ray_num_workers ray_init_kwargs ray_run_name ray_storage_path "
    "ray_storage_filesystem resources_per_worker placement_strategy master_addr master_port",
    "trackers are not served; events.jsonl holds all they would show": "use_swanlab swanlab_project swanlab_workspace swanlab_run_name "
    "swanlab_mode swanlab_api_key swanlab_logdir swanlab_lark_webhook_url swanlab_lark_secret enable_torch_profiler profiler_output_dir "
    "profiler_wait_steps profiler_warmup_steps profiler_active_steps profiler_repeat profiler_record_shapes profiler_profile_memory "
    "profiler_with_stack profile_modules",
    "a matter of `tunesmith merge DIR OUT`": "export_dir export_size export_device export_quantization_bit export_quantization_dataset "
    "export_quantization_nsamples export_quantization_maxlen export_legacy_format export_hub_model_id",
    "a matter of `tunesmith chat` and of servers, not of training": "infer_backend infer_dtype vllm_maxlen vllm_gpu_util "
    "vllm_enforce_eager vllm_max_lora_rank vllm_config sglang_maxlen sglang_mem_fraction sglang_tp_size sglang_config sglang_lora_backend "
    "do_sample temperature top_p top_k num_beams max_length max_new_tokens repetition_penalty length_penalty skip_special_tokens",
    "a matter of `tunesmith evaluate`": "task task_dir batch_size lang n_shot save_dir download_mode",
    "set by the program itself": "compute_dtype block_diag_attn model_max_length device_map",
}
NEEDLESS = joined(trainer.NEEDLESS, THEIR_NEEDLESS)
LEFT = joined(trainer.LEFT, THEIR_LEFT)
READ = trainer.READ + (
    " stage model_name_or_path model_revision adapter_name_or_path finetuning_type lora_target use_dora pissa_init pissa_iter "
    "additional_target freeze_trainable_layers freeze_trainable_modules num_layer_trainable name_module_trainable "
    "freeze_extra_modules quantization_bit quantization_method quantization_type dataset dataset_dir eval_dataset val_size "
    "max_samples mix_strategy interleave_probs packing neat_packing enable_thinking cutoff_len "
    "disable_gradient_checkpointing"
)
OF_LORA = "lora_rank lora_alpha lora_dropout lora_target use_rslora loraplus_lr_ratio use_dora pissa_init pissa_iter pissa_convert"
STAGES = {
    "rm": "a reward model is not trained here",
    "ppo": "PPO is not in this version",
    "dpo": "DPO is not in this version; the chosen answers alone can be learned (stage: sft, with the chosen column as response)",
    "kto": "KTO is not in this version; the rows labelled true can be learned as sft",
}


def translate(t: Translation) -> None:
    """Fill the lists of `t`."""
    _stage(t)
    _model(t)
    _data(t)
    _method(t)
    trainer.arguments(t)
    seen = tokens_per_step(t, "per_device_train_batch_size", 8, "cutoff_len", 2048, _packs(t))
    _evaluation(t, seen)
    _weights(t, seen)
    trainer.bad_rows(t, seen)
    t.finish(CARRIED, NEEDLESS, LEFT, READ)


def _stage(t: Translation) -> None:
    stage = t.word("stage") or "sft"
    if stage in STAGES:
        t.refuse("stage", STAGES[stage])
    elif stage == "pt":
        t.put("task.name", "text", "stage", said="raw text is continued; longer texts are cut into pieces of data.max_length")
        t.put("data.on_overlength", "split", "stage")
    elif "stage" in t.given:
        t.put("task.name", "generate", "stage")
    if t.take("do_train", True) is False or (t.has("export_dir") and not t.has("dataset")):
        key = "export_dir" if t.has("export_dir") else "do_train"
        t.refuse(key, "nothing is trained; `tunesmith merge DIR OUT` folds an adapter in, `tunesmith evaluate DIR` scores")


def _model(t: Translation) -> None:
    source = t.word("model_name_or_path")
    if source is None:
        t.refused.append("no model_name_or_path: which model is tuned?")
        return
    revision = t.word("model_revision") or "main"
    if revision == "main":
        t.put("model.source", str(source), "model_name_or_path")
    else:
        t.put("model.source", f"{source}@{revision}", "model_name_or_path", "model_revision")
    adapters = names(t.take("adapter_name_or_path"))
    if len(adapters) == 1:
        t.put("model.adapter", adapters[0], "adapter_name_or_path")
    elif adapters:
        t.refuse("adapter_name_or_path", "one adapter is gone on from; merge the others into the base first")
    quantisation(t)


def quantisation(t: Translation) -> None:
    """`quantization_bit` and its kin, which ms-swift calls nearly the same."""
    bits = t.number("quantization_bit") or t.number("quant_bits")
    key = "quantization_bit" if "quantization_bit" in t.given else "quant_bits"
    method = t.word("quantization_method") or t.word("quant_method") or "bnb"
    kind = t.word("quantization_type") or "nf4"
    if not bits:
        return
    if bits == 4:
        odd = ", ".join(word for word in (method, kind) if str(word).lower() not in ("bnb", "bitsandbytes", "nf4"))
        t.put("model.quantize", "nf4", key, said=f"NF4 in place of {odd}" if odd else "")
    else:
        t.drop(key, f"a base of {bits} bits is not here; it is kept whole, model.quantize=nf4 takes a quarter of the memory")


def _method(t: Translation) -> None:
    kind = t.word("finetuning_type") or "lora"
    if kind not in ("lora", "full", "freeze"):
        t.refuse("finetuning_type", f"{kind} is no method of this version; lora, full and freeze are")
        return
    said = ["finetuning_type"] if "finetuning_type" in t.given else []
    if kind != "lora":
        t.put("method.name", kind, *said)
        for key in [*OF_LORA.split(), "additional_target"]:
            if key in t.given:
                t.drop(key, f"says nothing where {kind} is trained")
    if kind == "lora":
        _update(t, said)
        updates.beside(t, "additional_target")
        targets = names(t.take("lora_target", "all"))
        if "lora_target" in t.given:
            t.put("method.targets", "all" if targets == ["all"] else targets, "lora_target")
    if kind == "freeze":
        _frozen(t)


def _update(t: Translation, said: list[str]) -> None:
    """LoRA, DoRA or PiSSA. PiSSA there is scaled by their alpha, 2·rank by default, and iterates 16 times; -1 is an exact SVD."""
    iterations = t.number("pissa_iter")
    if t.take("pissa_init") is not True or t.take("use_dora") is True:
        updates.kind(t, "use_dora", "", CARRIED, *said)
        if t.has("pissa_init"):
            t.drop("pissa_init", "DoRA begins with B = 0 here, as LoRA does")
        if "pissa_iter" in t.given:
            t.drop("pissa_iter", "says nothing without pissa_init")
        return
    t.put("method.name", "pissa", *said, "pissa_init")
    exact = iterations is not None and iterations < 1
    t.put("method.niter", "exact" if exact else int(iterations or 16), *(["pissa_iter"] if "pissa_iter" in t.given else []))
    if "lora_alpha" not in t.given:
        rank = t.number("lora_rank") or 8
        t.put("method.alpha", 2 * rank)
    updates.without(t, "method.dropout", CARRIED)


def _frozen(t: Translation) -> None:
    key = "freeze_trainable_layers" if "freeze_trainable_layers" in t.given else "num_layer_trainable"  # its older name
    layers = t.number(key)
    if layers:
        t.put("method.layers", abs(int(layers)), key)
    if layers and layers < 0:
        t.put("method.end", "first", key)
    for key in ("freeze_trainable_modules", "name_module_trainable"):
        if names(t.take(key, "all")) != ["all"]:
            t.drop(key, "whole blocks are trained; method.pattern names tensors, such as .*layers\\.(14|15)\\.self_attn.*")
    extra = set(names(t.take("freeze_extra_modules")))
    if extra & {"embed_tokens", "wte"}:
        t.put("method.embeddings", True, "freeze_extra_modules")
    if extra & {"lm_head", "norm"}:
        t.put("method.head", True, "freeze_extra_modules", said="the final norm and an untied head together")
    if rest := extra - {"embed_tokens", "wte", "lm_head", "norm"}:
        t.left.append(f"freeze_extra_modules: {', '.join(sorted(rest))}: no setting here")


def _data(t: Translation) -> None:
    wanted = names(t.take("dataset"))
    if not wanted:
        t.refused.append("no dataset: what is learned from?")
        return
    folder = t.word("dataset_dir")
    if folder is not None and folder.startswith("REMOTE:"):
        t.refuse("dataset_dir", f"fetch dataset_info.json from {folder[7:]} and give its folder")
    elif folder is not None and folder != "ONLINE":
        t.put("data.info", folder, "dataset_dir")
    rows = t.number("max_samples")
    cut = f"#{int(rows)}" if rows and rows > 0 else ""
    keys = ["dataset", *(["max_samples"] if cut else [])]
    said = "of each data set a fixed random sample, in place of its first rows" if cut else ""
    if len(wanted) == 1:
        t.put("data.train", wanted[0] + cut, *keys, said=said)
    else:
        t.put("data.train", [{"source": name + cut, "weight": 1.0} for name in wanted], *keys, said=said)
    if t.take("enable_thinking", True) is False:
        t.put("data.thinking", "empty", "enable_thinking", said="an empty thinking block stands before answers")
    for key in ("packing", "neat_packing"):
        if key in t.given:
            t.put("data.pack", True, key, said="packed documents never see one another here, and packed equals unpacked")


def _packs(t: Translation) -> bool:
    """Whether a row of their batch is full: in pretraining it is by itself."""
    packing = t.take("packing")
    return bool(t.take("neat_packing") or packing or (packing is None and t.word("stage") == "pt"))


def _evaluation(t: Translation, seen: Measured | str) -> None:
    sets = names(t.take("eval_dataset"))
    if len(sets) == 1:
        t.put("data.evaluate", sets[0], "eval_dataset")
    elif sets:
        t.put("data.evaluate", sets[0], "eval_dataset", said=f"one evaluation set here; left out: {', '.join(sets[1:])}")
    trainer.held_out(t, "val_size", seen)


def _weights(t: Translation, seen: Measured | str) -> None:
    """Interleaving becomes weights: how often each data set's rows are used until the first, or the last, is used up."""
    strategy, given = t.word("mix_strategy") or "concat", t.take("interleave_probs")
    train: Any = t.settings.get("data.train")
    if is_off(given) and strategy in ("concat", "interleave_once"):
        if "mix_strategy" in t.given:
            t.skip("mix_strategy", "every row is used once an epoch, all shuffled together")
        return
    keys = [key for key in ("mix_strategy", "interleave_probs") if key in t.given]
    if not isinstance(train, list):
        for key in keys:
            t.skip(key, "there is one data set")
        return
    shares = [share for each in names(given) if isinstance(share := plain(each), float | int) and share > 0]
    shares = shares or [1 / len(train)] * len(train)
    if isinstance(seen, str) or None in seen.rows or not all(seen.rows) or len(shares) != len(train):
        t.put("data.train", train, *keys, said="weights are how often a data set's rows are used in an epoch: set data.train's weights")
        return
    counts = [int(count or 0) for count in seen.rows]
    whole = (min if strategy == "interleave_under" else max)(count / share for count, share in zip(counts, shares, strict=True))
    weights = [round(whole * share / count, 4) for count, share in zip(counts, shares, strict=True)]
    ends = "the first" if strategy == "interleave_under" else "the last"
    said = f"drawn with {', '.join(f'{share:g}' for share in shares)} until {ends} is used up, of {', '.join(map(str, counts))} rows"
    weighted = [each | {"weight": weight} for each, weight in zip(train, weights, strict=True)]
    t.put("data.train", weighted, "dataset", *keys, said=f"weights {', '.join(f'{weight:g}' for weight in weights)}: {said}")
