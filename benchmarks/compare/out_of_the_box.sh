#!/usr/bin/env bash
# LightGCN on ml-1m as it comes, at a tenth of the weights and dense: nothing is tuned.
#   DATA=folder-of-datasets bash benchmarks/compare/out_of_the_box.sh
# Every setting of the model, of training and of sparsity is the default, but for what the schedule file of the comparisons
# on ml-1m asks for: NDCG@10 chooses the epoch (RecBole's default is MRR@10), and evaluation batches are larger. Dense is
# ours at density 1, which reproduces RecBole's losses (tests/test_density_one.py) in a fraction of its time.
# Goes on where it was stopped.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${DATA:?set it to the folder that holds the datasets}"
results=benchmarks/results/out_of_the_box
mkdir -p "$results"
common=(--model=LightGCN --dataset=ml-1m --data_path="$DATA" --config_files=benchmarks/compare/ml-1m.yaml --epochs=300
        --resume)
for seed in ${SEEDS:-2020}; do
    for method in ${METHODS:-dense dsl_plus}; do
        result=$results/LightGCN-ml-1m-$method-$seed.json
        [ -e "$result" ] && continue
        [ "$method" = dense ] && sparse=--dsl_method=dense || sparse=--dsl_density=0.1
        python run_recbole_dsl.py "${common[@]}" "$sparse" --seed="$seed" --dsl_result="$result" \
            --checkpoint_dir="saved/out_of_the_box/$method-$seed"
    done
done
