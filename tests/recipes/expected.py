"""What each recipe must train with: every script of examples/, arm by arm. A script that is not here fails the tests.

An arm's settings come on top of its recipe's. Sources of the numbers: the recipes' headers and docs/fidelity.md.
"""

PAPER = {
    "rollout.batch_size": 128, "rollout.n_samples_per_prompt": 64, "rollout.temperature": 1.0, "rollout.top_p": 1.0,
    "train.batch_size": 8192, "train.max_epochs": 1, "orz.policy_updates": 1, "orz.critic_updates": 12,
    "algo.advantage.estimator": "gae", "algo.advantage.gamma": 1.0, "algo.advantage.lambd": 1.0,
    "algo.kl.init_coef": 0.0, "algo.kl.use_loss": False, "actor.entropy_coef": None, "actor.eps_clip": 0.2,
    "critic.value_clip": None, "actor.adam.lr": 1e-6, "critic.adam.lr": 5e-6, "orz.warmup_steps": 50,
    "actor.adam.betas": (0.9, 0.95), "critic.adam.betas": (0.9, 0.95), "actor.adam.weight_decay": 0.0,
    "critic.adam.weight_decay": 0.0, "actor.lr_scheduler": "constant_with_warmup",
    "critic.lr_scheduler": "constant_with_warmup", "orz.value_head_init": "released", "orz.prompt_template": "paper",
    "ds.packing_samples": True, "ds.zero_stage": 3, "ds.grad_accum_dtype": "fp32", "orz.max_prompt_len": 2048,
}  # fmt: skip
TOGETHER = {"train.colocate_all": True, "vllm.enable_sleep": True, "ds.enable_sleep": True,
            "vllm.gpu_memory_utilization": 0.75}  # fmt: skip


def placed(model, nodes, gpus, **more):
    """The paper's settings on so many GPUs, all models on all of them."""
    return PAPER | TOGETHER | {
        "actor.model_name_or_path": model, "critic.model_name_or_path": model, "data.max_len": 8192,
        "actor.num_nodes": nodes, "critic.num_nodes": nodes, "ref.num_nodes": nodes, "actor.num_gpus_per_node": gpus,
        "critic.num_gpus_per_node": gpus, "ref.num_gpus_per_node": gpus, "vllm.num_engines": nodes * gpus,
    } | more  # fmt: skip


SEVEN = placed("Qwen/Qwen2.5-7B", 4, 8)
SMALL = {"ds.zero_stage": 1, "ds.enable_sleep": False, "actor.gradient_checkpointing_enable": False,
         "vllm.gpu_memory_utilization": 0.6}  # fmt: skip
SPLIT = {
    "train.colocate_all": False, "actor.num_nodes": 4, "critic.num_nodes": 4, "vllm.num_engines": 16,
    "vllm.tensor_parallel_size": 4, "vllm.enable_sleep": False, "vllm.gpu_memory_utilization": 0.9,
}  # fmt: skip
SHARED = TOGETHER | {
    "actor.num_nodes": 16,
    "critic.num_nodes": 16,
    "vllm.num_engines": 32,
    "vllm.tensor_parallel_size": 4,
}
LARGE = PAPER | {"actor.num_gpus_per_node": 8, "critic.num_gpus_per_node": 8, "data.max_len": 18432,
                 "train.max_tokens_per_gpu": 18432, "critic.save_value_network": True}  # fmt: skip
ANNEALING = {
    "actor.model_name_or_path": "org/model", "critic.model_name_or_path": "org/critic", "orz.warmup_steps": 0,
    "actor.lr_scheduler": "cosine_with_min_lr", "actor.min_lr_ratio": 0.3, "data.max_samples": 12800,
    "train.num_episodes": 1,
}  # fmt: skip
KL_LOSS = {"algo.kl.use_loss": True, "algo.kl.estimator": "k3"}
SAMPLING = {
    "actor.model_name_or_path": "Qwen/Qwen2.5-Math-7B", "critic.model_name_or_path": "Qwen/Qwen2.5-Math-7B",
    "rollout.batch_size": 1024, "rollout.n_samples_per_prompt": 8, "train.batch_size": 1024, "orz.policy_updates": 8,
    "orz.critic_updates": 8, "data.max_len": 4096,
}  # fmt: skip
NO_CRITIC = {"critic.model_name_or_path": None}

