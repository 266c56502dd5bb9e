#!/usr/bin/env bash
# Check Prometheus's configuration and test when each alert fires. Uses promtool from PATH, or unpacks Debian's package
# into .capflow/tools without installing it.
set -euo pipefail
cd "$(dirname "$0")"
readonly tools=../../.capflow/tools

fail() { echo "check: $*" >&2; exit 1; }

unpack_promtool() {
    command -v apt-get >/dev/null || fail "promtool is missing: install Prometheus, or put promtool into PATH."
    echo "check: unpacking promtool from Debian's package prometheus into .capflow/tools" >&2
    local folder
    folder=$(mktemp -d)
    (
        cd "$folder"
        # Try without an update first: it is quicker, and only root may update.
        apt-get -qq download prometheus 2>/dev/null || { apt-get -qq update && apt-get -qq download prometheus; }
        dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool
    ) || fail "promtool cannot be unpacked: install Debian's package prometheus, or put promtool into PATH."
    mkdir -p "$tools"
    mv "$folder/usr/bin/promtool" "$tools/promtool"
    rm -r "$folder"
}

export PATH="$PATH:$PWD/$tools"
command -v promtool >/dev/null || unpack_promtool
promtool check config prometheus.yml
promtool test rules alerts_test.yaml
