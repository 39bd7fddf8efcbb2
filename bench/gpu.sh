#!/usr/bin/env bash
# On a machine with a GPU, torch and nvcc: builds the native library, runs the GPU tests, then the benchmarks.
# Results go to $OUT (default: bench/out) as JSON, one row a line; a short table comes last. No network is needed.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-bench/out}
mkdir -p "$OUT"
python3 -m pip install --quiet --no-build-isolation --no-deps --no-index --editable . >"$OUT/build.log" 2>&1 ||
  { tail -40 "$OUT/build.log"; exit 1; }
python3 -c 'import agm; print(*agm.backends(), sep="\n")' | tee "$OUT/backends.txt"
python3 -m pytest -q -m gpu 2>&1 | tee "$OUT/tests.txt" | tail -15
status=${PIPESTATUS[0]}
if command -v compute-sanitizer >/dev/null; then
  timeout 200 compute-sanitizer --tool memcheck --error-exitcode 1 \
    python3 -m pytest -q -x -m gpu tests/ops -k "cuda-cuda and (layouts or fuzz or many_classes)" \
    >"$OUT/memcheck.txt" 2>&1 || status=$?
  tail -3 "$OUT/memcheck.txt"
fi

measure() { # suite, rounds, then options; a suite that fails or hangs does not keep the others from running
  local suite=$1 rounds=$2
  shift 2
  echo "== $suite $*" | tee -a "$OUT/bench.txt"
  timeout 240 python3 bench "$suite" --device cuda --rounds "$rounds" --json "$OUT/$suite-cuda.jsonl" "$@" \
    >>"$OUT/bench.txt" 2>&1 || { status=$?; tail -5 "$OUT/bench.txt"; }
}

rm -f "$OUT"/*-cuda.jsonl "$OUT/bench.txt"
# Each network by itself: the rows are written when a command ends.
measure head 30
for network in small tokens av-mnist crema-d ur-funny; do
  measure step 11 --network "$network"
done
measure grads 20
measure compile 20
measure data 7
measure scaling 20
python3 bench check --device cuda --rounds 11 2>&1 | tee "$OUT/check.txt" || status=${PIPESTATUS[0]}
python3 bench profile --device cuda >"$OUT/profile.txt" 2>&1 || status=$?
# What is to be looked at first: whole steps, and the modulation at its usual size.
grep -A9 -E '^step |^modulate M=2 B=64 C=10,' "$OUT/bench.txt"
exit "$status"
