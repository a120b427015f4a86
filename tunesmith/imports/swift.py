"""ms-swift's arguments: the args.json of a run, or a YAML of `swift sft FILE`."""

import re

from tunesmith.imports import trainer, updates
from tunesmith.imports.batch import tokens_per_step
from tunesmith.imports.llamafactory import THEIR_NEEDLESS, quantisation
from tunesmith.imports.translation import Translation, joined, names

NAME = "ms-swift"
# keys that nobody else has
SIGNS = "tuner_type train_type target_modules split_dataset_ratio custom_dataset_info quant_bits truncation_strategy rlhf_type"

CARRIED = trainer.CARRIED | {
    "lora_rank": "method.rank",
    "lora_alpha": "method.alpha",
    "lora_dropout": "method.dropout",
    "use_rslora": "method.rslora",
    "lorap_lr_ratio": "method.plus_ratio",
}
OWN_NEEDLESS = {
    "the model's own chat template is used, in training and in serving": "template agent_template response_prefix padding_side",
    "the loop's loss and attention are its own, fast without these": "attn_impl use_liger_kernel padding_free sequence_parallel_size",
    "rows are read, tokenised in parallel and kept by themselves": "lazy_tokenize dataset_num_proc load_from_cache_file "
    "dataset_shuffle train_dataloader_shuffle cached_dataset strict",
    "transformers knows the classes by the model's own folder": "model_type local_repo_path model_author model_name",
    "the labels are those in the data": "num_labels",
}
OWN_LEFT = {
    "stacks of experts are not reached by linear adapters": "target_parameters",
    "say it in the data: a system column, or a system message in each conversation": "system",
    "every answer is learned and no question is": "loss_scale",
    "what is run by the program itself is not run here": "external_plugins custom_register_path loss_type metric",
    "a matter of `tunesmith chat` and of servers, not of training": "max_new_tokens temperature top_k top_p repetition_penalty num_beams "
    "stream stop_words infer_backend logprobs",
}
NEEDLESS = joined(trainer.NEEDLESS, THEIR_NEEDLESS, OWN_NEEDLESS)
LEFT = joined(trainer.LEFT, OWN_LEFT)
READ = trainer.READ + (
    " model model_revision use_hf adapters tuner_type train_type target_modules dataset val_dataset split_dataset_ratio packing "
    "torch_dtype quant_bits quant_method bnb_4bit_quant_type rlhf_type truncation_strategy max_length use_dora init_weights "
    "modules_to_save task_type adapter_act adapter_length freeze_parameters freeze_parameters_regex freeze_parameters_ratio "
    "trainable_parameters trainable_parameters_regex"
)
OF_LORA = "target_modules use_dora init_weights modules_to_save"
OF_FREEZING = "freeze_parameters freeze_parameters_regex freeze_parameters_ratio trainable_parameters trainable_parameters_regex"
TASKS = {"seq_cls": "classify", "causal_lm": ""}


def translate(t: Translation) -> None:
    """Fill the lists of `t`. An args.json writes out every default: what is off is not worth a line each."""
    if t.has("rlhf_type"):
        t.refuse("rlhf_type", "training by preferences or rewards is not in this version")
    _model(t)
    _data(t)
    kind = t.word("tuner_type") or t.word("train_type") or "lora"
    key = "tuner_type" if "tuner_type" in t.given else "train_type"
    said = [key] if key in t.given else []
    if kind not in ("lora", "full", "adapter"):
        t.refuse(key, f"{kind} is no method of this version; lora, full and adapter are")
    _task(t)
    if kind == "lora":
        if updates.kind(t, "use_dora", "init_weights", CARRIED, *said) == "pissa" and t.settings["method.niter"] == "exact":
            t.changed.append("init_weights: an exact SVD of every matrix takes a while; pissa_niter_4 is nearly as good")
        updates.beside(t, "modules_to_save")
        wanted = names(t.take("target_modules", "all-linear"))
        t.put("method.targets", "all" if wanted == ["all-linear"] else wanted, *(["target_modules"] if "target_modules" in t.given else []))
        if "lora_alpha" not in t.given:
            t.put("method.alpha", 32)
    else:
        of_lora = [each for each in CARRIED if CARRIED[each].startswith("method.")] + OF_LORA.split()
        for each in [each for each in of_lora if each in t.given]:
            t.drop(each, "says nothing where every weight is trained" if kind == "full" else "says nothing where bottlenecks are trained")
    if kind == "adapter":
        _bottleneck(t, said)
    if kind == "full":
        _whole(t, said)
    else:
        for each in [each for each in OF_FREEZING.split() if each in t.given]:
            t.drop(each, "says nothing beside an adapter, over which the whole base is frozen")
    trainer.arguments(t, schedule_by_default="cosine", warmup_by_default=0.05, rate_by_default=1e-4 if kind == "lora" else 1e-5)
    if "weight_decay" not in t.given:
        t.put("train.weight_decay", 0.1)
    seen = tokens_per_step(t, "per_device_train_batch_size", 1, "max_length", 2048, bool(t.take("packing")))
    if "val_dataset" not in t.given:
        trainer.held_out(t, "split_dataset_ratio", seen)
    trainer.bad_rows(t, seen)
    t.finish(CARRIED, NEEDLESS, LEFT, READ)


