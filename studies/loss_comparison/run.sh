#!/usr/bin/env bash
# usage: run.sh RUN   every recipe, two students, three seeds; stopped at any moment, the same command continues
set -Eeuo pipefail
: "${1:?usage: run.sh RUN}"
logits="{type: kd, weight: 0.9, temperature: 4},{type: kd, weight: 0.9, temperature: 4, standardise: true}"
logits="$logits,{type: dkd, task_weight: 1, warmup_fraction: 0.083},{type: dist, task_weight: 1},{type: nkd, task_weight: 1}"
logits="$logits,{type: wsld, task_weight: 1},{type: ttm, task_weight: 1},{type: mlld, task_weight: 1},{type: reverse_kl, weight: 0.9}"
features=""
for loss in hint attention similarity rkd pkt crd vid nst review correlation srrl sem_ckd cat_kd; do
  features="$features,{type: $loss, task_weight: 1}"
done
own="{type: kd, of: peers, weight: 1, temperature: 1},{type: kd, of: ema, weight: 1, temperature: 1},{type: exits, of: self}"
kdnas compare "$(dirname "$0")" --out "$1" --pick smallest --pick largest --seeds 3 \
  --vary "distillation.losses=ce,$logits$features,$own"
