#!/usr/bin/env bash
# Checks what is deployed with: Dockerfile, compose file, chart, units, alerts, shell scripts. Starts nothing.
#
# Brings its linters into .capflow/checks, 110 MB, once; what cannot be brought is skipped, and said.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly tools=.capflow/checks wanted=deploy/checks/requirements.txt

say() { echo "deploy: $*" >&2; }

bring_linters() {
    cmp -s "$wanted" "$tools/requirements.txt" && return
    say "bringing linters into $tools"
    .venv/bin/python -m venv --clear "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check -c deploy/constraints.txt -r "$wanted" 2>"$tools/log" ||
        return
    cp "$wanted" "$tools/requirements.txt"
}

check_units() {
    command -v systemd-analyze >/dev/null || { say "skipped: units, since systemd-analyze is missing"; return; }
    local findings
    # Where Capflow is not installed its programs are missing; all else must be right.
    findings=$(for unit in deploy/systemd/*; do
        systemd-analyze verify --man=no "$unit" 2>&1 | grep -v '/opt/capflow/bin/.* is not executable' || true
    done)
    [ -z "$findings" ] || { echo "$findings" >&2; exit 1; }
}

for script in deploy/*.sh deploy/redis/*.sh deploy/slurm/*; do
    bash -n "$script"
done
check_units
deploy/observability/check.sh
if bring_linters; then
    "$tools/bin/hadolint" deploy/Dockerfile
    "$tools/bin/check-jsonschema" --quiet --builtin-schema vendor.compose-spec deploy/compose.yaml
    "$tools/bin/python" deploy/checks/chart.py deploy/helm/capflow
else
    say "skipped: Dockerfile, compose file and chart, since their linters cannot be had; see $tools/log"
fi
