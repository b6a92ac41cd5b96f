#!/usr/bin/env bash
# Runs `jaxdistill train` on a TPU slice until it is done: queued resource, install on all workers, run, logs, delete.
#
#   launch/tpu_vm.sh --project=P --zone=Z --type=v5e-16 [--spot] -- --config=mobilebert --workdir=gs://BUCKET/RUN
#
# What follows -- are the arguments of `jaxdistill train`. A slice that is taken away is created again and the run goes on
# from its last checkpoint; a lost ssh finds the run again. The workers get the code as it lies here (a recipe of your own
# belongs into configs/).
#
#   --project, --zone     whose and where
#   --type                v2-8 ... v4-32, v5e-16 (or v5litepod-16), v5p-8, v6e-8
#   --name                of the slice (jaxdistill); one that another run made is left alone, and refused
#   --spot                cheaper, and may be taken away at any moment
#   --runtime_version     another image than the plain Ubuntu one of the generation
#   --create_flag=FLAG    passed on to `gcloud compute tpus queued-resources create`, any number of times
#   --speedrun            runs launch/speedrun.sh in the place of `jaxdistill train`
#   --keep                leaves the slice (and its bill) when the run has ended
#   --log=FILE            where the log of worker 0 goes at the end (./NAME.log)
#   --retries=20          failures in a row before giving up (and deleting the slice); preemptions are none
#   --dry_run             prints the commands
#
# Ends with 0 when the run is done. Ctrl-C leaves slice and run alone; the same command finds them again.

# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

project='' zone='' type='' name=jaxdistill runtime_version='' log='' spot=false keep=false speedrun=false
parse "project zone type name runtime_version log" "spot keep speedrun" "$@"
need project zone type
check_train remote
installed gcloud
[[ $name =~ ^[a-z]([-a-z0-9]{0,60}[a-z0-9])?$ ]] || refuse "--name='$name' is no name; give small letters, digits and dashes"

type=${type/#v5e-/v5litepod-}
case $type in
    v2-* | v3-* | v4-*) image=tpu-ubuntu2204-base ;;
    v5litepod-*) image=v2-alpha-tpuv5-lite ;;
    v5p-*) image=v2-alpha-tpuv5 ;;
    v6e-*) image=v2-alpha-tpuv6e ;;
    tpu7x*) refuse "--type=$type is to be had through GKE alone: launch/gke_xpk.sh" ;;
    *) image='' && [[ -n $runtime_version ]] || refuse "--type=$type is unknown; give e.g. v5e-16, or --runtime_version too" ;;
esac
image=${runtime_version:-$image}
[[ $image != *-pod* ]] || refuse "--runtime_version=$image is TensorFlow's; give a plain Ubuntu image"

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
where=(--project="$project" --zone="$zone" --quiet)
mark=$(printf %s "$workdir" | cksum | cut -d ' ' -f 1)  # the label by which a later call knows a slice as this run's
describe=(gcloud compute tpus queued-resources describe "$name" "${where[@]}"
    --format='value(state.state,tpu.nodeSpec[0].node.labels.jaxdistill)')
delete=(gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force)

# What a person must change.
refusals='PERMISSION_DENIED|INVALID_ARGUMENT|UNAUTHENTICATED|ALREADY_EXISTS|unrecognized argument|active account|property must be set'

asked=false  # whether there may be a slice that this run pays for
ours=false   # whether the slice is known to be this run's: nothing else is ever deleted
leaving=false  # whether this run has begun to delete it
if $dry_run; then scratch=/tmp; else scratch=$(mktemp -d); fi

remind() {
    local code=$?
    $dry_run || rm -rf "$scratch"
    if $dry_run; then
        say "dry run: nothing was created"
    else
        if $asked; then
            say "STILL BILLED until you delete it: slice $name ($type, $zone), with whatever runs on it: $(quoted "${delete[@]}")"
        fi
        say "still billed: what is stored in $workdir"
    fi
    exit "$code"
}
trap remind EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Sets `state` of the slice and `owner`; NONE if there is no slice, REFUSED if Google will not say, UNKNOWN if it does not answer.
look() {
    local answer
    if answer=$("${describe[@]}" 2>"$scratch/error"); then
        read -r state owner <<<"$answer" || true
    elif grep -qi 'not.found' "$scratch/error"; then
        state=NONE
    else
        state=UNKNOWN
        if grep -qE "$refusals" "$scratch/error"; then state=REFUSED; fi
        cat "$scratch/error" >&2
    fi
}

