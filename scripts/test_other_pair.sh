#!/usr/bin/env bash
# Runs the tests with another pair of torch and torchvision, in an environment of its own.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: scripts/test_other_pair.sh oldest|newest [PYTEST-ARGUMENT...]

The ends of the range that setup.cfg declares; the pairs are dependency groups in pyproject.toml.
Downloads about 3 GB the first time and needs 6 GB of disk until it ends.
PYTHON=3.12 (a version or a path) chooses the interpreter.
TEXT
}

case "${1:-}" in
    oldest | newest) pair=$1 ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
esac
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."

UV_PROJECT_ENVIRONMENT=$(mktemp -d)
trap 'rm -rf "$UV_PROJECT_ENVIRONMENT"' EXIT
export UV_PROJECT_ENVIRONMENT OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
groups=(--no-group torch-default --group "torch-$pair" ${PYTHON:+--python "$PYTHON"})
uv sync --quiet "${groups[@]}"
uv run --no-sync svp doctor
uv run --no-sync pytest -p no:cacheprovider "$@"
