#include <array>
#include <optional>
#include <tuple>

#include "vector.h"

namespace agm {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::stable::Tensor;

constexpr int64_t kGrain = 32768;  // numbers that are worth a thread

// Each number of `factor` is 0 or 1 and becomes 0 or `scale`.
template <typename T>
AGM_HOST_DEVICE void drop_body(const T* x, T* factor, T scale, int64_t size, T* out) {
  for (int64_t i = 0; i < size; ++i) {
    const accumulate_t<T> own = widen(factor[i]) * widen(scale);
    factor[i] = narrow<T>(own);
    out[i] = narrow<T>(widen(x[i]) * own);
  }
}

template <typename T>
AGM_HOST_DEVICE void multiply_body(const T* x, const T* factor, int64_t size, T* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = narrow<T>(widen(x[i]) * widen(factor[i]));
}

#define AGM_DROPOUT_LOOPS(T)                                                    \
  AGM_CLONES void drop(const T* x, T* factor, T scale, int64_t size, T* out) {  \
    drop_body(x, factor, scale, size, out);                                     \
  }                                                                             \
  AGM_CLONES void multiply(const T* x, const T* factor, int64_t size, T* out) { \
    multiply_body(x, factor, size, out);                                        \
  }
AGM_DROPOUT_LOOPS(float)
AGM_DROPOUT_LOOPS(double)
AGM_DROPOUT_LOOPS(Half)
AGM_DROPOUT_LOOPS(BFloat16)

// Calls `f(begin, end)` for parts of the train rows and copies the other numbers.
template <typename T, typename F>
void rows(const T* x, T* out, int64_t train, int64_t size, const F& f) {
  torch::stable::parallel_for(0, size, kGrain, [&](int64_t begin, int64_t end) {
    const int64_t middle = std::min(std::max(begin, train), end);
    if (begin < middle) f(begin, middle);
    std::copy(x + middle, x + end, out + middle);
  });
}

// A result that was computed compact, in the layout that `empty_like` gives.
Tensor laid_out_as(const Tensor& like, const Tensor& made) {
  if (like.is_contiguous()) return made;
  Tensor out = torch::stable::empty_like(like);
  torch::stable::copy_(out, made);
  return out;
}

// As torch draws it, so that the same numbers are dropped, in whatever layout.
void draw(Tensor& factor, double probability) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(factor),
                                    torch::stable::detail::from(probability),
                                    torch::stable::detail::from(std::nullopt)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::bernoulli_", "float", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // releases what the call returns
}

std::tuple<Tensor, Tensor> dropout_rows(const Tensor& input, double p, int64_t train_rows) {
  STD_TORCH_CHECK(input.dim() > 0 && train_rows >= 0 && train_rows <= input.size(0), "Expected 0 to ",
                  input.dim() > 0 ? input.size(0) : 0, " train rows, but got ", train_rows, ".");
  Tensor part = input;
  Tensor mask = torch::stable::empty_like(torch::stable::narrow(part, 0, 0, train_rows));
  if (p < 1) {
    draw(mask, 1 - p);
  } else {
    torch::stable::zero_(mask);
  }
  const Tensor x = compact(input);
  Tensor factor = compact(mask);
  Tensor out = torch::stable::empty_like(x);
  AGM_DISPATCH_FLOATING(x.scalar_type(), "agm::dropout_rows", [&] {
    using A = accumulate_t<scalar_t>;
    const auto* from = static_cast<const scalar_t*>(x.const_data_ptr());
    auto* own = static_cast<scalar_t*>(factor.mutable_data_ptr());
    auto* to = static_cast<scalar_t*>(out.mutable_data_ptr());
    const scalar_t scale = narrow<scalar_t>(p < 1 ? A(1) / static_cast<A>(1 - p) : A(0));
    rows(from, to, factor.numel(), x.numel(), [&](int64_t begin, int64_t end) {
      drop(from + begin, own + begin, scale, end - begin, to + begin);
    });
  });
  return {laid_out_as(input, out), laid_out_as(mask, factor)};
}

Tensor dropout_rows_backward(const Tensor& grad, const Tensor& mask, double) {
  STD_TORCH_CHECK(mask.scalar_type() == grad.scalar_type() && mask.numel() <= grad.numel(),
                  "Expected the mask of the train rows, of the dtype of the gradient.");
  const Tensor source = compact(grad), factor = compact(mask);
  Tensor out = torch::stable::empty_like(source);
  AGM_DISPATCH_FLOATING(source.scalar_type(), "agm::dropout_rows_backward", [&] {
    const auto* from = static_cast<const scalar_t*>(source.const_data_ptr());
    const auto* own = static_cast<const scalar_t*>(factor.const_data_ptr());
    auto* to = static_cast<scalar_t*>(out.mutable_data_ptr());
    rows(from, to, factor.numel(), source.numel(),
         [&](int64_t begin, int64_t end) { multiply(from + begin, own + begin, end - begin, to + begin); });
  });
  return laid_out_as(grad, out);
}

STABLE_TORCH_LIBRARY_IMPL(AGM_LIBRARY, CPU, m) {
  m.impl("dropout_rows", TORCH_BOX(&dropout_rows));
  m.impl("dropout_rows_backward", TORCH_BOX(&dropout_rows_backward));
}

}  // namespace
}  // namespace agm
