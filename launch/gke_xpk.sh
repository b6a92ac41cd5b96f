#!/usr/bin/env bash
# Runs `jaxdistill train` on a GKE cluster until it is done, through xpk: create a workload, wait, delete it, go on if needed.
#
#   launch/gke_xpk.sh --project=P --zone=Z --cluster=C --type=v5e-16 -- --config=mobilebert --workdir=gs://BUCKET/RUN
#
# What follows -- are the arguments of `jaxdistill train`. xpk (pip install xpk) and kubectl must be there, and the cluster, which
# `xpk cluster create` makes and which is never deleted here. A workload that was preempted or has failed is created
# again and the run goes on from its last checkpoint.
#
#   --project, --zone, --cluster   whose and where
#   --type                xpk's --tpu-type: v5e-16 (or v5litepod-16), v5p-8, v6e-8, tpu7x-8
#   --name                of the workload (jaxdistill), at most 16 characters; one that another run made is left alone, and refused
#   --image               a Docker image that has jaxdistill installed; without it the code of this folder is put into
#                         python:3.11 and installed there
#   --create_flag=FLAG    passed on to `xpk workload create`, any number of times
#   --speedrun            runs launch/speedrun.sh in the place of `jaxdistill train` (not with --image)
#   --retries=20          failures in a row before giving up; preemptions are none
#   --dry_run             prints the commands
#
# Ends with 0 when the run is done. Ctrl-C leaves the workload alone; the same command finds it again.

# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

project='' zone='' cluster='' type='' name=jaxdistill image='' speedrun=false
parse "project zone cluster type name image" "speedrun" "$@"
need project zone cluster type
check_train remote
installed xpk kubectl gcloud
[[ $name =~ ^[a-z]([-a-z0-9]{0,14}[a-z0-9])?$ ]] ||
    refuse "--name='$name' is no name of a workload; give at most 16 small letters, digits and dashes"
type=${type/#v5e-/v5litepod-}

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
where=(--cluster="$cluster" --project="$project" --zone="$zone")
delete=(xpk workload delete --workload="$name" "${where[@]}" --force)  # without --workload it would delete everybody's

mark=$(printf %s "$workdir" | cksum | cut -d ' ' -f 1)  # in its command, by which a later call knows a workload as this run's

present=false  # whether this run's workload is there: nothing else is ever deleted
if $dry_run; then scratch=/tmp; else scratch=$(mktemp -d); fi

remind() {
    local code=$?
    if $dry_run; then
        say "dry run: nothing was created"
    else
        rm -rf "$scratch"
        if $present; then say "STILL BILLED until it ends or you delete it: workload $name: $(quoted "${delete[@]}")"; fi
        say "still billed: cluster $cluster in $zone, with all its nodes, until: xpk cluster delete $(quoted "${where[@]}")"
        say "still billed: what is stored in $workdir"
    fi
    exit "$code"
}
trap remind EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

create() {
    local code=0 command=(jaxdistill train --distributed "${train[@]}") before='' from=(--docker-image="$image")
    if $speedrun; then command=(bash launch/speedrun.sh -- --distributed "${train[@]}"); fi
    if [[ -z $image ]]; then
        from=(--base-docker-image=python:3.11 --script-dir="$root")
        before="pip install --quiet '.[tpu]' && "
    fi
    # exec: xpk passes SIGTERM on to its child alone, and that must be the trainer, which saves. It has as long as asked here.
    set -- xpk workload create --workload="$name" "${where[@]}" --tpu-type="$type" --num-slices=1 "${from[@]}" \
        --termination-grace-period-seconds=60 "${create_flags[@]}" --command="export JAXDISTILL_RUN=$mark; ${before}exec $(quoted "${command[@]}")"
    if $dry_run; then run "$@"; return; fi
    run "$@" 2>&1 | tee "$scratch/answer" || code=$?
    if ((code == 0)); then
        present=true
    elif grep -qi 'already exists' "$scratch/answer"; then
        if ! kubectl get jobset "$name" --output=yaml | grep -qF "JAXDISTILL_RUN=$mark;"; then
            say "workload $name exists and is not of this run; give another --name"
            return 2
        fi
        present=true
    elif grep -qE '^usage:|PERMISSION_DENIED|Forbidden' "$scratch/answer"; then
        return 2  # a person must change something; all else, quota above all, may pass
    else
        return 1
    fi
}

# Prints the exit codes of the workload's containers. 2 and 3 explain why the others were stopped, 75 says that all is saved.
exit_code() {
    local codes code
    codes=$(kubectl get pods --selector="xpk.google.com/workload=$name" \
        --output=jsonpath='{.items[*].status.containerStatuses[*].state.terminated.exitCode}') || codes=''
    for code in 2 3 75; do
        if [[ " $codes " == *" $code "* ]]; then echo "$code"; return; fi
    done
    echo 1
}

delete_workload() {
    run "${delete[@]}" || return 1
    present=false
}

attempt() {
    local code=0
    if ! $present; then create || return; fi
    run xpk workload list "${where[@]}" --wait-for-job-completion="$name" || code=$?
    case $code in
        0) ;;
        125)  # it has failed
            code=$(exit_code)
            run kubectl logs --selector="xpk.google.com/workload=$name" --prefix --tail=30 || true
            ;;
        124) return 75 ;;  # a week has passed: wait for another
        *) return 1 ;;     # nobody knows how it is: look again
    esac
    delete_workload || return 1
    return "$code"
}

if $dry_run; then
    create
    run xpk workload list "${where[@]}" --wait-for-job-completion="$name"
    finished
    run "${delete[@]}"
    exit
fi

code=0
until_done attempt || code=$?
exit "$code"
