#!/usr/bin/env bash
# Everything that is measured on a CPU, in 20 to 30 minutes on two cores, and from it the tables, the pictures and the
# README's figures. Nothing else should run meanwhile. The results that were there stay until all new ones are.
#   PYTHON=python3 bench/cpu.sh            all of it
#   QUICK=1 bench/cpu.sh                   whether it runs, in minutes; bench/results stays as it is
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
OUT=${OUT:-bench/out}
rm -rf "$OUT/cpu"
mkdir -p "$OUT/cpu"

measure() { # suite, then options
  local suite=$1
  shift
  echo "== $suite $* ($((SECONDS / 60)) min)"
  "$PYTHON" bench "$suite" --device cpu --json "$OUT/cpu/$suite-cpu.jsonl" ${QUICK:+--quick} "$@"
}

if [ -n "${QUICK:-}" ]; then
  for suite in head step grads compile data scaling; do measure "$suite" --rounds 2; done
  exit
fi
measure head --rounds 15
measure grads --network av-mnist small --rounds 11
measure data --rounds 11
measure compile --rounds 11
measure scaling --rounds 7
# The rivals that differ from the published recipe in its scores alone are measured where a step is short.
measure step --network small --fusion late early --modalities 2 3 --rounds 9
measure step --network small --fusion late early --modalities 6 --rounds 5 --variants sequential exact shared sampled
measure step --network tokens --rounds 7 --variants sequential exact shared sampled
measure step --network av-mnist --fusion late --modalities 2 --rounds 7
measure step --network av-mnist --fusion early --modalities 2 --rounds 5 --variants sequential exact shared
measure step --network av-mnist --fusion late --modalities 3 6 --rounds 5 --variants exact shared
measure step --network crema-d --rounds 5 --variants sequential exact shared
measure step --network ur-funny --fusion late --rounds 3 --variants sequential exact shared
measure step --network ur-funny --fusion early --rounds 3 --variants exact shared sampled
mv "$OUT"/cpu/*.jsonl bench/results/
"$PYTHON" bench report
echo "== done in $((SECONDS / 60)) min"
