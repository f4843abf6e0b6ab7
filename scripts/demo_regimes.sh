#!/usr/bin/env bash
# The demo's pair on 100, 300, 1,000 and all 3,000 training pictures, after `svp demo`.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/demo_regimes.sh [OUTPUT] [OPTION...]

  OUTPUT  the folder for the runs (default: output/demo_regimes)
  OPTION  passed on to `svp run`, such as --jobs 2

Run it in the folder in which `svp demo` ran: it reads output/demo. Call it again after an
interruption: finished runs are skipped, others resumed.
TEXT
}

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
esac
output=output/demo_regimes
if [[ $# -gt 0 && $1 != -* ]]; then
    output=$1
    shift
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
svp() { uv run --project "$root" svp "$@"; }

for images in 100 300 1000 3000; do
    svp run "$root/configs/studies/demo_regimes/shapes_$images.yaml" \
        --weights pretrained=output/demo/backbone.pth --output "$output" "$@"
done
svp table "$output" --kind less-data
svp plot "$output" --figure loss --output "$output/curves.png"
