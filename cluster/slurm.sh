#!/usr/bin/env bash
# Slurm: one batchgen job on as many nodes as the allocation has. Submit with: sbatch cluster/slurm.sh JOB OUTPUT
#SBATCH --job-name=batchgen
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
set -euo pipefail

job=${1:?usage: sbatch cluster/slurm.sh JOB OUTPUT}
output=${2:?OUTPUT is a folder that all nodes share}
venv=${VENV:-.venv}
port=${RAY_PORT:-6379}

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Of all its addresses one that other nodes reach: many machines take their own name for 127.0.1.1.
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" sh -c 'hostname --ip-address; hostname --all-ip-addresses' |
  tr ' ' '\n' | awk '/^[0-9]+[.][0-9.]+$/ && !/^127[.]/ && !found {print; found = 1}')
: "${address:?no IPv4 address of $head is known there}"
# Ray runs any code that its clients send: a token keeps other users of the machines out.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(openssl rand -hex 32)}

# Ray's workers would give way to every other process of their machines, and its engines with them.
export RAY_worker_niceness=${RAY_worker_niceness:-0}

# A step does not take over the allocation's cores a task by itself.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

srun --nodes=1 --ntasks=1 --nodelist="$head" \
  "$venv/bin/ray" start --head --node-ip-address="$address" --port="$port" --include-dashboard=false --block &
tries=0
until "$venv/bin/ray" status --address "$address:$port" >/dev/null 2>&1; do
  tries=$((tries + 1))
  if [ "$tries" -ge 60 ]; then
    echo "no Ray head at $address:$port" >&2
    exit 1
  fi
  sleep 2
done
# The run starts on the head's GPUs; engines on the other nodes are added as those join.
others=
if [ "$SLURM_NNODES" -gt 1 ]; then
  # Ray gives up a node that the network cut off for half a minute, and that node's Ray ends: it joins again.
  srun --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --exclude="$head" \
    sh -c 'while :; do "$0" start --address="$1" --block; sleep 10; done' "$venv/bin/ray" "$address:$port" &
  others=$!
fi

# The head's node runs the driver. At a time limit or preemption it gets SIGTERM, commits what is in flight and ends
# with 75; the requeued job runs the same command and goes on.
"$venv/bin/batchgen" run "$job" --output "$output" --address "$address:$port" &
driver=$!
trap 'kill -TERM "$driver"' TERM
code=0
wait "$driver" || code=$?
while kill -0 "$driver" 2>/dev/null; do code=0; wait "$driver" || code=$?; done
# 143: it was told before it listened, or in the second in which its Ray ends.
if [ "$code" -eq 75 ] || [ "$code" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
# While their head is there the other nodes leave it at once; without it they try to for half a minute, and complain.
if [ -n "$others" ]; then kill "$others" && wait "$others" || true; fi
exit "$code"
