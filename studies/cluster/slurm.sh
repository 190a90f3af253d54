#!/bin/bash
# A search on all nodes of a SLURM job: sbatch studies/cluster/slurm.sh STUDY RUN [kdnas search's options]
# RUN, the data (KDNAS_DATA) and KDNAS_CACHE lie on a file system that every node mounts.
#SBATCH --job-name=kdnas
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
# With GPUs: #SBATCH --gpus-per-node=4, and --set executor.gpus=1 below.
set -euo pipefail

study=$1 run=$2
shift 2
export KDNAS_CACHE=${KDNAS_CACHE:-$(dirname "$run")/kdnas-cache}
# Whoever reaches the cluster and has this runs code on it.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
export RAY_USAGE_STATS_ENABLED=0
head=$(hostname --ip-address | awk '{print $1}')

# A job that is requeued, or told to stop in time, goes on: it is the same command.
exec srun ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_NNODES" --num-cpus "$SLURM_CPUS_PER_TASK" -- \
  kdnas search "$study" --out "$run" --set executor=ray --set executor.address=auto "$@"
