#!/usr/bin/env bash
# One long run of docs/results.md: tools/curve.sh MODE SEED [flags of quatrain train], MODE one of qat, bf16, mismatch.
# Needs the INT4 directory of `make demo` (all-linear: INT4_DIR).
set -euo pipefail
cd "$(dirname "$0")/.."
mode=$1 seed=$2
shift 2
base=examples/models/tiny-qwen3-moe
data=examples/data/arithmetic
int4=${INT4_DIR:-runs/demo/int4-base}
case $mode in
  qat) flag=1 checkpoint=$int4 ;;
  bf16) flag=0 checkpoint=$base ;;
  mismatch) flag=0 checkpoint=$int4 ;;
  *) echo "curve.sh: MODE is qat, bf16 or mismatch" >&2; exit 2 ;;
esac
OPEN_TRAINING_INT4_FAKE_QAT_FLAG=$flag build/release/quatrain train --hf-checkpoint "$checkpoint" --ref-load $base \
  --save "runs/$mode-$seed" --prompt-data $data/train.jsonl --input-key prompt --label-key label \
  --apply-chat-template --rollout-shuffle --rollout-seed "$seed" --num-rollout 200 --rollout-batch-size 32 \
  --n-samples-per-prompt 8 --rollout-max-response-len 256 --rollout-temperature 0.8 --global-batch-size 256 \
  --eval-interval 50 --eval-prompt-data arithmetic $data/eval.jsonl --eval-temperature 0 \
  --eps-clip 0.2 --eps-clip-high 0.28 --use-tis --lr 3e-5 --weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.98 \
  --use-dynamic-batch-size "$@"
