#!/bin/sh
# A shell producer: no code of ours, no Redis. A job is a directory; COMMIT is created last.
# sh examples/producer.sh LAKE FILE.parquet
set -eu
lake=$1
file=$2
job=$(date -u +%Y-%m-%dT%H-%M-%SZ)__shell-example__$$
directory=$lake/bus/inbox/$job

test -f "$file"
mkdir "$directory"
cp "$file" "$directory/candles.parquet"
cat > "$directory/manifest.json" <<EOF
{
  "job_id": "$job",
  "run_id": "example-shell",
  "producer": "shell-example",
  "kind": "example_candles",
  "created_at_utc": "$(date -u +%Y-%m-%dT%H:%M:%SZ)",
  "artifacts": [{"artifact_id": "candles", "format": "parquet", "relpath": "candles.parquet"}],
  "meta": {}
}
EOF
touch "$directory/COMMIT"
echo "$job" # the sweep finds it; to be faster: redis-cli LPUSH bus:notify "$job"
