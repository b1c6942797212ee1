#!/usr/bin/env bash
# One cell of the ablations of docs/results.md: tools/ablation.sh CELL SEED [flags of quatrain train].
# CELL says how training and rollout read the weights:
#   qat-int4    both the same codes             bf16-bf16  both the same BF16 weights
#   bf16-int4   rollout re-quantised weights    qat-bf16   training codes, rollout BF16
# Variables: GROUP=128, CODE_MAX=7 (3 is the 3-bit grid of the stress case), NUM_ROLLOUT=100, THREADS=4, USE_TIS=1 (0 drops
# --use-tis), EVAL_INTERVAL=50, SAVE_INTERVAL=50, OUT=runs/ablation, QUATRAIN=build/release/quatrain; of qat-int4 alone
# METHOD=rtn or gptq with CALIBRATED=1 (start from those codes, their scales frozen), REGROUP=N (cut the masters into groups
# of N) and FROM=RUN (start from that run's checkpoint of rollout FROM_STEP=50). The four cells, the stress case, sizes of groups,
# calibration, and 128 -> 64 in the middle of a run:
#   for cell in qat-int4 bf16-bf16 bf16-int4 qat-bf16; do for seed in 42 43 44; do tools/ablation.sh $cell $seed; done; done
#   for cell in qat-int4 bf16-int4 qat-bf16; do GROUP=32 tools/ablation.sh $cell 42; done
#   for cell in qat-int4 bf16-int4; do for tis in 1 0; do CODE_MAX=3 NUM_ROLLOUT=200 USE_TIS=$tis tools/ablation.sh $cell 42; done; done
#   for group in 32 64; do for seed in 42 43 44; do GROUP=$group tools/ablation.sh qat-int4 $seed; done; done
#   for method in rtn gptq; do METHOD=$method CALIBRATED=1 tools/ablation.sh qat-int4 42; done
#   REGROUP=64 FROM=runs/ablation/qat-int4-g128-c7-tis1-s42 tools/ablation.sh qat-int4 42
#   python3 tools/ablation_table.py runs/ablation
# A cell writes $OUT/CELL-gGROUP-cCODE_MAX-tisUSE_TIS[-METHOD][-toREGROUP]-sSEED; cells may run side by side. A run that was
# stopped goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
cell=$1 seed=$2
shift 2
group=${GROUP:-128} code_max=${CODE_MAX:-7} num_rollout=${NUM_ROLLOUT:-100} use_tis=${USE_TIS:-1}
method=${METHOD:-rtn} calibrated=${CALIBRATED:-0} regroup=${REGROUP:-}
out=${OUT:-runs/ablation} quatrain=${QUATRAIN:-build/release/quatrain}
base=examples/models/tiny-qwen3-moe
data=examples/data/arithmetic
int4=$out/int4-g$group-c$code_max
run=$out/$cell-g$group-c$code_max-tis$use_tis
[ "$method" = rtn ] || int4+=-$method
case $cell in
  qat-int4) flag=1 checkpoint=$int4 how=() ;;
  bf16-bf16) flag=0 checkpoint=$base how=() ;;
  bf16-int4) flag=0 checkpoint=$int4 how=() ;;
  qat-bf16) flag=1 checkpoint=$base
    how=(--rollout-weights bf16 --quant-group-size "$group" --scope all-linear --code-max "$code_max") ;;
  *) echo "ablation.sh: CELL is qat-int4, bf16-bf16, bf16-int4 or qat-bf16" >&2; exit 2 ;;
esac
[ "$use_tis" = 0 ] || how+=(--use-tis)
[ "$calibrated" = 0 ] || { how+=(--qat-init calibrated); run+=-$method; }
[ -z "$regroup" ] || { how+=(--requantise-group-size "$regroup"); run+=-to$regroup; }
run+=-s$seed
load=$run
[ -z "${FROM:-}" ] || [ -e "$run/latest_checkpointed_iteration.txt" ] || { load=$FROM; how+=(--ckpt-step "${FROM_STEP:-50}"); }
convert=(--method "$method")
[ "$code_max" = 7 ] || convert+=(--code-max "$code_max")
[ "$method" = rtn ] || convert+=(--data-dir examples/data/calibration)
mkdir -p "$out"
# Training derives codes from the BF16 weights at once, so how these are made matters to CALIBRATED=1 alone.
(
  flock 9
  [ -d "$int4" ] || "$quatrain" convert "${convert[@]}" --input-dir $base --output-dir "$int4" \
    --quant-group-size "$group" --scope all-linear > "$int4.log" 2>&1
) 9> "$out/.lock"
OPEN_TRAINING_INT4_FAKE_QAT_FLAG=$flag "$quatrain" train --hf-checkpoint "$checkpoint" --ref-load $base --load "$load" \
  --save "$run" --save-interval "${SAVE_INTERVAL:-50}" --prompt-data $data/train.jsonl --input-key prompt --label-key label \
  --apply-chat-template --rollout-shuffle --rollout-seed "$seed" --num-rollout "$num_rollout" --rollout-batch-size 32 \
  --n-samples-per-prompt 8 --rollout-max-response-len 256 --rollout-temperature 0.8 --global-batch-size 256 \
  --eval-interval "${EVAL_INTERVAL:-50}" --eval-prompt-data arithmetic $data/eval.jsonl --eval-temperature 0 \
  --eps-clip 0.2 --eps-clip-high 0.28 --lr 3e-5 --weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.98 \
  --use-dynamic-batch-size --threads "${THREADS:-4}" "${how[@]}" "$@"
