#!/bin/sh
# Search at 20:00 from Monday to Friday; each run is paused from 07:00 to 20:00. Needs job workers: nightshift up
# Usage: schedule.sh SHARDS [OPTIONS of nightshift search]
set -eu
shards=$1
shift
nightshift schedule add nightly "0 20 * * 1-5" search "$shards" --window 20:00-07:00 --trials 60 --epochs 30 --tag night "$@"
nightshift schedule list
