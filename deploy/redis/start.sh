#!/bin/sh
# Starts Redis with the users of users.acl and the passwords in two files: start.sh [FLAG OF REDIS-SERVER]...
#
#     CAPFLOW_PASSWORD_FILE=/run/secrets/redis_password WATCHER_PASSWORD_FILE=/run/secrets/watcher_password
#
# Only the passwords' SHA-256 is written, to a file that nobody else may read. An ACL file can hold no comment, so it
# is here: `capflow` is for workers and producers, `watcher` for Flower, which can ask and tell workers and cannot put
# work into a queue. Both are let into the queue gpu, its ranks (gpu.rank4) and workers' own (NODE.dq2); name further
# queues of CAPFLOW_STAGE_QUEUES after ~gpu*. Database 0 is meant, in /0.celery.pidbox and its like.
set -eu
umask 077
here=$(dirname "$0")
users=$(mktemp)

digest() { tr -d '\n' <"$1" | sha256sum | cut -d' ' -f1; }

capflow=$(digest "$CAPFLOW_PASSWORD_FILE")
watcher=$(digest "$WATCHER_PASSWORD_FILE")
sed -e "s/@CAPFLOW@/$capflow/" -e "s/@WATCHER@/$watcher/" "$here/users.acl" >"$users"
exec redis-server "$here/redis.conf" --aclfile "$users" "$@"
