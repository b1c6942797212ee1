#!/usr/bin/env bash
# One cell of the ablation of docs/results.md: tools/ablation.sh CELL SEED [flags of quatrain train].
# CELL says how training and rollout read the weights:
#   qat-int4    both the same codes             bf16-bf16  both the same BF16 weights
#   bf16-int4   rollout re-quantised weights    qat-bf16   training codes, rollout BF16
# Variables: GROUP=128, CODE_MAX=7 (3 is the 3-bit grid of the stress case), NUM_ROLLOUT=100, THREADS=4, USE_TIS=1 (0 drops
# --use-tis), EVAL_INTERVAL=50, OUT=runs/ablation, QUATRAIN=build/release/quatrain. The four cells and the stress case:
#   for cell in qat-int4 bf16-bf16 bf16-int4 qat-bf16; do for seed in 42 43 44; do tools/ablation.sh $cell $seed; done; done
#   for cell in qat-int4 bf16-bf16 bf16-int4 qat-bf16; do GROUP=32 tools/ablation.sh $cell 42; done
#   for cell in qat-int4 bf16-int4; do for tis in 1 0; do CODE_MAX=3 NUM_ROLLOUT=200 USE_TIS=$tis tools/ablation.sh $cell 42; done; done
#   python3 tools/ablation_table.py runs/ablation
# A cell writes $OUT/CELL-gGROUP-cCODE_MAX-tisUSE_TIS-sSEED; cells may run side by side. A run that was stopped goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
cell=$1 seed=$2
shift 2
group=${GROUP:-128} code_max=${CODE_MAX:-7} num_rollout=${NUM_ROLLOUT:-100} use_tis=${USE_TIS:-1}
out=${OUT:-runs/ablation} quatrain=${QUATRAIN:-build/release/quatrain}
base=examples/models/tiny-qwen3-moe
data=examples/data/arithmetic
int4=$out/int4-g$group-c$code_max
case $cell in
  qat-int4) flag=1 checkpoint=$int4 how=() ;;
  bf16-bf16) flag=0 checkpoint=$base how=() ;;
  bf16-int4) flag=0 checkpoint=$int4 how=() ;;
  qat-bf16) flag=1 checkpoint=$base
    how=(--rollout-weights bf16 --quant-group-size "$group" --scope all-linear --code-max "$code_max") ;;
  *) echo "ablation.sh: CELL is qat-int4, bf16-bf16, bf16-int4 or qat-bf16" >&2; exit 2 ;;
esac
[ "$use_tis" = 0 ] || how+=(--use-tis)
mkdir -p "$out"
# Training derives codes from the BF16 weights at once, so how these are made does not matter.
(
  flock 9
  [ -d "$int4" ] || "$quatrain" convert --method rtn --input-dir $base --output-dir "$int4" --quant-group-size "$group" \
    --code-max "$code_max" --scope all-linear > "$int4.log" 2>&1
) 9> "$out/.lock"
run=$out/$cell-g$group-c$code_max-tis$use_tis-s$seed
OPEN_TRAINING_INT4_FAKE_QAT_FLAG=$flag "$quatrain" train --hf-checkpoint "$checkpoint" --ref-load $base --load "$run" \
  --save "$run" --save-interval 50 --prompt-data $data/train.jsonl --input-key prompt --label-key label \
  --apply-chat-template --rollout-shuffle --rollout-seed "$seed" --num-rollout "$num_rollout" --rollout-batch-size 32 \
  --n-samples-per-prompt 8 --rollout-max-response-len 256 --rollout-temperature 0.8 --global-batch-size 256 \
  --eval-interval "${EVAL_INTERVAL:-50}" --eval-prompt-data arithmetic $data/eval.jsonl --eval-temperature 0 \
  --eps-clip 0.2 --eps-clip-high 0.28 --lr 3e-5 --weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.98 \
  --use-dynamic-batch-size --threads "${THREADS:-4}" "${how[@]}" "$@"
