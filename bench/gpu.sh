#!/usr/bin/env bash
# On a machine with a GPU, torch and nvcc, in at most 14 minutes: builds, tests, then measures, what decides first.
# Results go to $OUT (default: bench/out). Rows are appended as they are measured, so a run that is cut off loses nothing.
# No network is needed. A library that was built before (agm/_C*.so, carried with the tree) is taken as it is.
#   bench/gpu.sh                 all of it
#   bench/gpu.sh build head      these parts: build tests head step graphs passes linear grads scaling
#   DRY=1 bench/gpu.sh           prints the commands with their limits in seconds, and runs nothing
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-bench/out}
PARTS=" ${*:-build tests head step graphs passes linear grads scaling} "
status=0

has() { # part
  [[ $PARTS == *" $1 "* ]]
}

say() {
  [ -n "${DRY:-}" ] || echo "## ${SECONDS}s $*"
}

limited() { # seconds, file for what it prints, command ...
  local limit=$1 file=$2
  shift 2
  if [ -n "${DRY:-}" ]; then
    echo "$limit $*"
    return 0
  fi
  timeout "$limit" "$@" >>"$OUT/$file" 2>&1
}

measure() { # seconds, suite, options; one that fails or hangs does not keep the others from running
  local limit=$1 suite=$2
  shift 2
  say "$suite $*"
  limited "$limit" bench.txt python3 bench "$suite" --device cuda --rounds 5 --json "$OUT/$suite-cuda.jsonl" "$@" ||
    { status=$?; tail -3 "$OUT/bench.txt"; }
}

CHECK='import agm; found = [s for s in agm.backends() if s.device == "cuda"]; print(*found, sep="\n")
assert sum(s.backend == "cuda" for s in found) == 5, "there are no CUDA kernels"'
PIP=(python3 -m pip install --quiet --no-build-isolation --no-deps --no-index --editable .)

if [ -z "${DRY:-}" ]; then
  mkdir -p "$OUT"
  export PYTHONUNBUFFERED=1 TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$(python3 -c \
    'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))')}
  { nvidia-smi -L; nvcc --version | tail -2; git rev-parse HEAD; python3 -c \
    'import sys, torch, triton; print(sys.version, torch.__version__, triton.__version__)'; } >"$OUT/machine.txt" 2>&1
  cat "$OUT/machine.txt"
fi

if has build; then
  say build
  # Without a build the tree is put on the path, and a library that lies in it stays.
  limited 30 build.log env AGM_BUILD=0 "${PIP[@]}"
  if ! limited 20 backends.txt python3 -c "$CHECK" || [ -n "${DRY:-}" ]; then
    limited 170 build.log env AGM_BUILD=1 AGM_CUDA=1 "${PIP[@]}" || { tail -40 "$OUT/build.log"; exit 1; }
    limited 20 backends.txt python3 -c "$CHECK" || { tail -20 "$OUT/backends.txt"; exit 1; }
  fi
  [ -n "${DRY:-}" ] || cat "$OUT/backends.txt"
fi

if has tests; then
  say tests
  # The CUDA kernels on all their tests; of Triton's, which compile anew for each shape and type, one layout of each
  # type, and what is registered. The memory checker sees nothing inside the blocks of torch's allocator.
  limited 150 memcheck.txt env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 9 \
    python3 -m pytest -q -x -m gpu tests/ops -k "cuda-cuda and (many_classes or layouts)" &
  checker=$!
  limited 170 tests.txt python3 -m pytest -q -n 10 -m gpu tests/ops \
    -k "not 32_bits and (cuda-cuda or reference-cuda or (triton-cuda and (registration or (layouts and permuted))))" ||
    status=$?
  wait $checker || status=$?
  limited 50 tests.txt python3 -m pytest -q -m gpu tests/ops -k "32_bits" || status=$?
  [ -n "${DRY:-}" ] || { tail -15 "$OUT/tests.txt" | cut -c1-180; tail -3 "$OUT/memcheck.txt"; }
fi

# Each backend of the modulation; whole steps; steps in CUDA graphs; one pass against two; then the rest.
! has head || measure 110 head --variants cuda triton --op modulate modulate_backward modulate_cross_entropy \
  modulate_cross_entropy_backward
! has step || measure 60 step --network av-mnist --fusion late --modalities 2 --variants exact shared refreshed
! has graphs || measure 50 compile --network av-mnist --variants "joint, graph" "exact, graph" "shared, graph"
! has passes || measure 40 step --network tokens --fusion late --modalities 2 --variants exact exact-one
! has linear || measure 40 linear
! has grads || measure 25 grads --network av-mnist
! has scaling || measure 50 scaling
[ -n "${DRY:-}" ] || [ ! -f "$OUT/bench.txt" ] || grep -E '^[a-z].*over|cuda|triton|graph|exact|shared|fused' "$OUT/bench.txt" | cut -c1-120
exit "$status"
