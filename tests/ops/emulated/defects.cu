// One mistake each, which the emulator or the sanitizers must find: tests/ops/test_emulator.py.
#include "../../../csrc/cuda/launch.h"

namespace agm {
namespace {

using torch::stable::Tensor;

constexpr int kThreads = 256;

// A constructor, which shared memory does not run.
struct Number {
  float value = 0;
};

__global__ void reverse(const float* in, float* out) {
  __shared__ Number shared[kThreads];
  shared[threadIdx.x].value = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = shared[kThreads - 1 - threadIdx.x].value;
}

__global__ void missing_barrier(const float* in, float* out) {
  __shared__ Number shared[kThreads];
  shared[threadIdx.x].value = in[threadIdx.x];
  out[threadIdx.x] = shared[kThreads - 1 - threadIdx.x].value;
}

// Nothing keeps a fast warp from writing what a slow one has yet to read.
__global__ void overtaken(const float* in, float* out) {
  __shared__ Number shared[kThreads];
  for (int round = 0; round < 2; ++round) {
    shared[threadIdx.x].value = round == 0 ? in[threadIdx.x] : -1;
    __syncthreads();
    if (round == 0) out[threadIdx.x] = shared[kThreads - 1 - threadIdx.x].value;
  }
}

__global__ void unwritten_shared(const float* in, float* out) {
  __shared__ Number shared[kThreads];
  if (threadIdx.x != 5) shared[threadIdx.x].value = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = shared[kThreads - 1 - threadIdx.x].value;
}

__global__ void divergent_barriers(const float* in, float* out) {
  if (in[threadIdx.x] == 7) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = in[threadIdx.x];
}

__global__ void early_return(const float* in, float* out) {
  if (threadIdx.x == 7) return;
  __syncthreads();
  out[threadIdx.x] = in[threadIdx.x];
}

__global__ void absent_lane(const float* in, float* out) {
  if (threadIdx.x != 7) out[threadIdx.x] = __shfl_xor_sync(~0u, in[threadIdx.x], 1);
}

__global__ void lane_outside_mask(const float* in, float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffu, in[threadIdx.x], 16);
}

__global__ void out_of_bounds(const float* in, float* out) { out[threadIdx.x] = in[threadIdx.x + 1]; }

__global__ void shared_out_of_bounds(const float* in, float* out) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x + 1] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x];
}

struct alignas(16) Pack {
  float value[4];
};

__global__ void misaligned(const float* in, float* out) {
  if (threadIdx.x == 0) *reinterpret_cast<Pack*>(out) = *reinterpret_cast<const Pack*>(in + 1);
}

template <void (*kernel)(const float*, float*)>
Tensor run(const Tensor& in) {
  Tensor out = torch::stable::new_empty(in, {kThreads});
  const auto* source = static_cast<const float*>(in.const_data_ptr());
  auto* target = static_cast<float*>(out.mutable_data_ptr());
  on_device_of(in, [&](cudaStream_t stream) { launch(kernel, 1, kThreads, stream, source, target); });
  return out;
}

Tensor no_blocks(const Tensor& in) {
  on_device_of(in, [&](cudaStream_t stream) { launch(reverse, 0, kThreads, stream, nullptr, nullptr); });
  return in;
}

Tensor another_stream(const Tensor& in) {
  on_device_of(in, [&](cudaStream_t) { launch(reverse, 1, kThreads, nullptr, nullptr, nullptr); });
  return in;
}

Tensor any_device(const Tensor& in) {
  launch(reverse, 1, kThreads, current_stream(in), nullptr, nullptr);
  return in;
}

// On the host, as csrc/cpu might.
Tensor host_out_of_bounds(const Tensor& in) {
  Tensor out = torch::stable::new_empty(in, {in.numel()});
  const auto* source = static_cast<const float*>(in.const_data_ptr());
  auto* target = static_cast<float*>(out.mutable_data_ptr());
  for (int64_t i = 0; i <= in.numel(); ++i) target[i] = source[i];
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(AGM_LIBRARY, AGM_CUDA_KEY, m) {
  m.impl("reverse", TORCH_BOX(&run<reverse>));
  m.impl("missing_barrier", TORCH_BOX(&run<missing_barrier>));
  m.impl("overtaken", TORCH_BOX(&run<overtaken>));
  m.impl("unwritten_shared", TORCH_BOX(&run<unwritten_shared>));
  m.impl("divergent_barriers", TORCH_BOX(&run<divergent_barriers>));
  m.impl("early_return", TORCH_BOX(&run<early_return>));
  m.impl("absent_lane", TORCH_BOX(&run<absent_lane>));
  m.impl("lane_outside_mask", TORCH_BOX(&run<lane_outside_mask>));
  m.impl("out_of_bounds", TORCH_BOX(&run<out_of_bounds>));
  m.impl("shared_out_of_bounds", TORCH_BOX(&run<shared_out_of_bounds>));
  m.impl("misaligned", TORCH_BOX(&run<misaligned>));
  m.impl("no_blocks", TORCH_BOX(&no_blocks));
  m.impl("another_stream", TORCH_BOX(&another_stream));
  m.impl("any_device", TORCH_BOX(&any_device));
  m.impl("host_out_of_bounds", TORCH_BOX(&host_out_of_bounds));
}

}  // namespace
}  // namespace agm
