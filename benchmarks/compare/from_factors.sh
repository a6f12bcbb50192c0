#!/usr/bin/env bash
# What the start of dsl_plus gives dense models: all but a thousandth of the weights live, their first values are factors
# of the interactions, nothing is exchanged. (At density 1 training is RecBole's, first values included.)
#   bash benchmarks/compare/from_factors.sh BPR ml-100k
#   DATA=folder SEEDS=1 bash benchmarks/compare/from_factors.sh BPR ml-1m
# In tables of 64 columns, as the dense model has, and of 9, as narrow has at density 0.1. Tuned as the others of the
# comparison (run.sh, accuracy.sh) are. Goes on where it was stopped; results are in benchmarks/results/from_factors.
set -euo pipefail
cd "$(dirname "$0")/../.."
model=$1 dataset=$2
if [[ $model/$dataset == BPR/ml-100k || $model/$dataset == LightGCN/ml-100k ]]; then
    space=benchmarks/compare/space.txt trials=4 more=
else
    listed=$(python -m benchmarks.grid "$model/$dataset")
    read -r _ _ space trials more <<< "$listed"
fi
if [ "$trials" = 0 ]; then
    echo "$model/$dataset is refused: its rates in order.yaml were tuned elsewhere; allowed are comparisons with a space" >&2
    exit 2
fi
for width in 64 9; do
    name=$model-$dataset-$width
    density=$(python -c "print(round(0.999 * $width / 64, 4))")
    common=(--models="$model" --datasets="$dataset" --methods=dsl_plus --config_files="benchmarks/compare/$dataset.yaml"
            --dsl_width="$width" --dsl_update_ratio=0 --results=benchmarks/results/from_factors --jobs="${JOBS:-2}"
            ${DATA:+--data_path="$DATA"} $more)
    recbole-dsl tune "${common[@]}" --name="$name-tuning" --space="$space" --trials="$trials" --density="$density"
    recbole-dsl compare "${common[@]}" --name="$name" --densities="$density" --seeds="${SEEDS:-3}" \
        --tuned="benchmarks/results/from_factors/$name-tuning/tuned.yaml"
done