# script: (settings, {arm: settings on top}, environment that it needs)
RECIPES = {
    "quickstart.sh": (
        {"rollout.batch_size": 16, "rollout.n_samples_per_prompt": 8, "orz.policy_updates": 1,
         "orz.critic_updates": 12, "algo.advantage.lambd": 1.0,
         "actor.adam.lr": 2e-4, "critic.adam.lr": 1e-3, "orz.warmup_steps": 0},
        {}, {},
    ),
    "train_orz_reasoning_gym_cpu.sh": ({"rollout.batch_size": 16, "data.max_samples": 160}, {}, {}),
    "train_orz_smollm2_135m_cpu.sh": (
        {"rollout.batch_size": 16, "rollout.n_samples_per_prompt": 8, "data.max_samples": 384, "train.num_episodes": 1,
         "orz.policy_updates": 1, "orz.critic_updates": 8, "orz.freeze_critic": "layers:20",
         "orz.critic_minibatch": "groups", "ckpt.load_enable": True,
         "algo.advantage.lambd": 1.0, "algo.kl.init_coef": 0.0},
        {}, {"MAWPS": "m.csv", "SVAMP": "s.json"},
    ),
    "train_orz_qwen2.5_0.5b_1gpu.sh": (placed("Qwen/Qwen2.5-0.5B", 1, 1) | SMALL, {}, {}),
    "train_orz_qwen2.5_0.5b.sh": (placed("Qwen/Qwen2.5-0.5B", 1, 8) | SMALL, {}, {}),
    "train_orz_qwen2.5_1.5b.sh": (placed("Qwen/Qwen2.5-1.5B", 2, 8), {}, {}),
    "train_orz_qwen2.5_7b.sh": (SEVEN | {"train.num_episodes": 20}, {}, {}),
    "train_orz_qwen2.5_32b.sh": (
        LARGE | {"actor.model_name_or_path": "Qwen/Qwen2.5-32B"}, {"split": SPLIT, "colocated": SHARED}, {}
    ),
    "train_orz_qwen2.5_32b_annealing.sh": (
        LARGE | ANNEALING, {"split": SPLIT, "colocated": SHARED}, {"MODEL": "org/model", "CRITIC": "org/critic"}
    ),
    "train_orz_r1_distill_14b.sh": (
        placed("deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", 8, 8)
        | {"data.max_len": 18432, "vllm.num_engines": 32, "vllm.tensor_parallel_size": 2}, {}, {}
    ),
    "compare_estimators.sh": (
        SEVEN,
        {"ppo": {}, "grpo": NO_CRITIC | {"algo.advantage.estimator": "group_norm"},
         "reinforce_baseline": NO_CRITIC | {"algo.advantage.estimator": "reinforce_baseline"}},
        {},
    ),
    "ablations/fig08_gae_lambda.sh": (SEVEN, {"1.0": {}, "0.95": {"algo.advantage.lambd": 0.95}}, {}),
    "ablations/fig09_kl.sh": (
        SEVEN,
        {"none": {}, "kl_loss": KL_LOSS | {"algo.kl.init_coef": 0.05},
         "kl_penalty": {"algo.kl.init_coef": 0.05, "algo.kl.use_loss": False, "algo.kl.estimator": "k1"}},
        {},
    ),
    "ablations/fig10_data_scale.sh": (
        SEVEN,
        {"57k": {"train.num_episodes": 2}, "math7.5k": {"train.num_episodes": 9}, "30k": {"data.max_samples": 30000}},
        {"DATA": "org/math"},
    ),
    "ablations/fig12_languages.sh": (
        SEVEN | {"data.prompt_dataset": "run-dir/curated/kept/train.jsonl"}, {"english": {}, "both": {}},
        {"DATA_CN": "org/chinese"},
    ),
    "ablations/fig13_update_steps.sh": (
        SEVEN,
        {"128x64x1": {}, "1024x64x8": {"rollout.batch_size": 1024, "orz.policy_updates": 8, "train.batch_size": 8192}},
        {},
    ),
    "ablations/fig14_llama_lambda_kl.sh": (
        SEVEN | {"actor.model_name_or_path": "org/llama", "critic.model_name_or_path": "org/llama"},
        {"1.0_kl0": {}, "1.0_kl0.05": KL_LOSS | {"algo.kl.init_coef": 0.05},
         "0.998_kl0": {"algo.advantage.lambd": 0.998},
         "0.998_kl0.05": KL_LOSS | {"algo.advantage.lambd": 0.998, "algo.kl.init_coef": 0.05}},
        {"MODEL": "org/llama"},
    ),
    "ablations/fig15_sampling.sh": (
        SEVEN | SAMPLING,
        {"T1.0": {}, "T0.6": {"rollout.temperature": 0.6}, "T1.2": {"rollout.temperature": 1.2},
         "T0.6_p0.95": {"rollout.temperature": 0.6, "rollout.top_p": 0.95}},
        {"DATA": "org/math"},
    ),
}  # fmt: skip

# Scripts with tests of their own: test_distill_recipe.py, test_launchers.py, test_docker.py
OTHERS = {"distill_reasoner.sh"}
LAUNCHERS = {f"launch/{name}.sh" for name in ("one_node", "multi_node", "ray_job", "slurm", "docker")}
LIBRARIES = {"lib/recipe.sh", "lib/launch.sh"}
