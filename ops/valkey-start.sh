#!/bin/sh
# Start Valkey with the users of the bus. The passwords come from the environment and go into a
# file that only this user can read: a command line would show them to everyone.
#
#   BUS_REDIS_PASSWORD      user `bus`: every process of the bus, and Flower
#   BUS_PRODUCER_PASSWORD   user `producer`, optional: may ring (LPUSH bus:notify) and nothing else
#   BUS_FLOWER_PASSWORD     not used here; asked for so that Flower is never without one
#   VALKEY_CONF, VALKEY_RUN where the settings are and where the complete file goes
set -eu

for name in BUS_REDIS_PASSWORD BUS_FLOWER_PASSWORD; do
  eval "value=\${$name:-}"
  case $value in
    '' | *[!A-Za-z0-9_-]*)
      echo "Set $name to letters, digits, _ or - (copy .env.example to .env, see there)." >&2
      exit 64 ;;
  esac
done

umask 077
complete=${VALKEY_RUN:-/tmp}/valkey-with-users.conf
{
  cat "${VALKEY_CONF:-/etc/valkey/valkey.conf}"
  echo 'user default off'
  echo "user bus on >$BUS_REDIS_PASSWORD ~* &* +@all -@dangerous -@admin +info"
  if [ -n "${BUS_PRODUCER_PASSWORD:-}" ]; then
    echo "user producer on >$BUS_PRODUCER_PASSWORD ~bus:notify resetchannels +lpush +ping"
  fi
} > "$complete"
exec valkey-server "$complete"
