#!/usr/bin/env bash
# Make the virtual environment that `make` uses: deploy/setup-venv.sh [FOLDER], by default .venv in the checkout.
#
# deploy/constraints.txt pins every package. Does nothing when the environment already matches that file, pyproject.toml
# and this script. Needs Python 3.11 or newer; installs missing Debian packages where apt-get may be used.
set -euo pipefail

export PATH="${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
cd "$(dirname "$0")/.."
readonly lock=deploy/constraints.txt hook=deploy/torchvision_ops.py cpu_wheels=https://download.pytorch.org/whl/cpu
mkdir -p "${1:-.venv}"
venv=$(cd "${1:-.venv}" && pwd)
readonly venv python=$venv/bin/python

say() { echo "setup: $*" >&2; }
fail() { say "$*"; exit 1; }
pinned() { grep -m1 "^$1==" "$lock"; }

install_system_packages() {
    local as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo -n)
    command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; } ||
        fail "system packages are missing: $*. Ask an administrator to run: apt-get install $*"
    say "system packages: $*"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}

find_python() {
    local name
    for name in python3.11 python3 python3.12 python3.13; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    return 1
}

install_what_the_system_lacks() {
    local missing=()
    find_python >/dev/null || missing+=(python3 python3-venv)
    [ ${#missing[@]} -gt 0 ] || "$(find_python)" -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
    [ ${#missing[@]} -eq 0 ] || install_system_packages "${missing[@]}"
    find_python >/dev/null || fail "Python 3.11 or newer is needed; this system's Python is older."
    # for vLLM's CPU kernels
    "$(find_python)" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null || install_system_packages libnuma1
}

# Print one line per 20 packages, so that a slow network is visible, and pip's errors; setup.log has everything.
install() {
    "$python" -m pip install "$@" 2>&1 | tee -a "$venv/setup.log" | awk -v all="$(grep -c == "$lock")" '
        /^(Collecting|Processing) / && ++count % 20 == 0 { print "setup:   " count " of " all " packages" }
        /^Installing collected/ && count > 1 { print "setup:   unpacking" }
        /^ERROR/ && !/dependency resolver/ { print } # the resolver misses packages that are left out on purpose
        { fflush() }' >&2 || fail "pip failed; its whole output is in $venv/setup.log"
}

install_torch() {
    if "$python" -c "import urllib.request as web; web.urlopen('$cpu_wheels/torch/', timeout=5)" 2>/dev/null; then
        say "torch from PyTorch's CPU wheels"
        install --no-deps --index-url "$cpu_wheels" "$(pinned torch)" "$(pinned torchvision)"
    fi
}

make_torch_importable() {
    "$python" -c 'import torch' 2>/dev/null && return
    say "this build of torch needs CUDA's libraries, several GB; installing them"
    install --constraint "$lock" "$(pinned torch)"
    "$python" -c 'import torch' || fail "torch does not import; see above."
}

make_torchvision_importable() {
    local packages error
    packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    rm -f "$packages"/capflow_torchvision_ops.{py,pth}
    error=$("$python" -c 'import torchvision' 2>&1) && return
    [[ $error == *"operator torchvision::"* ]] || fail "torchvision does not import: $error"
    say "torchvision is a CUDA build and torch a CPU build: declaring torchvision's operators"
    cp "$hook" "$packages/capflow_torchvision_ops.py"
    echo 'import capflow_torchvision_ops' >"$packages/capflow_torchvision_ops.pth"
    "$python" -c 'import torchvision' || fail "torchvision does not import; see above."
}

exec 9<"$venv"
flock 9 # the second of two `make` waits, then finds everything done
wanted=$({ echo "$venv"; cat deploy/setup-venv.sh "$lock" "$hook" pyproject.toml; } | sha256sum)
[ "$(cat "$venv/.capflow-setup" 2>/dev/null)" != "$wanted" ] || exit 0

install_what_the_system_lacks
say "Python packages into $venv; takes a few minutes the first time"
"$python" -c 'import pip' 2>/dev/null || "$(find_python)" -m venv --clear "$venv"
install_torch
install --no-deps -r "$lock"
make_torch_importable
make_torchvision_importable
"$python" -m pip uninstall --quiet --yes capflow 2>/dev/null || true # the distribution's earlier name
install --no-deps --no-build-isolation -e .
echo "$wanted" >"$venv/.capflow-setup"
say "ready after $SECONDS s"
