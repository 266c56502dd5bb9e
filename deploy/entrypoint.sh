#!/bin/sh
# Becomes the command it is given, with every secret file as the variable of its name: entrypoint.sh COMMAND...
#
# Docker mounts secrets as files below /run/secrets; those named CAPFLOW_* and FLOWER_* are read. A variable that is
# set already wins. The command keeps the process id, and so gets the signals.
set -eu
for file in "${SECRETS_FOLDER:-/run/secrets}"/CAPFLOW_* "${SECRETS_FOLDER:-/run/secrets}"/FLOWER_*; do
    name=$(basename "$file")
    if [ -f "$file" ] && ! printenv "$name" >/dev/null; then
        export "$name=$(cat "$file")"
    fi
done
exec "$@"
