#!/usr/bin/env bash
# Models as they come, at a tenth of the weights and dense: nothing is tuned.
#   DATA=folder-of-datasets bash benchmarks/compare/out_of_the_box.sh
# Every setting of the model, of training and of sparsity is the default, but for what the schedule file of the comparisons
# asks for: NDCG@10 (AUC of clicks) chooses the epoch (RecBole's default is MRR@10), evaluation batches are larger, and
# histories of sequences ten items long. Dense is ours at density 1, which reproduces RecBole's losses
# (tests/test_density_one.py) in a fraction of its time. A run is model/dataset, or model/dataset/schedule where the
# file has another name than the dataset. Of ml-1m and ml-1m-pos there are dense and dsl_plus, of ml-100k also the paper's dsl (at 0.1, not
# at its default of 0.5). JOBS runs go on at once. Goes on where it was stopped.
set -euo pipefail
cd "$(dirname "$0")/../.."
wanted=(LightGCN/ml-1m BPR/ml-100k NGCF/ml-100k SGL/ml-100k SimpleX/ml-100k NeuMF/ml-100k MultiDAE/ml-100k
    CDAE/ml-100k RecVAE/ml-100k DeepFM/ml-100k/ml-100k-clicks GRU4Rec/ml-100k/ml-100k-sequences
    SASRec/ml-100k/ml-100k-sequences DeepFM/ml-1m/ml-1m-clicks GRU4Rec/ml-1m-pos/ml-1m-pos-sequences
    SASRec/ml-1m-pos/ml-1m-pos-sequences)
[ -z "${RUNS:-}" ] || read -ra wanted <<< "$RUNS"
export results=benchmarks/results/out_of_the_box
mkdir -p "$results" log

train() {
    IFS=/ read -r model dataset schedule method seed <<< "$1"
    name=$model-$dataset-$method-$seed
    [ -e "$results/$name.json" ] && return
    [ "$method" = dense ] && sparse=(--dsl_method=dense) || sparse=(--dsl_method="$method" --dsl_density=0.1)
    [ "$dataset" = ml-100k ] || sparse+=(--data_path="${DATA:?set it to the folder that holds the datasets}")
    python run_recbole_dsl.py --model="$model" --dataset="$dataset" --config_files="benchmarks/compare/$schedule.yaml" \
        --epochs=300 --stopping_step=10 --resume "${sparse[@]}" --seed="$seed" --dsl_result="$results/$name.json" \
        --checkpoint_dir="saved/out_of_the_box/$name" > "log/$name.log" 2>&1 || { tail -n 3 "log/$name.log"; return 1; }
    python -c 'import sys; from pathlib import Path; from recbole_dsl.results import RunResult
path = Path(sys.argv[1]); RunResult.from_json(path.read_text(encoding="utf-8")).without_places().save(path)' "$results/$name.json"
}
export -f train
for run in "${wanted[@]}"; do
    IFS=/ read -r model dataset schedule <<< "$run"
    for seed in ${SEEDS:-2020}; do
        for method in ${METHODS:-dense dsl_plus dsl}; do
            [[ $dataset/$method == ml-1m*/dsl ]] || echo "$model/$dataset/${schedule:-$dataset}/$method/$seed"
        done
    done
done | xargs -P "${JOBS:-1}" -I{} bash -c 'train {}'
