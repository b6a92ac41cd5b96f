#!/usr/bin/env bash
# Runs on every worker of a TPU slice; tpu_vm.sh sends it there and calls it.
#
#   on_worker.sh install          unpacks ~/jaxdistill.tar.gz and installs it, unless a run is in progress
#   on_worker.sh run N COMMAND... starts COMMAND unless it is in progress, shows its log, ends with its exit code
#
# The command does not hang on the connection: when ssh is lost it goes on, and the next call finds it again. N counts the
# attempts: gcloud repeats a call whose connection was lost, and what has ended meanwhile must not begin again on one worker.

set -euo pipefail

home=$HOME/jaxdistill
export PATH="$home/env/bin:$HOME/.local/bin:$PATH"

busy() { ! flock --nonblock "$home/run.lock" true; }

install() {
    if busy; then return; fi
    rm -rf "$home/code"  # files that the sender no longer has
    mkdir "$home/code"
    tar -xzf "$HOME/jaxdistill.tar.gz" -C "$home/code"
    # The images bring Python 3.10; uv brings the one we need.
    command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
    [[ -x $home/env/bin/python ]] || uv venv --python 3.11 "$home/env"
    uv pip install --quiet --python "$home/env/bin/python" -e "$home/code[tpu]"
}

start() {
    # Which worker this is; speedrun.sh exports on the first alone.
    JAXDISTILL_PROCESS=$(curl -sSf -H 'Metadata-Flavor: Google' \
        http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number)
    export JAXDISTILL_PROCESS
    rm -f "$home/exit_code"
    cd "$home/code"
    # shellcheck disable=SC2016  # expanded by the inner shell
    setsid flock --nonblock --no-fork "$home/run.lock" bash -c \
        'code=0; "${@:2}" || code=$?; echo "$code" >"$1.part"; mv "$1.part" "$1"' _ "$home/exit_code" "$@" \
        </dev/null >>"$home/run.log" 2>&1 &
    echo $! >"$home/pid"
}

run() {
    local attempt=$1 from=20
    touch "$home/run.log" "$home/attempt"
    if ! busy && [[ $(<"$home/attempt") != "$attempt" ]]; then
        from=+$(($(wc -l <"$home/run.log") + 1))
        start "${@:2}"
        echo "$attempt" >"$home/attempt"
    fi
    tail --lines="$from" --pid="$(<"$home/pid")" --sleep-interval="${JAXDISTILL_POLL:-1}" --follow=name "$home/run.log" || true
    cat "$home/exit_code" >/dev/null || exit 1  # none: it was killed, which is not bad input
    exit "$(<"$home/exit_code")"
}

main() {
    mkdir -p "$home"
    "$@"
}

main "$@"; exit  # in one line: a later copy of this file may overwrite it meanwhile
