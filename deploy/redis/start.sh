#!/bin/sh
# Start Redis with the users of users.acl and passwords from two files: start.sh [FLAG OF REDIS-SERVER]...
#
#     CAPFLOW_PASSWORD_FILE=/run/secrets/redis_password WATCHER_PASSWORD_FILE=/run/secrets/watcher_password
#
# Writes only the passwords' SHA-256, to a file that no other user may read. ACL files cannot hold comments, so here is
# what users.acl means: `capflow` is for workers and producers. `watcher` is for Flower: it can send control commands to
# workers and cannot put work into a queue. Both may use the queue gpu, its ranks (gpu.rank4) and workers' own queues
# (NODE.dq2); add further queues of CAPFLOW_STAGE_QUEUES after ~gpu*. Names such as /0.celery.pidbox mean database 0.
set -eu
umask 077
here=$(dirname "$0")
users=$(mktemp)

digest() { tr -d '\n' <"$1" | sha256sum | cut -d' ' -f1; }

capflow=$(digest "$CAPFLOW_PASSWORD_FILE")
watcher=$(digest "$WATCHER_PASSWORD_FILE")
sed -e "s/@CAPFLOW@/$capflow/" -e "s/@WATCHER@/$watcher/" "$here/users.acl" >"$users"
exec redis-server "$here/redis.conf" --aclfile "$users" "$@"
