"""What settings are called: castctl's own keys, and the names that other tools have for them."""

from __future__ import annotations

from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

ELSEWHERE: dict[str, tuple[str, ...]] = {
    "learning_rate": ("optimizer.lr",),
    "max_steps": ("train.steps",),
    "num_generations": ("sampling.n",),
    "num_iterations": ("train.epochs",),
    "num_train_epochs": ("train.steps (steps of the loop)",),
    "max_completion_length": ("sampling.max_tokens",),
    "max_prompt_length": ("data.max_prompt_tokens",),
    "per_device_train_batch_size": ("train.prompts_per_step", "train.microbatch_tokens"),
    "gradient_accumulation_steps": ("train.microbatch_tokens",),
    "beta": ("method.anchor.coefficient (KL to the initial policy)",),
    "epsilon": ("method.surrogate.clip_low", "method.surrogate.clip_high"),
    "epsilon_high": ("method.surrogate.clip_high",),
    "delta": ("method.surrogate.dual_clip",),
    "loss_type": ("method.surrogate.aggregation",),
    "importance_sampling_level": ("method.surrogate.kind=gspo",),
    "sapo_temperature_pos": ("method.surrogate.tau_pos",),
    "sapo_temperature_neg": ("method.surrogate.tau_neg",),
    "divergence_type": ("method.surrogate.divergence",),
    "scale_rewards": ("method.baseline.kind",),
    "mask_truncated_completions": ("method.overlong.kind=mask",),
    "top_entropy_quantile": ("method.token_mask.share", "method.token_mask.kind=high_entropy"),
    "vllm_importance_sampling_cap": ("method.correction.high",),
    "vllm_importance_sampling_clip_max": ("method.correction.high",),
    "vllm_importance_sampling_clip_min": ("method.correction.low",),
    "vllm_importance_sampling_correction": ("method.correction.kind",),
    "vllm_importance_sampling_mode": ("method.correction.kind", "method.correction.level"),
    "reward_funcs": ("verifier.rewards", "verifier.function"),
    "reward_weights": ("verifier.rewards (each with its weight)",),
    "gdpo_reward_keys": ("verifier.rewards",),
    "gdpo_reward_weights": ("verifier.rewards (each with its weight)",),
    "stop_strings": ("sampling.stop",),
    "stop_sequences": ("sampling.stop",),
    "lr_scheduler_type": ("optimizer.schedule",),
    "lr_end": ("optimizer.end_lr",),
    "warmup_ratio": ("optimizer.warmup_share",),
    "adam_beta1": ("optimizer.betas",),
    "adam_beta2": ("optimizer.betas",),
    "save_steps": ("train.checkpoint_every",),
    "eval_steps": ("eval.every",),
    "report_to": ("logging.trackers",),
    "bf16": ("model.dtype=bfloat16",),
    "model_name_or_path": ("model.path",),
    "dataset_name": ("data.path",),
    "name": ("--run NAME", "engine.kind (verl's rollout.name)"),
    "run_name": ("--run NAME",),
    "output_dir": ("--run PATH",),
    "resume_from_checkpoint": ("--resume",),
    "use_peft": ("--lora",),
    "lora_r": ("model.lora.r",),
    "lora_alpha": ("model.lora.alpha",),
    "lora_target_modules": ("model.lora.targets",),
    "use_vllm": ("engine.kind=vllm",),
    "vllm_mode": ("engine.device (the model's GPU or another)",),
    "vllm_gpu_memory_utilization": ("engine.gpu_memory_utilization",),
    "vllm_tensor_parallel_size": ("engine.tensor_parallel_size",),
    "vllm_max_model_length": ("engine.max_model_len",),
    "vllm_enable_sleep_mode": ("engine.device (an engine on the model's GPU rests by itself)",),
    # verl
    "lora_rank": ("model.lora.r",),
    "target_modules": ("model.lora.targets",),
    "tensor_model_parallel_size": ("engine.tensor_parallel_size",),
    "free_cache_engine": ("engine.device (an engine on the model's GPU rests by itself)",),
    "train_batch_size": ("train.prompts_per_step",),
    "ppo_epochs": ("train.epochs",),
    "ppo_mini_batch_size": ("train.minibatches (how many, not how large)",),
    "ppo_max_token_len_per_gpu": ("train.microbatch_tokens",),
    "max_response_length": ("sampling.max_tokens",),
    "total_training_steps": ("train.steps",),
    "total_epochs": ("train.steps (steps of the loop)",),
    "save_freq": ("train.checkpoint_every",),
    "test_freq": ("eval.every",),
    "adv_estimator": ("method.name",),
    "clip_ratio": ("method.surrogate.clip_low", "method.surrogate.clip_high"),
    "clip_ratio_low": ("method.surrogate.clip_low",),
    "clip_ratio_high": ("method.surrogate.clip_high",),
    "clip_ratio_c": ("method.surrogate.dual_clip",),
    "loss_mode": ("method.surrogate.kind",),
    "entropy_coeff": ("method.surrogate.entropy_bonus",),
    "grad_clip": ("optimizer.max_grad_norm",),
    "lr_warmup_steps": ("optimizer.warmup_steps",),
    "lr_warmup_steps_ratio": ("optimizer.warmup_share",),
    "min_lr_ratio": ("optimizer.end_lr (a rate, not a share of lr)",),
    "warmup_style": ("optimizer.schedule",),
    "kl_coef": ("method.anchor.coefficient",),
    "kl_loss_coef": ("method.anchor.coefficient",),
    "kl_loss_type": ("method.anchor.kind",),
    "use_kl_loss": ("method.anchor.kind=k3",),
    "loss_agg_mode": ("method.surrogate.aggregation",),
    "norm_adv_by_std_in_grpo": ("method.baseline.kind",),
    "entropy_top_ratio": ("method.token_mask.share", "method.token_mask.kind=high_entropy"),
    "clip_cov_ratio": ("method.token_mask.share", "method.token_mask.kind=clip_cov"),
    "clip_cov_lb": ("method.token_mask.low",),
    "clip_cov_ub": ("method.token_mask.high",),
    "rollout_is": ("method.correction.level",),
    "rollout_is_level": ("method.correction.level",),
    "rollout_is_mode": ("method.correction.kind",),
    "rollout_is_threshold": ("method.correction.high",),
    "rollout_is_threshold_lower": ("method.correction.low",),
    "rollout_rs": ("method.correction.kind=mask", "method.correction.level"),
    "rollout_rs_threshold": ("method.correction.low", "method.correction.high"),
    "tis_imp_ratio_cap": ("method.correction.high",),
    "train_files": ("data.path",),
    "val_files": ("eval.task",),
    "experiment_name": ("--run NAME",),
    "project_name": ("logging.project",),
    "default_local_dir": ("--run PATH",),
    # castctl's own of before
    "importance_cap": ("method.correction.high", "method.correction.kind=none"),
    # prime-rl
    "dppo_mask_low": ("method.surrogate.divergence_low",),
    "dppo_mask_high": ("method.surrogate.divergence_high",),
    "eps_max": ("method.surrogate.weight_high",),
    # vLLM, both, and others
    "data_parallel_size": ("engine.replicas",),
    "max_num_batched_tokens": ("engine.options={max_num_batched_tokens: N}",),
    "batch_size": ("train.prompts_per_step",),
    "config": ("castctl train FILE", "--recipe FILE"),
    "output": ("--run PATH",),
    "clip": ("method.surrogate.clip_low", "method.surrogate.clip_high"),
}
"""TRL's `GRPOConfig` first, then verl: a name's last part, and what castctl writes for it: a
setting, a setting with its value or a word about it, or an option."""

