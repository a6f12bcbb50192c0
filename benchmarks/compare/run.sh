#!/usr/bin/env bash
# The comparison on ml-100k: tuned at density 0.1 with the first seed, then all densities and seeds.
# Goes on where it was stopped; results are in benchmarks/results/compare.
set -euo pipefail
cd "$(dirname "$0")/../.."
common=(--models=BPR,LightGCN --datasets=ml-100k --methods=dense,narrow,static,dsl,dsl_plus,magnitude
        --config_files=benchmarks/compare/ml-100k.yaml --results=benchmarks/results/compare --jobs=2)
recbole-dsl tune "${common[@]}" --name=ml-100k-tuning --space=benchmarks/compare/space.txt --trials=4 --density=0.1
recbole-dsl compare "${common[@]}" --name=ml-100k --densities=0.5,0.2,0.1,0.05 --seeds=3 \
    --tuned=benchmarks/results/compare/ml-100k-tuning/tuned.yaml
