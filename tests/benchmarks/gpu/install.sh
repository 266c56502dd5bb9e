#!/usr/bin/env bash
# install.sh [PARTS] [STORE]: an environment for the fleet over the packages that this machine's Python holds.
#
# PARTS is what this call carries, STORE what outlives it. Until all parts are there it says which are missing and
# ends with 4. Nothing is fetched. GPU_PYTHON is the machine's Python, GPU_SITE where its packages are.
set -euo pipefail
cd "$(dirname "$0")/../../.."

parts=${1:-build/gpu-parts}
store=${2:-/tmp/capflow-gpu}
python=${GPU_PYTHON:-python3}
site=${GPU_SITE:-$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')}

wheels=$("$python" -m tests.benchmarks.gpu.unpack "$parts" "$store")
environment=$(dirname "$wheels")/environment
if [[ ! -f $environment/complete ]]; then
  "$python" -m venv --clear --without-pip "$environment"
  # Behind the environment's own packages, so that those of the kit win. PyTorch stays the machine's.
  "$environment/bin/python" - "$site" <<'PYTHON'
import sys, sysconfig
from pathlib import Path

hook = f"import site; site.addsitedir({sys.argv[1]!r})\n"
(Path(sysconfig.get_path("purelib")) / "machine_packages.pth").write_text(hook)
PYTHON
  pip=("$python" -m pip --python "$environment/bin/python" install -q --no-index --no-deps --no-cache-dir)
  "${pip[@]}" --no-compile --ignore-installed "$wheels"/*.whl
  "${pip[@]}" --no-build-isolation -e .
  touch "$environment/complete"
fi
echo "$environment/bin/python"