create() {
    local code=0 flags=("${create_flags[@]}")
    if $spot; then flags+=(--spot); fi
    set -- gcloud compute tpus queued-resources create "$name" "${where[@]}" --node-id="$name" --accelerator-type="$type" \
        --runtime-version="$image" --labels=jaxdistill="$mark" "${flags[@]}"
    if $dry_run; then run "$@"; return; fi
    asked=true leaving=false
    run "$@" 2>"$scratch/error" || code=$?
    cat "$scratch/error" >&2
    if ((code == 0)); then
        ours=true
    elif grep -qE "$refusals" "$scratch/error"; then
        asked=false
        return 2  # a person must change something; all else, quota above all, may pass
    else
        return 1
    fi
}

delete_slice() {
    $ours || return 0
    leaving=true
    run "${delete[@]}" || return 1
    ours=false asked=false
}

# Returns once the slice is there, and is this run's.
get_slice() {
    local state owner='' before=''
    while true; do
        look
        case $state in
            NONE)
                if $ours && ! $leaving; then
                    ours=false asked=false
                    say "somebody deleted the slice $name"
                    return 130
                fi
                ours=false
                create || return
                continue
                ;;
            REFUSED)  # to a slice of ours this may be an hour's expired token
                if $ours; then return 1; fi
                return 2
                ;;
            UNKNOWN) return 1 ;;
        esac
        if ! $ours; then
            [[ $owner == "$mark" ]] || { say "slice $name exists and is not of this run; give another --name"; asked=false; return 2; }
            ours=true asked=true
        fi
        case $state in
            ACTIVE) return 0 ;;
            SUSPENDED | FAILED)
                say "slice $name is $state"
                delete_slice || return 1
                [[ $state == SUSPENDED ]] && return 75
                return 1
                ;;
        esac
        [[ $state == "$before" ]] || say "slice $name is $state"
        before=$state
        sleep "$poll"
    done
}

on_all_workers() { run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$*"; }

install() {
    run tar -C "$root" --exclude=__pycache__ -czf "$scratch/jaxdistill.tar.gz" README.md LICENSE pyproject.toml jaxdistill configs launch &&
        run gcloud compute tpus tpu-vm scp "$scratch/jaxdistill.tar.gz" "$root/launch/on_worker.sh" "$name:" "${where[@]}" --worker=all &&
        on_all_workers "bash on_worker.sh install"
}

train_on_it() {
    local command=(jaxdistill train --distributed "${train[@]}")
    if $speedrun; then command=(bash launch/speedrun.sh -- --distributed "${train[@]}"); fi
    on_all_workers "bash on_worker.sh run $RANDOM$RANDOM $(quoted "${command[@]}")"
}

fetch_log() {
    run gcloud compute tpus tpu-vm scp "$name:jaxdistill/run.log" "${log:-$name.log}" "${where[@]}" --worker=0 || true
}

attempt() {
    local code=0 state owner
    get_slice || return
    if install; then train_on_it || code=$?; else code=1; fi
    if ((code)); then
        look  # a slice that is going away explains whatever its workers said
        case $state in SUSPENDING | SUSPENDED) code=75 ;; esac
    fi
    return "$code"
}

if $dry_run; then
    create && run "${describe[@]}" && install && train_on_it && finished && fetch_log && run "${delete[@]}"
    exit
fi

code=0
until_done attempt || code=$?
if $ours; then
    fetch_log
    if ((code == 255)); then
        say "the workers cannot be reached; what runs there goes on, and the same command finds it again"
    elif ! $keep; then
        delete_slice || say "the slice could not be deleted"
    fi
fi
exit "$code"
