#!/usr/bin/env bash
# Generate the passwords of a fleet under compose: deploy/make-secrets.sh [FOLDER], by default deploy/secrets.
#
# Existing files are kept. Only you may enter the folder; the files in it are readable, because the containers they are
# mounted into run as other users.
set -euo pipefail
folder=${1:-"$(dirname "$0")/secrets"}
(umask 077 && mkdir -p "$folder")

password() { head -c 24 /dev/urandom | base64 | tr '+/' '-_'; }
keep() { [ -s "$folder/$1" ] || printf '%s' "$2" >"$folder/$1"; }
read_back() { cat "$folder/$1"; }

umask 022
for name in postgres_password redis_password watcher_password grafana_password; do
    keep "$name" "$(password)"
done
keep CAPFLOW_DATABASE_URL "postgresql://capflow:$(read_back postgres_password)@postgres:5432/capflow"
keep CAPFLOW_BROKER_URL "redis://capflow:$(read_back redis_password)@redis:6379/0"
keep WATCHER_BROKER_URL "redis://watcher:$(read_back watcher_password)@redis:6379/0"
keep FLOWER_BASIC_AUTH "capflow:$(password)"
echo "secrets are in $folder; Flower's user and password: $(read_back FLOWER_BASIC_AUTH)" >&2
