#!/usr/bin/env bash
# Everything that needs a GPU, in under nine minutes: the tests marked gpu, then a search on the device.
# Results go to studies/gpu_check/results/ (or to $1): small text files, to be committed with their date and versions.
set -uo pipefail
cd "$(dirname "$0")/../.."
results=${1:-studies/gpu_check/results}
mkdir -p "$results"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export KDNAS_CACHE="$scratch/cache"
python=${PYTHON:-python3}

{
  date -u +%Y-%m-%d
  "$python" -c 'import torch, optuna; print("torch", torch.__version__, "optuna", optuna.__version__)
print(torch.cuda.get_device_name(), "CUDA", torch.version.cuda)'
} >"$results/machine.txt" || { echo "no CUDA device here: nothing was run"; exit 1; }

status=0
timeout 240 "$python" -m pytest -m gpu -q --durations=10 >"$results/tests.txt" 2>&1 || status=1
timeout 270 "$python" -m kdnas search studies/digits --device cuda --out "$scratch/run" --trials 16 \
  --set final.seeds=1 >"$results/search.txt" 2>&1 || status=1
cp "$scratch/run/front.csv" "$results/" 2>/dev/null || true
tail -n 3 "$results/tests.txt" "$results/search.txt"
exit $status
