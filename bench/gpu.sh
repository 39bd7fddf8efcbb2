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
rm -f "$OUT/bench.jsonl"
for suite in head step; do
  python3 bench $suite --device cuda --rounds 30 --json "$OUT/bench.jsonl" || status=$?
done
exit "$status"
