#!/usr/bin/env bash
# How much dropout a sparse model takes, beside the dense one with as much: RecBole's default and less.
#   bash benchmarks/compare/dropout.sh MultiVAE ml-100k 0.5 0.2
#   DATA=folder SCHEDULE=ml-1m-pos-sequences FLAGS="--epochs=300 --stopping_step=10" METHODS=dense,narrow \
#       DENSITIES=0.1 SEEDS=1 bash benchmarks/compare/dropout.sh SASRec ml-1m-pos 0.2
# Arguments: model, dataset (with a YAML file beside this one, of its name or SCHEDULE; DATA is the folder of those that
# RecBole does not bring along), shares that are dropped. The learning rate is RecBole's default, 0.001. FLAGS are further
# ones (here those of out_of_the_box.sh); METHODS, DENSITIES and SEEDS are those of recbole-dsl compare. Goes on where it
# was stopped; the table is made by python -m benchmarks.ablation_docs, with the results of out_of_the_box.sh beside.
set -euo pipefail
cd "$(dirname "$0")/../.."
model=$1 dataset=$2
case $model in
    SASRec) keys=(--hidden_dropout_prob --attn_dropout_prob) ;;
    *) keys=(--dropout_prob) ;;
esac
for share in "${@:3}"; do
    # shellcheck disable=SC2086
    recbole-dsl compare --models="$model" --datasets="$dataset" --methods="${METHODS:-dense,dsl_plus}" \
        --densities="${DENSITIES:-0.2,0.1}" --seeds="${SEEDS:-3}" ${DATA:+--data_path="$DATA"} \
        --config_files="benchmarks/compare/${SCHEDULE:-$dataset}.yaml" ${FLAGS:-} \
        --results=benchmarks/results/dropout --name="$model-$dataset-$share" --learning_rate=0.001 \
        --jobs="${JOBS:-1}" "${keys[@]/%/=$share}"
done
