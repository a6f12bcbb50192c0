#!/usr/bin/env bash
# What of dsl_plus matters: one setting changed at a time, at density 0.1, three seeds.
#   bash benchmarks/compare/ablation.sh BPR ml-100k 0.002
#   bash benchmarks/compare/ablation.sh LightGCN ml-100k 0.005
# Arguments: model, dataset (with a YAML file beside this one; DATA is the folder of those that RecBole does not
# bring along), learning rate: that which the comparison's tuning chose for dsl_plus. The seeds run at once. Goes on where it
# was stopped; results are in benchmarks/results/ablation, tables by python -m benchmarks.ablation_docs.
set -euo pipefail
cd "$(dirname "$0")/../.."
export model=$1 dataset=$2 rate=$3 where=${DATA:+--data_path=$DATA}
run() {
    local name=${1%%:*} flags=${1#*:}
    # shellcheck disable=SC2086
    recbole-dsl compare --models="$model" --datasets="$dataset" --methods=dsl_plus --densities=0.1 --seeds=3 \
        $where --config_files="benchmarks/compare/$dataset.yaml" --results=benchmarks/results/ablation \
        --name="$model-$dataset-$name" --learning_rate="$rate" --jobs=3 $flags
}
export -f run
printf '%s\0' base: \
    width-128:--dsl_width=128 width-256:--dsl_width=256 \
    no-updates:--dsl_update_ratio=0 ratio-0.5:--dsl_update_ratio=0.5 \
    random-topology:"--dsl_init=random --dsl_init_values=model" values-of-the-model:--dsl_init_values=model \
    last-gradient:--dsl_grow=last_gradient momentum:--dsl_grow=momentum \
    drop-by-taylor:--dsl_drop=taylor interval-3-epochs:--dsl_update_interval=3epochs \
    until-10-percent:--dsl_end=10% until-60-percent:--dsl_end=60% |
    xargs -0 -I {} bash -c 'run "$1"' _ {}