def _task(t: Translation) -> None:
    kind = t.word("task_type")
    if kind is None or TASKS.get(kind) == "":
        return
    if kind in TASKS:
        t.put("task.name", TASKS[kind], "task_type", said="the labels are those of the training data, in its label column")
    else:
        t.refuse("task_type", f"{kind} is no task of this version; causal_lm and seq_cls are")


def _bottleneck(t: Translation, said: list[str]) -> None:
    """Their bottleneck reads the MLP's output before the residual is added; ours behind it."""
    width, act = t.number("adapter_length") or 128, t.word("adapter_act") or "gelu"
    t.put("method.name", "adapter", *said, said="it reads the stream behind each MLP, theirs the MLP's output alone")
    t.put("method.width", int(width), *(["adapter_length"] if "adapter_length" in t.given else []))
    if act in ("relu", "gelu", "silu", "tanh"):
        t.put("method.activation", act, *(["adapter_act"] if "adapter_act" in t.given else []))
    else:
        t.drop("adapter_act", "relu, gelu, silu and tanh are there")


def _whole(t: Translation, said: list[str]) -> None:
    """Everything, or what is named where all the rest is frozen."""
    regex, starts = t.word("trainable_parameters_regex"), names(t.take("trainable_parameters"))
    if t.number("freeze_parameters_ratio") == 1 and (regex or starts):
        parts = [re.escape(name) + ".*" for name in starts] + ([f".*(?:{regex}).*"] if regex else [])
        keys = [each for each in ("freeze_parameters_ratio", "trainable_parameters", "trainable_parameters_regex") if t.has(each)]
        t.put("method.name", "freeze", *said)
        t.put("method.pattern", "|".join(parts), *keys)
        rest = ["freeze_parameters", "freeze_parameters_regex"]
    else:
        t.put("method.name", "full", *said)
        rest = OF_FREEZING.split()
    for each in rest:
        if each in t.given:
            t.drop(each, "what is trained is named, not what is frozen: method=freeze method.pattern=REGEX")


def _model(t: Translation) -> None:
    source = t.word("model")
    if source is None:
        t.refused.append("no model: which model is tuned?")
        return
    market = "" if t.take("use_hf") or source.startswith((".", "/", "~")) else "ms:"
    revision = t.word("model_revision")
    said = "ModelScope, as there by default; leave ms: out for Hugging Face or a folder" if market else ""
    keys = ["model", *(["model_revision"] if revision else []), *(["use_hf"] if "use_hf" in t.given else [])]
    t.put("model.source", market + source + (f"@{revision}" if revision else ""), *keys, said=said)
    adapters = names(t.take("adapters"))
    if len(adapters) == 1:
        t.put("model.adapter", adapters[0], "adapters")
    elif adapters:
        t.refuse("adapters", "one adapter is gone on from; merge the others into the base first")
    if (dtype := t.word("torch_dtype")) in ("bfloat16", "float16", "float32"):
        t.put("model.dtype", dtype, "torch_dtype")
    quantisation(t)


def _data(t: Translation) -> None:
    wanted = names(t.take("dataset"))
    if not wanted:
        t.refused.append("no dataset: what is learned from?")
        return
    sources = [{"source": each, "weight": 1.0} for each in wanted]
    t.put("data.train", wanted[0] if len(wanted) == 1 else sources, "dataset")
    if sets := names(t.take("val_dataset")):
        t.put("data.evaluate", sets[0], "val_dataset", said=f"one evaluation set here; {len(sets) - 1} left out" if len(sets) > 1 else "")
    if t.word("truncation_strategy") == "delete":
        t.put("data.on_overlength", "drop", "truncation_strategy")
