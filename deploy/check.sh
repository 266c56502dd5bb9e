#!/usr/bin/env bash
# Check the Dockerfile, compose file, chart, units, alerts and shell scripts. Starts nothing.
#
# Installs its linters once into .capflow/checks (110 MB). Checks whose linter cannot be installed are skipped with a message.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly tools=.capflow/checks wanted=deploy/checks/requirements.txt

say() { echo "deploy: $*" >&2; }

install_linters() {
    cmp -s "$wanted" "$tools/requirements.txt" && return
    say "installing linters into $tools"
    .venv/bin/python -m venv --clear "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check -c deploy/constraints.txt -r "$wanted" 2>"$tools/log" ||
        return
    cp "$wanted" "$tools/requirements.txt"
}

check_units() {
    command -v systemd-analyze >/dev/null || { say "skipped the units: systemd-analyze is missing"; return; }
    local findings
    # Capflow's programs may be missing here; everything else must be right.
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
if install_linters; then
    "$tools/bin/hadolint" deploy/Dockerfile
    "$tools/bin/check-jsonschema" --quiet --builtin-schema vendor.compose-spec deploy/compose.yaml
    "$tools/bin/python" deploy/checks/chart.py deploy/helm/capflow
else
    say "skipped Dockerfile, compose file and chart: their linters cannot be installed; see $tools/log"
fi
