#!/usr/bin/env bash
# The published recipe from text to exported student, on the machine where it is called: prepare, train, export, evaluate.
#
#   launch/speedrun.sh -- --workdir=DIR [--config.data.source=TEXT ...]          configs/mobilebert.py at full size
#   launch/speedrun.sh -- --workdir=DIR --config=mobilebert:smoke                the same in miniature
#
# What follows -- are the arguments of `jaxdistill train`. The same command resumes. The other scripts call this one with
# --speedrun, once a process; then the text is prepared by `train` itself, and the first process exports and evaluates.
#
#   --plan=v5e:4x4        first compiles the recipe for these slices: does it fit, how long will it take
#   --evaluate_on=TEXT    a text that was not trained on (default:heldout)
#   --out=DIR             where the student goes (WORKDIR/exported)
#   --dry_run             prints the commands
#
# Ends with the exit code of the step that failed, 75 if the machine was taken away.

# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

plan='' evaluate_on=default:heldout out=''
parse "plan evaluate_on out" "" "$@"
check_train

remind() {
    local code=$?
    if $dry_run; then say "dry run: nothing was run"; else say "still billed: this machine if it is rented, and what is stored in $workdir"; fi
    exit "$code"
}
trap remind EXIT
trap 'exit 130' INT

distributed=false recipe='' overrides=()
for ((i = 0; i < ${#train[@]}; i++)); do
    case ${train[i]} in
        --distributed | --coordinator* | --num_processes*) distributed=true ;;
        --config=*) recipe=${train[i]#*=} ;;
        --config) recipe=${train[++i]-} ;;
        --config.*) overrides+=("${train[i]}") ;;
    esac
done
if [[ -z $recipe ]]; then recipe=mobilebert train=(--config=mobilebert "${train[@]}"); fi
out=${out:-$workdir/exported}
alone=()
if $distributed; then alone=(env JAX_PLATFORMS=cpu); fi  # one host of several cannot use its share of a slice by itself

# By the trainer's own library: not every machine that reads a bucket has gcloud.
exported() {
    python -c 'import sys; from etils import epath; sys.exit(not epath.Path(sys.argv[1], "README.md").exists())' "$out"  # written last
}

# What the student can read, 128 tokens at most: the rows of the text are cut accordingly.
longest() {
    python -c 'import json, sys; from etils import epath
print(min(128, json.loads(epath.Path(sys.argv[1], "config.json").read_text())["data"]["sequence_length"]))' "$workdir"
}

process=${SLURM_PROCID:-${TPU_WORKER_ID:-${JAXDISTILL_PROCESS:-0}}}
if [[ -n $plan && $process == 0 ]]; then run "${alone[@]}" jaxdistill plan --config="$recipe" --topology="$plan" "${overrides[@]}"; fi
if ! $distributed; then run jaxdistill prepare --config="$recipe" --workdir="$workdir" "${overrides[@]}"; fi
run jaxdistill train "${train[@]}"
[[ $process == 0 ]] || exit 0
if $dry_run || ! exported; then run "${alone[@]}" jaxdistill export --model="$workdir" --out="$out"; fi
if $dry_run; then length=128; else length=$(longest); fi
run "${alone[@]}" jaxdistill evaluate --model="$out" --source="$evaluate_on" --teacher="$workdir/stages/teacher" \
    --sequence_length="$length"
