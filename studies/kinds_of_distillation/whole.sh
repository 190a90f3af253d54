#!/usr/bin/env bash
# usage: whole.sh RUNS   everything but the first comparison and the cross-modal ones; the same command continues
set -Eeuo pipefail
: "${1:?usage: whole.sh RUNS}"
here=$(dirname "$0")
kdnas search "$here/two_tasks" --out "$1/two_tasks" --set final.max_students=3

kdnas search "$here/born_again" --out "$1/born_again"

python "$here/new_speaker/prepare.py" "$KDNAS_DATA"
kdnas search "$here/new_speaker" --out "$1/with_the_target"
kdnas search "$here/new_speaker" --out "$1/without_the_target" --set data.unlabelled_images=null
kdnas search "$here/new_speaker" --out "$1/labels_alone" --set data.unlabelled_images=null --set distillation.task_weight=1 \
  --set 'distillation.losses=[]'

kd="type: kd, weight: 0.9, temperature: 4"
kdnas compare "$here/grey_by_colour" --out "$1/grey_by_colour" --pick smallest --seeds 3 \
  --vary "distillation.losses=ce,{$kd, of: colour},{$kd, of: grey},{$kd, of: ensemble}"

python "$here/parties/prepare.py" "$KDNAS_DATA"
[[ -f "$KDNAS_DATA/noise.key" ]] || head -c 32 /dev/urandom > "$KDNAS_DATA/noise.key"
kdnas compare "$here/parties" --out "$1/parties" --pick smallest --seeds 3 \
  --vary "distillation.losses=ce,{$kd, of: mean},{$kd, of: unlike},{type: kd, weight: 1, temperature: 1, of: votes}"

python "$here/continual/prepare.py" "$KDNAS_DATA"
kdnas search "$here/continual/before" --out "$KDNAS_DATA/runs/before"
kdnas search "$here/continual" --out "$1/continual"
kdnas search "$here/continual" --out "$1/forgetting" --set 'distillation.losses=[]'
