#!/usr/bin/env bash
# usage: cross_modal.sh RUNS   who sees teaches who hears, and the other way round; the same command continues
set -Eeuo pipefail
: "${1:?usage: cross_modal.sh RUNS}"
for study in sees_by_hearing hears_by_seeing; do
  kd="type: kd, weight: 0.9, temperature: 4"
  kdnas compare "$(dirname "$0")/$study" --out "$1/$study" --pick smallest --seeds 3 \
    --vary "distillation.losses=ce,{$kd, of: hears},{$kd, of: sees},{$kd, of: ensemble}"
done
