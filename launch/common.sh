# shellcheck shell=bash
# What the scripts of this folder do alike; they source it. Options, dry run, and the loop that goes on until done.

set -euo pipefail
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || { echo "${0##*/}: needs bash 4.4 or newer, this is $BASH_VERSION" >&2; exit 2; }

script=${0##*/}
dry_run=false    # --dry_run: print the commands instead of running them
train=()         # what follows --: the arguments of `jaxdistill train`
workdir=''       # the --workdir among them
create_flags=()  # every --create_flag
retries=20       # failures in a row before giving up; a preemption is none
poll=${JAXDISTILL_POLL:-30}  # seconds between two looks, and the first pause after a failure

say() { printf '%s: %s\n' "$script" "$*" >&2; }

refuse() {
    say "$*; see 'launch/$script --help'"
    exit 2
}

# The comment at the top of a script is its help.
help() {
    sed -n '2,${/^#SBATCH/d;/^#/!q;s/^# \{0,1\}//;p}' "$0"
    exit 0
}

# parse "VALUED OPTIONS" "FLAGS" ARGUMENTS...: --name=value and --name value set $name, flags become true.
parse() {
    local valued=" $1 retries " flags=" $2 dry_run " option value
    shift 2
    while (($#)); do
        option=${1#--}
        option=${option%%=*}
        option=${option//-/_}
        case $1 in
            --) train=("${@:2}"); break ;;
            --help | -h) help ;;
            --*) ;;
            *) refuse "argument '$1' is unknown; the arguments of train come after --" ;;
        esac
        if [[ $flags == *" $option "* && $1 != *=* ]]; then
            printf -v "$option" true
        elif [[ $valued == *" $option "* || $option == create_flag ]]; then
            # What begins with dashes is the next option: `--project --dry_run` must not become a run that costs.
            if [[ $1 == *=* ]]; then value=${1#*=}; else value=${2-}; [[ $value != --* ]] || value=''; shift; fi
            [[ -n $value ]] || refuse "option '--$option' needs a value: --$option=..."
            if [[ $option == create_flag ]]; then create_flags+=("$value"); else printf -v "$option" %s "$value"; fi
        else
            refuse "option '$1' is unknown"
        fi
        shift
    done
    [[ $retries =~ ^(0|[1-9][0-9]{0,8})$ ]] || refuse "--retries=$retries is no number"
}

# need NAME...: the options that have no sensible default.
need() {
    local name missing=''
    for name in "$@"; do [[ -n ${!name} ]] || missing+=" --$name=..."; done
    [[ -z $missing ]] || refuse "missing:$missing; usage: $(sed -n "\\|^#   launch/$script |{s/^# *//p;q}" "$0")"
}

# installed PROGRAM...: what a run calls must be there, before anything is asked for again and again.
installed() {
    local program
    for program in "$@"; do $dry_run || command -v "$program" >/dev/null || refuse "$program is not installed here"; done
}

# Finds the workdir among the arguments of train, and what a loop could not work with. $1: "remote" if it must outlive machines.
check_train() {
    local i
    for i in "${!train[@]}"; do
        case ${train[i]} in
            --workdir=*) workdir=${train[i]#*=} ;;
            --workdir) workdir=${train[i + 1]-} ;;
            --stages | --stages=*) refuse "--stages leaves a run unfinished, which is repeated until done; give --config.order" ;;
        esac
    done
    workdir=${workdir%/}
    [[ $script == speedrun.sh || " ${train[*]}" == *" --config"[=\ ]* ]] ||
        refuse "missing: --config=... among the arguments of train, after --"
    [[ -n $workdir ]] || refuse "missing: --workdir=... among the arguments of train, after --"
    [[ ${1-} != remote || $workdir == gs://?* ]] ||
        refuse "--workdir='$workdir' would go with the machine; give a folder of a bucket, gs://BUCKET/RUN"
}

# A command as one would type it.
quoted() {
    local word line=''
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word=${word@Q}
        line+="$word "
    done
    printf '%s' "${line% }"
}

# Prints a command and runs it; in a dry run it only prints.
run() {
    if $dry_run; then
        quoted "$@" && echo
    else
        printf '+ %s\n' "$(quoted "$@")" >&2
        "$@"
    fi
}

# The trainer writes DONE when every stage is finished, evaluated and exported.
finished() {
    case $workdir in
        gs://*) run gcloud storage ls "$workdir/DONE" ;;
        *) run test -f "$workdir/DONE" ;;
    esac
}

# until_done ATTEMPT: calls it until it succeeds and the run is finished.
# By its exit code: 75, preempted and saved, is tried again at once; 2, 3 and 130 (bad input, training stopped,
# interrupted) stop, because the next attempt would only end and cost the same; anything else (ssh lost, no quota, a
# crash, no DONE) is tried again after a pause that doubles, to sixteen times the first.
until_done() {
    local code failures=0
    while true; do
        code=0
        "$1" || code=$?
        case $code in
            0)
                if finished >/dev/null 2>&1; then return 0; fi
                say "the command succeeded but $workdir/DONE is not there"
                code=1
                ;;
            2 | 3 | 130)
                say "stopped with exit code $code, which another attempt would not change; its message is above"
                return "$code"
                ;;
            75)
                say "preempted; going on from the last checkpoint"
                failures=0
                sleep "$poll"
                continue
                ;;
        esac
        if ((++failures > retries)); then
            say "given up after $failures failures in a row, the last with exit code $code; the same command resumes"
            return "$code"
        fi
        say "failed with exit code $code; attempt $failures of $retries again soon"
        sleep $((poll * (1 << (failures < 5 ? failures - 1 : 4))))
    done
}
