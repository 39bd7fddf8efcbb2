// The module agm._C: loading it fills the dispatch keys of the ops (csrc/cpu, csrc/cuda), whose schemas are
// in agm/ops/_library.py. Tensors do not pass through pybind11.
#include <pybind11/pybind11.h>
#include <torch/headeronly/version.h>

#include <string>

#ifdef AGM_CUDA_ARCHITECTURES
#include <cuda_runtime_api.h>
#endif

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
#ifdef __VERSION__
  info["cxx"] = __VERSION__;
#else
  info["cxx"] = "MSVC " + std::to_string(_MSC_VER);
#endif
  info["torch"] = std::to_string(TORCH_VERSION_MAJOR) + "." + std::to_string(TORCH_VERSION_MINOR) + "." +
                  std::to_string(TORCH_VERSION_PATCH);
#ifdef AGM_CUDA_ARCHITECTURES
  info["cuda"] = std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  info["architectures"] = AGM_CUDA_ARCHITECTURES;
#else
  info["cuda"] = py::none();
  info["architectures"] = "";
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Native kernels of agm; they serve torch.ops.agm.";
  module.def("build_info", &build_info,
             "Compiler, torch and CUDA versions of the build; cuda is None where it was built without.");
}
