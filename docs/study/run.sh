#!/bin/sh
# One setting of the study: alpha on a validation split, then all variants on the test split.
#   docs/study/run.sh NAME DATASET
# Runs go to runs/study/NAME, tables to docs/results/study/NAME. What is finished is not repeated.
set -eu
name=$1 dataset=$2
here=$(dirname "$0")
runs=runs/study/$name results=$here/../results/study/$name
mkdir -p "$results"

# tune VARIANT [OPTIONS]: leaves the chosen alpha in $alpha. Seeds 100 and 101 are used for nothing else.
tune() {
    variant=$1
    shift
    if [ ! -f "$results/tune-$variant.csv" ]; then
        agm tune --config "$here/common.toml" --dataset "$dataset" --method agm --setting alpha=0.5,1.5,3 \
            --seeds 2 --seed 100 --out "$runs/tune-$variant" "$@"
        cp "$runs/tune-$variant/tune.csv" "$results/tune-$variant.csv"
    fi
    alpha=$(sed -n 's/.*alpha=\([0-9.]*\)).*,yes,.*/\1/p' "$results/tune-$variant.csv")
}

# Clipped, bounded and smoothed are the exact mode with one thing changed, so they have its alpha.
tune exact
exact="agm(alpha=$alpha"
methods="joint,$exact),$exact,clip_norm=1,clip_above=1),$exact,bound=0.9),$exact,smoothing=0.9)"
tune shared --masked shared
methods="$methods,agm(alpha=$alpha,masked=shared)"

agm compare --config "$here/common.toml" --dataset "$dataset" --methods "$methods" --seeds 5 --strength \
    --out "$runs/compare"
cp "$runs/compare"/compare.* "$results"
