#!/usr/bin/env bash
#SBATCH --job-name=jaxdistill
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120
# Runs `jaxdistill train` on a Slurm cluster until it is done, one process a GPU. Two ways to say the same:
#
#   launch/slurm.sh --partition=gpu --nodes=2 --gpus_per_node=8 -- --config=mobilebert --workdir=/shared/RUN
#   sbatch --partition=gpu --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm.sh -- --config=... --workdir=/shared/RUN
#
# What follows -- are the arguments of `jaxdistill train`; all nodes must see the workdir. Activate the environment that
# has jaxdistill (pip install '.[cuda]') first: the job inherits it. Two minutes before the time limit, or when preempted,
# the run saves and ends with exit code 75, and the job is queued again.
#
#   --partition           where
#   --nodes               how many (1)
#   --gpus_per_node       and how many GPUs each (8)
#   --time                limit of one turn, as Slurm writes it
#   --create_flag=FLAG    passed on to sbatch, any number of times: --create_flag=--account=A
#   --speedrun            runs launch/speedrun.sh in the place of `jaxdistill train`
#   --retries=20          failures in a row, within one turn, before giving up
#   --dry_run             prints the commands

here=$(dirname -- "${BASH_SOURCE[0]}")
# In a job this file is a copy in a folder of Slurm's own; its neighbours are where it was submitted.
[[ -f $here/common.sh ]] || here=${JAXDISTILL_LAUNCH:-${SLURM_SUBMIT_DIR:-.}/launch}
[[ -f $here/common.sh ]] || { echo "slurm.sh: no $here/common.sh; submit from the top of the repository" >&2; exit 2; }
# shellcheck source=launch/common.sh
source "$here/common.sh"
script=slurm.sh  # Slurm calls its copy slurm_script

partition='' nodes=1 gpus_per_node=8 time='' speedrun=false
parse "partition nodes gpus_per_node time" "speedrun" "$@"
check_train

in_job=false
if [[ -n ${SLURM_JOB_ID-} && -z $partition ]]; then in_job=true; fi

remind() {
    local code=$?
    if $dry_run; then
        say "dry run: nothing was submitted"
    elif $in_job; then
        say "job $SLURM_JOB_ID gives its nodes back with this line, unless it was queued again: squeue --job=$SLURM_JOB_ID"
    elif [[ -n ${job-} ]]; then
        say "job $job is charged to your account while it runs: squeue --job=$job; scancel $job"
    else
        say "nothing was submitted, nothing is charged"
    fi
    exit "$code"
}

train_all=(jaxdistill train --distributed "${train[@]}")
if $speedrun; then train_all=(bash "$here/speedrun.sh" -- --distributed "${train[@]}"); fi
# Without --kill-on-bad-exit=0 the first process that has saved would take the others with it while they save.
steps=(srun --kill-on-bad-exit=0 "${train_all[@]}")

if ! $in_job; then
    need partition
    trap remind EXIT
    JAXDISTILL_LAUNCH=$(cd -- "$here" && pwd)
    export JAXDISTILL_LAUNCH
    submit=(sbatch --parsable --partition="$partition" --nodes="$nodes"
        --gpus-per-node="$gpus_per_node" --ntasks-per-node="$gpus_per_node")  # not --gpus-per-task: JAX picks among a node's
    if [[ -n $time ]]; then submit+=(--time="$time"); fi
    options=(--retries="$retries")
    if $speedrun; then options+=(--speedrun); fi
    submit+=("${create_flags[@]}" "$JAXDISTILL_LAUNCH/slurm.sh" "${options[@]}" -- "${train[@]}")
    if $dry_run; then
        run "${submit[@]}"
        echo "# and in the job:"
        run "${steps[@]}"
        exit
    fi
    installed sbatch
    command -v jaxdistill >/dev/null || refuse "no jaxdistill here, and a job inherits this environment; activate the one that has it"
    job=$(run "${submit[@]}")
    job=${job%%;*}
    echo "$job"
    exit
fi

trap remind EXIT
trap 'preempted=true' TERM  # srun's processes get it too; we wait for what they say
preempted=false
gpus=${SLURM_GPUS_ON_NODE:-1} tasks=${SLURM_NTASKS_PER_NODE:-1}
[[ $gpus == "$tasks" ]] || refuse "$gpus GPUs a node and $tasks processes: give --ntasks-per-node=$gpus, JAX takes one GPU a process"

attempt() {
    local code=0
    run "${steps[@]}" || code=$?
    if ((code == 75)) || { ((code)) && $preempted; }; then
        # A job that somebody cancelled ends in the same way, and must stay cancelled.
        if [[ $(squeue --noheader --job="$SLURM_JOB_ID" --format=%T) == RUNNING ]]; then
            say "preempted; the job is queued again and goes on from the last checkpoint"
            run scontrol requeue "$SLURM_JOB_ID" || say "not queued again; the same command resumes"
        else
            say "preempted or cancelled; unless Slurm queues the job again, the same command resumes"
        fi
        exit 75
    fi
    return "$code"
}

if $dry_run; then
    run "${steps[@]}"
    exit
fi
code=0
until_done attempt || code=$?
exit "$code"
