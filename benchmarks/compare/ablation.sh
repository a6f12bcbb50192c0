#!/usr/bin/env bash
# What of dsl_plus matters: one setting changed at a time, at density 0.1 (or DENSITY), three seeds (or SEEDS).
#   bash benchmarks/compare/ablation.sh BPR ml-100k 0.001 base nmf until-10-percent norm-0.3 drop-by-row-magnitude \
#       no-updates values-of-the-model
#   bash benchmarks/compare/ablation.sh LightGCN ml-100k 0.002 base until-30-percent no-updates nmf drop-by-row-magnitude
#   DATA=folder bash benchmarks/compare/ablation.sh BPR citeulike-t 0.001 base width-64 width-256 width-512 no-updates
#   DENSITY=0.05 DATA=folder bash benchmarks/compare/ablation.sh BPR ml-1m 0.001 base until-10-percent width-128
#   EVAL=1638400 bash benchmarks/compare/ablation.sh MultiVAE ml-100k 0.001 base random-positions positions-only \
#       linear-norm-0.3 columns-as-they-are no-updates scored-0.25 scored-0.125 popularity-0 popularity-0.75 popularity-1 \
#       moment-0 rate-power-0.5 moment-0-rate-power-0.5
#   bash benchmarks/compare/ablation.sh RecVAE ml-100k 0.001 base columns-as-they-are
#   STUDY=ablation-popularity bash benchmarks/compare/ablation.sh LightGCN ml-100k 0.001 base popularity-0.3
#   STUDY=ablation-popularity DENSITY=0.5,0.1 DATA=folder bash benchmarks/compare/ablation.sh BPR ml-1m 0.0005 \
#       base popularity--0.25 popularity--0.25-norm-0.3
#   STUDY=ablation-popularity SEEDS=1 DATA=folder bash benchmarks/compare/ablation.sh LightGCN yelp2018 0.01 popularity--0.25
#   STUDY=ablation-popularity EVAL=1638400 DATA=folder bash benchmarks/compare/ablation.sh MultiVAE ml-1m 0.005 base \
#       popularity--0.25 rows-equal      (rows-equal with SEEDS=1)
#   STUDY=ablation-popularity EVAL=1638400 bash benchmarks/compare/ablation.sh MultiVAE ml-100k 0.001 base popularity--0.25
#   STUDY=ablation-popularity EVAL=1638400 SEEDS=1 DATA=folder bash benchmarks/compare/ablation.sh MultiVAE citeulike-t 0.0005 \
#       popularity--0.25
#   STUDY=ablation-columns SEEDS=1 DATA=folder bash benchmarks/compare/ablation.sh LightGCN amazon-book-kgat 0.01 width-256
#   STUDY=ablation-scored bash benchmarks/compare/ablation.sh BPR ml-100k 0.001 base scored-0.25 scored-0.125
#       (and LightGCN ml-100k 0.002, BPR citeulike-t 0.001, this with scored-auto, too)
#   SCHEDULE=ml-100k-sequences bash benchmarks/compare/ablation.sh GRU4Rec ml-100k 0.001 base width-64 until-30-percent \
#       width-64-until-30-percent
# budgets-by-size, positions-only and linear-norm are for MultiVAE, random-positions for models that start from factors.
# Arguments: model, dataset (with a YAML file beside this one, of its name or SCHEDULE; DATA is the folder of those
# that RecBole does not bring along), learning rate: that which the comparison's tuning chose for dsl_plus, RecBole's
# default where there is no comparison; the names of variants, if not all. EVAL: eval_batch_size (users at once change
# no result). Two cells run at once (JOBS). Goes on where
# it was stopped; results are in benchmarks/results/ablation (or STUDY, which keeps the cells of one version of the
# method together), tables by python -m benchmarks.ablation_docs.
set -euo pipefail
cd "$(dirname "$0")/../.."
model=$1 dataset=$2 rate=$3 wanted=" ${*:4} "
variants=(
    base:
    values-of-the-model:--dsl_init_values=model
    norm-0.03:--dsl_init_norm=0.03
    norm-0.1:--dsl_init_norm=0.1
    norm-0.3:--dsl_init_norm=0.3
    norm-1:--dsl_init_norm=1
    norm-2:--dsl_init_norm=2
    norm-3:--dsl_init_norm=3
    nmf:--dsl_init=nmf
    power-0.25:--dsl_init_power=0.25
    power-0.5:--dsl_init_power=0.5
    popularity-0:--dsl_init_popularity=0
    popularity-0.3:--dsl_init_popularity=0.3
    popularity-0.75:--dsl_init_popularity=0.75
    popularity-1:--dsl_init_popularity=1
    popularity--0.25:--dsl_init_popularity=-0.25
    popularity--0.25-norm-0.3:"--dsl_init_popularity=-0.25 --dsl_init_norm=0.3"
    rate-power-0:--dsl_learning_rate_power=0
    rate-power-1:--dsl_learning_rate_power=1
    budgets-by-size:--dsl_split=size
    positions-only:--dsl_init_linear_norm=None
    linear-norm-0.3:--dsl_init_linear_norm=0.3
    random-positions:--dsl_init=random
    moment-0:--dsl_grow_moment=0
    rate-power-0.5:--dsl_learning_rate_power=0.5
    moment-0-rate-power-0.5:"--dsl_grow_moment=0 --dsl_learning_rate_power=0.5"
    random-topology:"--dsl_init=random --dsl_init_values=model"
    no-updates:--dsl_update_ratio=0
    drop-by-row-magnitude:--dsl_drop=row_magnitude
    drop-by-taylor:--dsl_drop=taylor
    gradients-as-they-are:--dsl_grow_row_power=0
    rows-equal:--dsl_grow_row_power=1
    columns-as-they-are:--dsl_grow_column_power=0
    last-gradient:--dsl_grow=last_gradient
    momentum:--dsl_grow=momentum
    ratio-0.5:--dsl_update_ratio=0.5
    interval-3-epochs:--dsl_update_interval=3epochs
    until-10-percent:--dsl_end=10%
    until-30-percent:--dsl_end=30%
    until-60-percent:--dsl_end=60%
    scored-0.25:--dsl_growth_rows=0.25
    scored-0.125:--dsl_growth_rows=0.125
    scored-auto:--dsl_growth_rows=auto
    width-32:--dsl_width=32
    width-64:--dsl_width=64
    width-64-until-30-percent:"--dsl_width=64 --dsl_end=30%"
    width-128:--dsl_width=128
    width-256:--dsl_width=256
    width-512:--dsl_width=512
)
for name in "${@:4}"; do
    [[ " ${variants[*]%%:*} " == *" $name "* ]] || { echo "$name is no variant; allowed: ${variants[*]%%:*}" >&2; exit 2; }
done
for variant in "${variants[@]}"; do
    name=${variant%%:*}
    [[ $wanted == "  " || $wanted == *" $name "* ]] || continue
    # shellcheck disable=SC2086
    recbole-dsl compare --models="$model" --datasets="$dataset" --methods=dsl_plus --densities="${DENSITY:-0.1}" --seeds="${SEEDS:-3}" \
        ${DATA:+--data_path="$DATA"} --config_files="benchmarks/compare/${SCHEDULE:-$dataset}.yaml" \
        --results="benchmarks/results/${STUDY:-ablation}" --name="$model-$dataset-$name" --learning_rate="$rate" --jobs="${JOBS:-2}" \
        ${EVAL:+--eval_batch_size="$EVAL"} ${variant#*:}
done
