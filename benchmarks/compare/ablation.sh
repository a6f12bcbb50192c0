#!/usr/bin/env bash
# What of dsl_plus matters: one setting changed at a time, at density 0.1, three seeds.
#   DATA=folder-of-datasets bash benchmarks/compare/ablation.sh BPR citeulike-t 0.002
# Arguments: model, dataset (with a YAML file beside this one), learning rate. Two runs at once. Goes on where it
# was stopped; results are in benchmarks/results/ablation, tables by python -m benchmarks.ablation_docs.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${DATA:?set it to the folder that holds the datasets}"
export model=$1 dataset=$2 rate=$3 DATA
run() {
    local name=${1%%:*} flags=${1#*:}
    # shellcheck disable=SC2086
    recbole-dsl compare --models="$model" --datasets="$dataset" --methods=dsl_plus --densities=0.1 --seeds=3 \
        --data_path="$DATA" --config_files="benchmarks/compare/$dataset.yaml" --results=benchmarks/results/ablation \
        --name="$model-$dataset-$name" --learning_rate="$rate" $flags
}
export -f run
printf '%s\0' base: \
    width-128:--dsl_width=128 width-256:--dsl_width=256 \
    no-updates:--dsl_update_ratio=0 ratio-0.5:--dsl_update_ratio=0.5 \
    random-topology:"--dsl_init=random --dsl_init_values=model" values-of-the-model:--dsl_init_values=model \
    last-gradient:--dsl_grow=last_gradient momentum:--dsl_grow=momentum \
    drop-by-taylor:--dsl_drop=taylor interval-3-epochs:--dsl_update_interval=3epochs \
    until-10-percent:--dsl_end=10% until-60-percent:--dsl_end=60% |
    xargs -0 -P 2 -I {} bash -c 'run "$1"' _ {}
