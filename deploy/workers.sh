#!/usr/bin/env bash
# Start several workers on this host: workers.sh WORKERS GPUS_PER_WORKER [OPTIONS OF celery worker]
#
# Worker i holds the GPUs from i * GPUS_PER_WORKER on, is named gpu<i>, and serves its pages on port CAPFLOW_METRICS_PORT + i.
# SIGTERM drains them all. A worker that fails is started again after 20 s, at once if it asks for it (75). One that ends
# because a setting must be fixed (2) is not; the script ends with the last worker.
set -euo pipefail
[ $# -ge 2 ] || { echo "expected: workers.sh WORKERS GPUS_PER_WORKER [OPTIONS]" >&2; exit 2; }
readonly count=$1 gpus=$2
shift 2
export CAPFLOW_TENSOR_PARALLEL_SIZE=$gpus

# A signal ends `wait` early, so wait again while the process lives.
wait_for() {
    local code=0
    wait "$1" || code=$?
    while kill -0 "$1" 2>/dev/null; do
        code=0
        wait "$1" || code=$?
    done
    return $code
}

keep_running() {
    local number=$1 is_stopping=no worker='' code
    shift
    trap 'is_stopping=yes; [ -z "$worker" ] || kill -TERM "$worker" 2>/dev/null || true' TERM INT
    CUDA_VISIBLE_DEVICES=$(seq -s, $((number * gpus)) $((number * gpus + gpus - 1)))
    CAPFLOW_METRICS_PORT=$((${CAPFLOW_METRICS_PORT:-9400} + number))
    export CUDA_VISIBLE_DEVICES CAPFLOW_METRICS_PORT
    while true; do
        # The name stays the same over restarts, because it names the worker's own queue.
        celery -A capflow_tasks worker -Q gpu -n "gpu$number@%h" "$@" &
        worker=$! code=0
        wait_for "$worker" || code=$?
        if [ $is_stopping = yes ] || [ $code = 0 ] || [ $code = 2 ]; then
            return $code
        fi
        if [ $code != 75 ]; then
            sleep 20 &
            worker=$!
            wait "$worker" || true
            [ $is_stopping = no ] || return $code
        fi
    done
}

all=()
for number in $(seq 0 $((count - 1))); do
    keep_running "$number" "$@" &
    all+=($!)
done
trap 'kill -TERM "${all[@]}" 2>/dev/null || true' TERM INT
worst=0
for each in "${all[@]}"; do
    code=0
    wait_for "$each" || code=$?
    [ $code -le $worst ] || worst=$code
done
exit $worst
