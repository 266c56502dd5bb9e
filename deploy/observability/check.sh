#!/usr/bin/env bash
# Checks what Prometheus is to load, and proves when each alert fires. Takes promtool from PATH, else brings it:
# Debian's package is unpacked into .capflow/tools, nothing is installed.
set -euo pipefail
cd "$(dirname "$0")"
readonly tools=../../.capflow/tools

fail() { echo "check: $*" >&2; exit 1; }

bring_promtool() {
    command -v apt-get >/dev/null || fail "promtool is missing: install Prometheus, or put promtool into PATH."
    echo "check: unpacking promtool from Debian's package prometheus into .capflow/tools" >&2
    local folder
    folder=$(mktemp -d)
    (
        cd "$folder"
        # Quick where the package lists are there already; only root may bring them.
        apt-get -qq download prometheus 2>/dev/null || { apt-get -qq update && apt-get -qq download prometheus; }
        dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool
    ) || fail "promtool cannot be brought: install Debian's package prometheus, or put promtool into PATH."
    mkdir -p "$tools"
    mv "$folder/usr/bin/promtool" "$tools/promtool"
    rm -r "$folder"
}

export PATH="$PATH:$PWD/$tools"
command -v promtool >/dev/null || bring_promtool
promtool check config prometheus.yml
promtool test rules alerts_test.yaml
