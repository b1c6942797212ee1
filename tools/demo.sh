#!/usr/bin/env bash
# The whole pipeline on the example model: convert, train, evaluate, report. Results go to runs/demo (RUN_DIR),
# DEMO_ROLLOUTS and DEMO_SEED change the training.
set -euo pipefail
cd "$(dirname "$0")/.."
quatrain=build/release/quatrain
run=${RUN_DIR:-runs/demo}
base=examples/models/tiny-qwen3-moe
data=examples/data
rollouts=${DEMO_ROLLOUTS:-25}
seed=${DEMO_SEED:-42}
started=$SECONDS

step() { printf '\n== %s\n' "$1"; }

rm -rf "$run"
mkdir -p "$run"

step "1/4 convert: GPTQ, W4A16, group size 32"
$quatrain convert --input-dir $base --output-dir "$run/int4-base" --data-dir $data/calibration \
  --quant-type W4A16 --quant-group-size 32

step "2/4 train: GRPO, training and rollout on the same INT4 weights"
OPEN_TRAINING_INT4_FAKE_QAT_FLAG=1 OPEN_TRAINING_INT4_GROUP_SIZE=32 \
  $quatrain train --hf-checkpoint "$run/int4-base" --ref-load $base --save "$run/train" \
  --prompt-data $data/arithmetic/train.jsonl --input-key prompt --label-key label \
  --apply-chat-template --rollout-shuffle --rm-type deepscaler --rollout-seed "$seed" \
  --num-rollout "$rollouts" --rollout-batch-size 32 --n-samples-per-prompt 8 \
  --rollout-max-response-len 256 --rollout-temperature 0.8 --global-batch-size 256 \
  --eval-interval "$rollouts" --eval-prompt-data arithmetic $data/arithmetic/eval.jsonl --eval-temperature 0 \
  --advantage-estimator grpo --eps-clip 0.2 --eps-clip-high 0.28 --use-tis \
  --optimizer adam --lr 3e-5 --lr-decay-style constant --weight-decay 0.1 \
  --adam-beta1 0.9 --adam-beta2 0.98 --use-dynamic-batch-size --max-tokens-per-gpu 8192

step "3/4 eval: greedy and sampled accuracy on 512 prompts"
$quatrain eval --model "BF16 base=$base" --model "INT4 base=$run/int4-base" \
  --model "INT4 trained=$run/train/iter_$(printf %07d "$rollouts")/int4" \
  --prompt-data arithmetic $data/arithmetic/eval.jsonl --temperature 0.8 --n-samples 4 \
  --output "$run/train/eval.json"

step "4/4 report ($((SECONDS - started)) s so far)"
$quatrain report --run "$run/train"
