#!/usr/bin/env bash
# usage: run.sh RUN   every kind, one student, three seeds; stopped at any moment, the same command continues
set -Eeuo pipefail
: "${1:?usage: run.sh RUN}"
kd="type: kd, weight: 0.9, temperature: 4"
kinds="ce,{$kd, of: plain},{$kd, of: ensemble},{type: kd, of: peers, weight: 1, temperature: 1}"
kinds="$kinds,{type: kd, of: ema, weight: 1, temperature: 1},{type: exits, of: self}"
kinds="$kinds,{type: contrastive, of: plain, task_weight: 1}"
kdnas compare "$(dirname "$0")" --out "$1" --pick smallest --seeds 3 --vary "distillation.losses=$kinds"
