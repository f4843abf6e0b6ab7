#!/usr/bin/env bash
# Plans a study, trains every run of it and prints the comparison.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/run_pair.sh STUDY [OUTPUT] [OPTION...]

  STUDY   a study file, such as configs/studies/coco_smoke.yaml
  OUTPUT  the folder for its runs (default: output)
  OPTION  passed on to `svp run`, such as --jobs 2

Call it again after an interruption: finished runs are skipped, others resumed.
TEXT
}

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
    "" | -*) usage >&2; exit 2 ;;
esac
study=$1
shift
output=output
if [[ $# -gt 0 && $1 != -* ]]; then
    output=$1
    shift
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
svp() { uv run --project "$root" svp "$@"; }

svp plan "$study"
svp run "$study" --output "$output" "$@" # prints the table
