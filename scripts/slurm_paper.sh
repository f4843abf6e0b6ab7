#!/usr/bin/env bash
# The paper's comparisons on a SLURM cluster: one job per run, eight GPUs each, as in the paper.
#
#     scripts/slurm_paper.sh /shared/runs PARTITION [further options of svp run, such as --slurm account=A]
#
# Submits what is missing and returns; once more submits what failed since. COCO and the weights lie
# where DETECTRON2_DATASETS and docs/experiments.md say, on a file system that every machine sees.
set -euo pipefail
output=$1 partition=$2
shift 2
: "${DETECTRON2_DATASETS:?names the folder that holds coco/}"
cd "$(dirname "$0")/.."
for study in baseline_r50_gn baseline_r101_gn baseline_r50_syncbn; do
    svp run "configs/studies/paper/$study.yaml" -o "$output" --launcher slurm \
        --partition "$partition" --gpus-per-run 8 --time 24:00:00 --max-parallel 4 \
        --slurm cpus_per_task=10 "$@"
done
svp status "$output"
