#!/bin/sh
# Turn secret files into environment variables, then become the command: entrypoint.sh COMMAND...
#
# Docker mounts secrets as files below /run/secrets. Those named CAPFLOW_* and FLOWER_* are read. A variable that is
# already set wins. The command keeps the process id and so receives the signals.
set -eu
for file in "${SECRETS_FOLDER:-/run/secrets}"/CAPFLOW_* "${SECRETS_FOLDER:-/run/secrets}"/FLOWER_*; do
    name=$(basename "$file")
    if [ -f "$file" ] && ! printenv "$name" >/dev/null; then
        export "$name=$(cat "$file")"
    fi
done
exec "$@"
