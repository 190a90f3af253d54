#!/usr/bin/env bash
# Everything that needs a GPU, in under nine minutes: the tests marked gpu, the benchmarks, a search, and latencies.
# Results go to studies/gpu_check/results/ (or to $1): small text files with date, versions and device name.
# Each part has its own time limit (540 s together) and its outcome is written; none stops those after it.
# Environment: PYTHON (default python3), KDNAS_DATA (default ./data), WHEELS (default ./.whl), DEVICE (default cuda;
# cpu tries the program itself, small): see studies/gpu_check/README.md.
set -uo pipefail
cd "$(dirname "$0")/../.."
results=$(realpath -m "${1:-studies/gpu_check/results}")
python=${PYTHON:-python3} device=${DEVICE:-cuda} wheels=${WHEELS:-$PWD/.whl}
export PYTHONPATH="$PWD:$PWD/studies/trial_speed${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
export KDNAS_DATA="${KDNAS_DATA:-$PWD/data}"

[[ $device == cpu ]] || "$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' 2>/dev/null ||
  { echo "no CUDA device here (or no torch in $python): nothing was run" >&2; exit 1; }

mkdir -p "$results"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export KDNAS_CACHE="$scratch/cache"
status=0

# part NAME SECONDS COMMAND...: run it within the limit, its output into results/NAME.txt, and go on whatever happens.
part() {
  local name=$1 limit=$2 begun=$SECONDS code=0
  shift 2
  timeout --kill-after=5 "$limit" "$@" >"$results/$name.txt" 2>&1 || code=$?
  [[ $code -eq 0 ]] || status=1
  echo "$name: $((SECONDS - begun)) s of $limit, exit $code" | tee -a "$results/parts.txt"
}

quick=()
[[ $device == cuda ]] || quick=(--device "$device" --quick)
benchmark() { part "$1" "$2" "$python" studies/gpu_check/benchmark.py "$1" "$results/$1.json" "${quick[@]}"; }

: >"$results/parts.txt"
if compgen -G "$wheels/*.whl" >/dev/null; then  # packages that this machine lacks and cannot download
  part packages 30 "$python" -m pip install --no-index --no-deps --no-compile --upgrade --target "$scratch/site" \
    "$wheels"/*.whl
  export PYTHONPATH="$PYTHONPATH:$scratch/site"
fi

# What the goals are about comes first.
# shellcheck disable=SC2046
part tests 85 "$python" -m pytest $(grep -rl "mark.gpu" tests) -m gpu -q --durations=10 -p no:cacheprovider \
  --continue-on-collection-errors
benchmark throughput 50
benchmark together 50
benchmark teacher 30
benchmark equality 50
benchmark derived 30
benchmark texts 25
benchmark latency 30
benchmark loops 35
benchmark energy 20
benchmark kernels 20
benchmark processes 25

study=(studies/digits)
if [[ -d "$KDNAS_DATA/teachers/cifar10" ]]; then
  study=(studies/cifar10_resnet)
  [[ -f "$KDNAS_DATA/cifar10.tar.xz" ]] || study+=(--set data.type=npz --set data.path=cifar10.npz)
fi
part search 60 "$python" -m kdnas search "${study[@]}" --device "$device" --out "$scratch/run" --trials 8 \
  --set executor.per_device=auto --set final.seeds=1 --set final.max_students=2
cp "$scratch/run/front.csv" "$scratch/run/trials.csv" "$results/" 2>/dev/null || true

"$python" studies/gpu_check/summary.py "$results" || status=1
exit $status