IN_EVALUATIONS: dict[str, tuple[str, ...]] = {
    "apply_chat_template": ("data.chat",),
    "batch_size": ("sampling.max_rows",),
    "gen_kwargs": ("--temperature", "--max-tokens", "eval.top_p", "sampling.stop"),
    "max_gen_toks": ("eval.max_tokens",),
    "model_args": ("--model PATH",),
    "num_fewshot": ("data.prompt_template (examples are its text)",),
    "output_path": ("--run PATH",),
    "pretrained": ("model.path",),
    "repeats": ("eval.k",),
    "system_instruction": ("data.system_prompt",),
    "tasks": ("castctl eval TASK",),
    "until": ("sampling.stop",),
}
"""The same of lm-evaluation-harness, for `castctl eval`."""

GONE = {
    "sampling.allow_truncated": "nothing trains any more on completions that top_p, top_k or min_p "
    "truncated; leave it out",
}
"""Settings of castctl's that nothing takes the place of, and what to do."""


def plain(name: str) -> str:
    """A name as the tables have it: the last part, underscored, in small letters."""
    return name.rpartition(".")[2].replace("-", "_").lower()


def meanings(section: type[BaseModel], name: str, *, evaluation: bool = False) -> list[str]:
    """What castctl writes for a name: settings whose last part it is, then what other tools mean
    by it; in an evaluation, its own settings win."""
    leaf = plain(name)
    own = [key for key in known_keys(section) if "." in key and plain(key) == leaf]
    if evaluation:
        own = [key for key in own if key.startswith("eval.")] or own
        if leaf in IN_EVALUATIONS:
            return [*own, *IN_EVALUATIONS[leaf]]
    return list(dict.fromkeys([*own, *ELSEWHERE.get(leaf, IN_EVALUATIONS.get(leaf, ()))]))


def known_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key below a section, whatever the kinds chosen, each once."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        for inner in sections_in(field):
            keys += known_keys(inner, f"{prefix}{name}.")
    return list(dict.fromkeys(keys))


def sections_in(field: FieldInfo) -> list[type[BaseModel]]:
    """The section that a field holds, each that its union allows, or each that its list may."""
    candidates = [field.annotation]
    for each in candidates:
        candidates += get_args(each)
    return [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
