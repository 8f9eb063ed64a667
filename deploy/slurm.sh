#!/bin/bash
# xtra train as a Slurm job, one task a GPU; docs/launchers.md explains it. Runs again, from the newest checkpoint, after a
# time limit, a preemption or a lost node, until the run is whole.
#
#   sbatch --nodes 2 --gpus-per-node 8 --ntasks-per-node 8 deploy/slurm.sh xtra1k_b16 --data s3://b/data --out s3://b/run
#
#SBATCH --job-name=xtra
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@180
#SBATCH --open-mode=append
#SBATCH --output=xtra-%j.log
set -u
XTRA=${XTRA:-xtra}         # the command, e.g. "uv run xtra" or "/path/.venv/bin/xtra"
MAX_STARTS=${MAX_STARTS:-20}

if [ $# -lt 1 ]; then
    echo "slurm.sh: RECIPE is missing: sbatch slurm.sh RECIPE --data DATASET --out RUN" >&2
    exit 2
fi

again=no
# USR1 comes to this shell 180 s before the time limit. The tasks get SIGTERM: they save and exit 143.
save() {
    again=yes
    scancel --signal=TERM "$SLURM_JOB_ID"
}
trap save USR1

read -ra command <<<"$XTRA"
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "${command[@]}" train "$@" &
step=$!
# A signal with a trap ends `wait` before srun has ended: wait again, until it has.
code=0
while wait "$step"; code=$?; kill -0 "$step" 2>/dev/null; do :; done

# 75: a rank was lost, or did not come; from 134 on a process died of a signal. Mistakes (2) are not tried again.
if [ "$again" = yes ] && [ "$code" -ne 0 ]; then
    echo "slurm.sh: saved before the time limit (exit $code)"
elif [ "$code" -eq 75 ] || { [ "$code" -ge 134 ] && [ "$code" -ne 143 ]; }; then
    echo "slurm.sh: a rank was lost (exit $code)"
else
    exit "$code"
fi
if [ "${SLURM_RESTART_COUNT:-0}" -ge "$MAX_STARTS" ]; then
    echo "slurm.sh: started $MAX_STARTS times: sbatch the same command to go on" >&2
    exit "$code"
fi
scontrol requeue "$SLURM_JOB_ID"
