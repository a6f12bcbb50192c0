#!/usr/bin/env bash
# The accuracy of sparse models beyond run.sh's: DATA=folder-of-datasets bash benchmarks/compare/accuracy.sh
# Their order is order.yaml's, fixed before they were run; the schedule of a dataset is its YAML file's, the same for
# every method. Each comparison is tuned at density 0.1 with the first seed, if it does not take rates that were tuned
# elsewhere, then run at all densities. Goes on where it was stopped; results are in benchmarks/results/compare.
# More seeds for a part of it, in a folder of its own:
#   DATA=folder PAIRS=BPR/citeulike-t DENSITIES=0.1 SEEDS=3 SUFFIX=-seeds bash benchmarks/compare/accuracy.sh
# A density with rates that are tuned at it, not at 0.1, in folders of its own (NAME-at-0.5, NAME-tuning-at-0.5):
#   AT=0.5 PAIRS=MultiVAE/ml-100k SEEDS=5 bash benchmarks/compare/accuracy.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
at=${AT:+-at-$AT}
read -ra wanted <<< "${PAIRS:-}"
comparisons=$(python -m benchmarks.grid ${wanted[@]+"${wanted[@]}"})
while read -r model dataset search trials more <&3; do
    name=$model-$dataset
    tuned=$search
    common=(--models="$model" --datasets="$dataset" --methods=dense,narrow,dsl,dsl_plus
            --config_files="benchmarks/compare/$dataset.yaml" --results=benchmarks/results/compare --jobs="${JOBS:-2}" $more)
    [ "$dataset" = ml-100k ] || common+=(--data_path="${DATA:?set it to the folder that holds the datasets}")
    if [ "$trials" != 0 ]; then
        recbole-dsl tune "${common[@]}" --name="$name-tuning$at" --space="$search" --trials="$trials" --density="${AT:-0.1}"
        tuned=benchmarks/results/compare/$name-tuning$at/tuned.yaml
    elif [ -n "$at" ]; then
        echo "AT=$AT is refused for $model/$dataset, whose rates were tuned elsewhere" >&2
        exit 2
    fi
    recbole-dsl compare "${common[@]}" --name="$name${SUFFIX:-}$at" \
        --densities="${DENSITIES:-${AT:-0.1,0.05,0.2,0.5}}" --seeds="${SEEDS:-1}" \
        --tuned="$tuned"
done 3<<< "$comparisons"
