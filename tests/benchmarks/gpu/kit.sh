#!/usr/bin/env bash
# kit.sh [PARTS]: everything on the GPU machine, in order; run it again and it goes on where it stopped.
#
# 1. puts the parts that this call carries aside, and says which are missing     (exit code 4: carry those)
# 2. once all are there, installs them
# 3. measures step after step, until GPU_CALL_SECONDS are used up                (exit code 5: call again)
#
# The state is in GPU_STORE, which lives as long as the machine. Results: build/gpu.*, and copies in $OUT if that is
# set, with the logs. GPU_STEPS, one line of arguments each, replaces the steps. It changes no setting of the card.
set -euo pipefail
cd "$(dirname "$0")/../../.."

parts=${1:-build/gpu-parts}
store=${GPU_STORE:-/tmp/capflow-gpu}
limit=${GPU_CALL_SECONDS:-570}
# A step is begun only if so much is left; half of it is loading the model.
need=${GPU_STEP_SECONDS:-330}
steps=${GPU_STEPS:-"--model 7b --videos 0
--model 7b --images 0
--model 72b --videos 0 --in-flight 40 --rival-samples 40
--model 72b --images 0 --in-flight 16 --rival-samples 16
--model 7b --videos 0 --rival-samples 0 --tune long-steps
--model 7b --videos 0 --rival-samples 0 --tune fp8-cache
--model 7b --images 0 --rival-samples 0 --tune vision-graphs
--model 7b --videos 0 --bare"}

results=$store/results
mkdir -p "$results" "$store/work"
keep() {
  mkdir -p build && cp "$results"/gpu.* build/ 2>/dev/null || true
  [[ -z ${OUT:-} ]] && return
  cp "$results"/gpu.* "$OUT"/ 2>/dev/null || true
  find "$store/work" -name '*.log' -printf '%T@ %p\n' | sort -n | cut -d' ' -f2- |
    while read -r log; do printf '\n== %s\n' "$log"; tail -c 20000 "$log"; done | tail -c 2000000 > "$OUT/logs.txt"
}
trap keep EXIT

python=$(tests/benchmarks/gpu/install.sh "$parts" "$store")

# 72b fits from 100 GiB on.
gpu_mib=$(nvidia-smi --id=0 --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null || echo 0)
while read -r step; do
  mark=$store/done-$(tr -c 'a-z0-9\n' '-' <<< "$step")
  [[ -f $mark ]] && continue
  if [[ $step == *"--model 72b"* ]] && (( gpu_mib < 102400 )); then
    echo "left out: $step: it needs 100 GiB, the card has $((gpu_mib / 1024))" >&2
    continue
  fi
  if (( SECONDS + need > limit )); then
    echo "call again: next is $step" >&2
    exit 5
  fi
  # Another step may fit where this one fails; its row says why.
  # shellcheck disable=SC2086
  "$python" -m tests.benchmarks.gpu $step --work "$store/work/$(basename "$mark")" --output "$results" || true
  touch "$mark"
done <<< "$steps"
