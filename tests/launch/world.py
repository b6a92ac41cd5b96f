"""Stand-ins for the vendors' programs: they record their calls, keep a slice, a workload or a job
in files, and fail as told.

`World` puts them first in PATH. What the trainer does is a queue of lines `EXIT_CODE [DONE]
[STATE]` in `runs`: its exit code, whether it writes DONE, and what becomes of the slice meanwhile.
An empty queue is a run that is done."""

import os
import pathlib
import subprocess

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"

COMMON = r"""#!/usr/bin/env bash
program=${0##*/}
{ printf '%s\x1f' "$program" "$@"; printf '\x1e'; } >>"$WORLD/calls"
cd "$WORLD" || exit 99
# pop FILE: takes its first line, "" if there is none
pop() { local line=''; if [[ -s $1 ]]; then read -r line <"$1"; sed -i 1d "$1"; fi; printf '%s' "$line"; }
fail() { local line; line=$(pop "$1"); if [[ -n $line ]]; then echo "$line" >&2; exit "${2:-1}"; fi; }
trainer() {
    local code done_or_state
    read -r code done_or_state <<<"$(pop runs)"
    for word in ${done_or_state:-DONE}; do
        case $word in DONE) : >DONE ;; -) ;; NONE) rm -f state ;; *) echo "$word" >state ;; esac
    done
    exit "${code:-0}"
}
"""

GCLOUD = r"""
case "$*" in
    *" queued-resources create "*)
        fail create_fails
        [[ ! -f state ]] || { echo "ALREADY_EXISTS" >&2; exit 1; }
        for word in "$@"; do case $word in --labels=jaxdistill=*) echo "${word##*=}" >label ;; esac; done
        echo WAITING_FOR_RESOURCES >state ;;
    *" queued-resources describe "*)
        fail describe_fails
        [[ -f state ]] || { echo "ERROR: NOT_FOUND: no such thing" >&2; exit 1; }
        now=$(<state)
        printf '%s\t%s\n' "$now" "$(<label)"
        case $now in
            WAITING_FOR_RESOURCES) echo PROVISIONING >state ;;
            PROVISIONING) echo ACTIVE >state ;;
            SUSPENDING) echo SUSPENDED >state ;;
        esac ;;
    *" queued-resources delete "*) fail delete_fails; rm -f state label ;;
    *"on_worker.sh run "*) trainer ;;
    *" ssh "* | *" scp "*) fail ssh_fails 255 ;;
    "storage ls "*) [[ -f DONE ]] || { echo "One or more URLs matched no objects." >&2; exit 1; } ;;
    *) echo "unexpected: $*" >&2; exit 98 ;;
esac
"""

XPK = r"""
case "$*" in
    "workload create "*)
        fail create_fails
        [[ ! -f workload ]] || { echo "[XPK] workload already exists"; exit 1; }
        for word in "$@"; do case $word in --command=*) echo "${word#*=}" >workload ;; esac; done ;;
    "workload list "*)
        fail list_fails
        [[ -f workload ]] || { echo "no such workload" >&2; exit 97; }
        ( trainer ); code=$?; echo "$code" >exit_codes
        ((code == 0)) || exit 125 ;;
    "workload delete "*"--workload="*) rm -f workload ;;
    *) echo "unexpected: $*" >&2; exit 98 ;;
esac
"""

KUBECTL = r"""
case "$*" in
    "get jobset "*) cat workload ;;
    "get pods "*) cat exit_codes ;;
    "logs "*) echo "what the trainer said" ;;
    *) exit 98 ;;
esac
"""

PROGRAMS = {
    "gcloud": GCLOUD,
    "xpk": XPK,
    "kubectl": KUBECTL,
    "sleep": "",
    "srun": "trainer",
    "sbatch": "fail sbatch_fails; echo 4711",
    "squeue": "[[ -f job_state ]] && cat job_state || echo RUNNING",
    "scontrol": "",
    "jaxdistill": '[[ $1 != train ]] || trainer; fail "$1_fails" 2',
    "curl": "echo 0",
    "uv": "",
    "tar": "",
}


class World:
    """A folder of stand-ins and what they keep; `calls()` is what was called, in order."""

    def __init__(self, folder):
        self.folder, self.bin = folder / "world", folder / "bin"
        self.folder.mkdir()
        self.bin.mkdir()
        for name, body in PROGRAMS.items():
            file = self.bin / name
            file.write_text(COMMON + body + "\n")
            file.chmod(0o755)

    def environment(self, **more):
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM_", "JAX"))
        }
        return {
            **kept,
            "WORLD": str(self.folder),
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            **more,
        }

    def __setitem__(self, file, lines):
        (self.folder / file).write_text("".join(f"{line}\n" for line in lines))

    def __contains__(self, file):
        return (self.folder / file).exists()

    def run(self, script, *arguments, **environment):
        return subprocess.run(
            [str(LAUNCH / script), *arguments],
            cwd=self.folder.parent,
            capture_output=True,
            text=True,
            env=self.environment(**environment),
            timeout=60,
        )

    def calls(self, *words):
        """Calls whose first arguments hold all `words` among them, as lists."""
        file = self.folder / "calls"
        found = (
            [call.split("\x1f")[:-1] for call in file.read_text().split("\x1e")[:-1]]
            if file.exists()
            else []
        )
        return [call for call in found if all(word in call for word in words)]

    def pauses(self):
        return [int(call[1]) for call in self.calls("sleep")]
