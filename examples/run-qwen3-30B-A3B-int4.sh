#!/usr/bin/env bash
# The field's recipe for INT4 quantisation-aware RL of Qwen3-30B-A3B, flag for flag
# (Miles examples/infra_features/low_precision/run-qwen3-30B-A3B-int4.sh): only the program's name is
# ours. Needs a Ray head (`ray start --head`), and a machine that holds the model; BASE_DIR holds the models
# and data. Make the INT4 folder with
#   quatrain convert --input-dir $BASE_DIR/Qwen3-30B-A3B --output-dir $BASE_DIR/Qwen3-30B-A3B-INT4 \
#     --quant-type W4A16 --quant-group-size 128 --data-dir CALIBRATION
set -euo pipefail
BASE_DIR=${BASE_DIR:-/root}
QUATRAIN=${QUATRAIN:-quatrain}

CKPT_ARGS=(
  --hf-checkpoint "$BASE_DIR/Qwen3-30B-A3B-INT4/"
  --ref-load "$BASE_DIR/Qwen3-30B-A3B/"
  --load "$BASE_DIR/Qwen3-30B-A3B_quatrain/"
  --save "$BASE_DIR/Qwen3-30B-A3B_quatrain/"
  --save-interval 20
)

ROLLOUT_ARGS=(
  --prompt-data "$BASE_DIR/dapo-math-17k/dapo-math-17k.jsonl"
  --input-key prompt
  --label-key label
  --apply-chat-template
  --rollout-shuffle
  --rm-type deepscaler
  --num-rollout 100
  --rollout-batch-size 32
  --n-samples-per-prompt 8
  --rollout-max-response-len 8192
  --rollout-temperature 0.8
  --global-batch-size 256
  --balance-data
)

EVAL_ARGS=(
  --eval-interval 10
  --eval-prompt-data "$BASE_DIR/aime-2024/aime-2024.jsonl"
  --n-samples-per-eval-prompt 8
  --eval-max-response-len 16384
  --eval-top-p 0.7
)

PERF_ARGS=(
  --tensor-model-parallel-size 4
  --sequence-parallel
  --pipeline-model-parallel-size 1
  --context-parallel-size 1
  --expert-model-parallel-size 8
  --expert-tensor-parallel-size 1
  --recompute-granularity full
  --recompute-method uniform
  --recompute-num-layers 1
  --use-dynamic-batch-size
  --max-tokens-per-gpu 8192
)

GRPO_ARGS=(
  --advantage-estimator grpo
  --use-kl-loss
  --kl-loss-coef 0.00
  --kl-loss-type low_var_kl
  --entropy-coef 0.00
  --eps-clip 0.2
  --eps-clip-high 0.28
  --use-tis
)

OPTIMIZER_ARGS=(
  --optimizer adam
  --lr 1e-6
  --lr-decay-style constant
  --weight-decay 0.1
  --adam-beta1 0.9
  --adam-beta2 0.98
  --optimizer-cpu-offload
  --overlap-cpu-optimizer-d2h-h2d
  --use-precision-aware-optimizer
)

SGLANG_ARGS=(
  --rollout-num-gpus-per-engine 1
  --sglang-mem-fraction-static 0.7
  --sglang-cuda-graph-bs 1 2 4 8 $(seq 16 8 256)
)

MISC_ARGS=(
  --attention-dropout 0.0
  --hidden-dropout 0.0
  --accumulate-allreduce-grads-in-fp32
  --attention-softmax-in-fp32
  --attention-backend flash
)

RUNTIME_ENV_JSON='{
  "env_vars": {
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",
    "OPEN_TRAINING_INT4_FAKE_QAT_FLAG": "1",
    "OPEN_TRAINING_INT4_GROUP_SIZE": "128"
  }
}'

ray job submit --address="${RAY_ADDRESS:-http://127.0.0.1:8265}" \
  --runtime-env-json="$RUNTIME_ENV_JSON" \
  -- "$QUATRAIN" train \
  --actor-num-nodes 1 \
  --actor-num-gpus-per-node 8 \
  --colocate \
  "${CKPT_ARGS[@]}" "${ROLLOUT_ARGS[@]}" "${OPTIMIZER_ARGS[@]}" "${GRPO_ARGS[@]}" "${PERF_ARGS[@]}" \
  "${EVAL_ARGS[@]}" "${SGLANG_ARGS[@]}" "${MISC_ARGS[@]}"
