#!/usr/bin/env bash
# run-qwen3-30B-A3B-int4.sh at a size that runs anywhere: the example model and data of this repository, minutes
# on a few cores. Needs a Ray head (`ray start --head`); SUBMIT= (empty) runs it without Ray.
# RUN_DIR takes the INT4 folder and the run; NUM_ROLLOUT and THREADS change its length and width; TRAIN_FLAGS adds
# flags, e.g. TRAIN_FLAGS="--use-tensorboard --dashboard-port 7788".
set -euo pipefail
cd "$(dirname "$0")/.."
QUATRAIN=${QUATRAIN:-$PWD/build/release/quatrain}
RUN_DIR=${RUN_DIR:-$PWD/runs/tiny-qwen3-moe-int4}
BASE=$PWD/examples/models/tiny-qwen3-moe
DATA=$PWD/examples/data/arithmetic
mkdir -p "$RUN_DIR"

if [[ ! -e $RUN_DIR/int4/config.json ]]; then
  "$QUATRAIN" convert --method rtn --input-dir "$BASE" --output-dir "$RUN_DIR/int4" --quant-type W4A16 \
    --quant-group-size 32
fi

CKPT_ARGS=(
  --hf-checkpoint "$RUN_DIR/int4"
  --ref-load "$BASE"
  --load "$RUN_DIR/train"
  --save "$RUN_DIR/train"
  --save-interval 20
)

ROLLOUT_ARGS=(
  --prompt-data "$DATA/train.jsonl"
  --input-key prompt
  --label-key label
  --apply-chat-template
  --rollout-shuffle
  --rm-type deepscaler
  --num-rollout "${NUM_ROLLOUT:-4}"
  --rollout-batch-size 8
  --n-samples-per-prompt 4
  --rollout-max-response-len 128
  --rollout-temperature 0.8
  --global-batch-size 32
  --balance-data
)

EVAL_ARGS=(
  --eval-interval 10
  --eval-prompt-data arithmetic "$DATA/eval.jsonl@[:32]"
  --n-samples-per-eval-prompt 1
  --eval-max-response-len 128
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
  --lr 3e-5
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
    "OPEN_TRAINING_INT4_GROUP_SIZE": "32"
  }
}'

launch=(env CUDA_DEVICE_MAX_CONNECTIONS=1 OPEN_TRAINING_INT4_FAKE_QAT_FLAG=1 OPEN_TRAINING_INT4_GROUP_SIZE=32)
if [[ -n ${SUBMIT-ray} ]]; then
  launch=(ray job submit --address="${RAY_ADDRESS:-http://127.0.0.1:8265}"
    --runtime-env-json="$RUNTIME_ENV_JSON" --)
fi
"${launch[@]}" "$QUATRAIN" train --threads "${THREADS:-0}" \
  --actor-num-nodes 1 \
  --actor-num-gpus-per-node 8 \
  --colocate \
  "${CKPT_ARGS[@]}" "${ROLLOUT_ARGS[@]}" "${OPTIMIZER_ARGS[@]}" "${GRPO_ARGS[@]}" "${PERF_ARGS[@]}" \
  "${EVAL_ARGS[@]}" "${SGLANG_ARGS[@]}" "${MISC_ARGS[@]}" ${TRAIN_FLAGS:-}
