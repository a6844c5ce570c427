#!/bin/sh
# Start Valkey with the users of the bus (users.acl). The passwords come from the environment and go
# into a file that only this user can read: a command line would show them to everyone.
#
#   BUS_REDIS_PASSWORD      user `bus`: every process of the bus
#   BUS_FLOWER_PASSWORD     user `flower`: looks at queues and workers; also Flower's own door
#   BUS_PRODUCER_PASSWORD   user `producer`, optional: may ring (LPUSH bus:notify) and nothing else
#   VALKEY_CONF, VALKEY_ACL, VALKEY_RUN   the settings, the users, where the complete files go
set -eu

check() {
  case $2 in
    *[!A-Za-z0-9_-]*) ;;
    *) return 0 ;;
  esac
  refuse "$1"
}

refuse() {
  echo "Set $1 to letters, digits, _ or - (copy .env.example to .env, see there)." >&2
  exit 64
}

for name in BUS_REDIS_PASSWORD BUS_FLOWER_PASSWORD BUS_PRODUCER_PASSWORD; do
  eval "value=\${$name:-}"
  check "$name" "$value"
  if [ -z "$value" ] && [ "$name" != BUS_PRODUCER_PASSWORD ]; then refuse "$name"; fi
done

umask 077
run=${VALKEY_RUN:-/tmp}
# A user without a password is switched off.
sed -e "s/[$]{BUS_REDIS_PASSWORD}/$BUS_REDIS_PASSWORD/" \
    -e "s/[$]{BUS_FLOWER_PASSWORD}/$BUS_FLOWER_PASSWORD/" \
    -e "s/[$]{BUS_PRODUCER_PASSWORD}/${BUS_PRODUCER_PASSWORD:-}/" \
    -e 's/^\(user [a-z]*\) on > .*/\1 off/' \
    "${VALKEY_ACL:-/etc/valkey/users.acl}" > "$run/users-with-passwords.acl"
{
  cat "${VALKEY_CONF:-/etc/valkey/valkey.conf}"
  echo "aclfile $run/users-with-passwords.acl"
} > "$run/valkey-with-users.conf"
exec valkey-server "$run/valkey-with-users.conf"
