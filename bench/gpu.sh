#!/usr/bin/env bash
# On a machine with a GPU, torch and nvcc: builds the native library, runs the GPU tests, then the benchmarks.
# Results go to $OUT (default: bench/out) as JSON, one row a line; a short table comes last. No network is needed.
#   bench/gpu.sh                     all of it
#   bench/gpu.sh build head step     these parts: build, tests, one suite or more, check, profile
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-bench/out}
mkdir -p "$OUT"
PARTS=" ${*:-build tests head step grads compile data scaling check profile} "
status=0

has() { # part
  [[ $PARTS == *" $1 "* ]]
}

if has build; then
  python3 -m pip install --quiet --no-build-isolation --no-deps --no-index --editable . >"$OUT/build.log" 2>&1 ||
    { tail -40 "$OUT/build.log"; exit 1; }
fi
python3 -c 'import agm; print(*agm.backends(), sep="\n")' | tee "$OUT/backends.txt"
if has tests; then
  python3 -m pytest -q -m gpu 2>&1 | tee "$OUT/tests.txt" | tail -15
  status=${PIPESTATUS[0]}
  if command -v compute-sanitizer >/dev/null; then
    timeout 200 compute-sanitizer --tool memcheck --error-exitcode 1 \
      python3 -m pytest -q -x -m gpu tests/ops -k "cuda-cuda and (layouts or fuzz or many_classes)" \
      >"$OUT/memcheck.txt" 2>&1 || status=$?
    tail -3 "$OUT/memcheck.txt"
  fi
fi

measure() { # suite, rounds, then options; a suite that fails or hangs does not keep the others from running
  local suite=$1 rounds=$2
  shift 2
  echo "== $suite $*" | tee -a "$OUT/bench.txt"
  timeout 240 python3 bench "$suite" --device cuda --rounds "$rounds" --json "$OUT/$suite-cuda.jsonl" "$@" \
    >>"$OUT/bench.txt" 2>&1 || { status=$?; tail -5 "$OUT/bench.txt"; }
}

rm -f "$OUT/bench.txt"
for suite in head grads compile data scaling; do
  has "$suite" || continue
  rm -f "$OUT/$suite-cuda.jsonl"
  measure "$suite" 20
done
if has step; then
  rm -f "$OUT/step-cuda.jsonl"
  for network in small tokens av-mnist crema-d ur-funny; do # each by itself: rows are written when a command ends
    measure step 11 --network "$network"
  done
fi
if has check; then
  python3 bench check --device cuda --rounds 11 2>&1 | tee "$OUT/check.txt" || status=${PIPESTATUS[0]}
fi
if has profile; then
  python3 bench profile --device cuda >"$OUT/profile.txt" 2>&1 || status=$?
fi
# What is to be looked at first: whole steps, and the modulation at its usual size.
[ ! -f "$OUT/bench.txt" ] || grep -A9 -E '^step |^modulate M=2 B=64 C=10,' "$OUT/bench.txt"
exit "$status"
