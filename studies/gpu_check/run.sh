#!/usr/bin/env bash
# Everything that needs a GPU, in under nine minutes: the tests marked gpu, the benchmarks, a search, and latencies.
# Results go to studies/gpu_check/results/ (or to $1): small text files with date, versions and device name.
# Each part has its own time limit (540 s together); what a part has found by then is kept.
# Environment: PYTHON (default python3), KDNAS_DATA (default ./data): see studies/gpu_check/README.md.
set -uo pipefail
cd "$(dirname "$0")/../.."
results=$(realpath -m "${1:-studies/gpu_check/results}")
python=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1

"$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' 2>/dev/null ||
  { echo "no CUDA device here (or no torch in $python): nothing was run" >&2; exit 1; }

mkdir -p "$results"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export KDNAS_CACHE="$scratch/cache"
data=${KDNAS_DATA:-$PWD/data}
status=0

# part NAME SECONDS COMMAND...: run it within the limit, its output into results/NAME.txt, and go on whatever happens.
part() {
  local name=$1 limit=$2 begun=$SECONDS code=0
  shift 2
  timeout --kill-after=5 "$limit" "$@" >"$results/$name.txt" 2>&1 || code=$?
  [[ $code -eq 0 ]] || status=1
  echo "$name: $((SECONDS - begun)) s of $limit, exit $code" | tee -a "$results/parts.txt"
}

: >"$results/parts.txt"
"$python" - >"$results/machine.txt" <<'PYTHON'
import datetime, platform, torch
print(datetime.datetime.now(datetime.timezone.utc).date().isoformat())
print(torch.cuda.get_device_name(), "x", torch.cuda.device_count(), "CUDA", torch.version.cuda)
print("torch", torch.__version__, "cuDNN", torch.backends.cudnn.version(), "Python", platform.python_version())
PYTHON

benchmark() { part "$1" "$2" "$python" studies/gpu_check/benchmark.py "$1" "$results/$1.json"; }

part tests 120 "$python" -m pytest -m gpu -q --durations=10 -p no:cacheprovider
benchmark throughput 70
benchmark together 70
benchmark teacher 40
benchmark kernels 40
benchmark processes 50

study=(studies/digits)
if [[ -f "$data/cifar10.tar.xz" || -f "$data/cifar10.npz" ]] && [[ -d "$data/teachers/cifar10" ]]; then
  study=(studies/cifar10_resnet --data-root "$data")
  [[ -f "$data/cifar10.tar.xz" ]] || study+=(--set data.type=npz --set data.path=cifar10.npz)
fi
echo "search of ${study[0]}" >>"$results/machine.txt"
part search 85 "$python" -m kdnas search "${study[@]}" --device cuda --out "$scratch/run" --trials 8 \
  --set final.seeds=1 --set final.max_students=3
cp "$scratch/run/front.csv" "$scratch/run/trials.csv" "$results/" 2>/dev/null || true
part latency 40 "$python" -m kdnas measure "$scratch/run" --target cuda --json

tail -n 3 "$results/tests.txt"
cat "$results/parts.txt"
exit $status
