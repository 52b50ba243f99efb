// The introspection module ptq4arvg._info: what the op library is made of and which kernels it uses. It finds the
// library's C functions by dlopen and dlsym, so it links to no torch.
#include <dlfcn.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

namespace py = pybind11;

namespace {

using TextFunction = const char* (*)();
using IsaFunction = const char* (*)(const char*, const char**);
using MeasureFunction = const char* (*)(const char*, int64_t, int, double, double*);
using CudaKernelFunction = const char* (*)(long long, long long, long long, int, int, const char**, const char**);

struct Library {
  TextFunction build_info = nullptr, list_kernels = nullptr, last_kernel = nullptr;
  IsaFunction isa = nullptr;
  MeasureFunction measure = nullptr;
  CudaKernelFunction cuda_kernel = nullptr;
};

Library library;

const Library& loaded() {
  if (!library.isa) throw py::import_error("ptq4arvg._info: call load(path) with the op library first");
  return library;
}

template <class Function>
Function find(void* handle, const char* name) {
  void* symbol = dlsym(handle, name);
  if (!symbol) throw py::import_error("ptq4arvg._info: the op library has no " + std::string(name) + "; rebuild both");
  return reinterpret_cast<Function>(symbol);
}

void load(const std::string& path) {
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // never closed: its operators stay registered
  if (!handle) throw py::import_error("ptq4arvg._info: " + std::string(dlerror()));
  library = {find<TextFunction>(handle, "ptq4arvg_build_info"), find<TextFunction>(handle, "ptq4arvg_list_kernels"),
             find<TextFunction>(handle, "ptq4arvg_last_kernel"), find<IsaFunction>(handle, "ptq4arvg_isa"),
             find<MeasureFunction>(handle, "ptq4arvg_measure"),
             find<CudaKernelFunction>(handle, "ptq4arvg_cuda_kernel")};
}

py::object parsed(const char* json) { return py::module_::import("json").attr("loads")(json); }

std::string isa(const char* wanted) {
  const char* name = nullptr;
  if (const char* error = loaded().isa(wanted, &name)) throw py::value_error(error);
  return name;
}

double measure(const char* kind, int64_t bytes, int threads, double seconds) {
  const MeasureFunction function = loaded().measure;
  const char* error;
  double result = 0;
  {
    py::gil_scoped_release release;
    error = function(kind, bytes, threads, seconds, &result);
  }
  if (error) throw py::value_error(error);
  return result;
}

py::tuple cuda_kernel(long long m, long long n, long long k, int bits, int sm) {
  const char *name = nullptr, *reason = nullptr;
  if (const char* error = loaded().cuda_kernel(m, n, k, bits, sm, &name, &reason)) throw py::value_error(error);
  return py::make_tuple(name, reason);
}

}  // namespace

PYBIND11_MODULE(_info, m) {
  m.doc() = "What the op library is made of, and which of its kernels run.";
  m.def("load", &load, py::arg("path"), "Connect to the op library at `path` (ImportError if it cannot be opened).");
  m.def(
      "build_info", [] { return parsed(loaded().build_info()); },
      "dict: version, compiler, compiled and available instruction sets, whether CUDA kernels are in.");
  m.def(
      "list_kernels", [] { return parsed(loaded().list_kernels()); },
      "list of dicts: name, op, device, isa, weight_bits, available.");
  m.def(
      "last_kernel", [] { return std::string(loaded().last_kernel()); }, "Name of the kernel that ran last, or ''.");
  m.def(
      "cuda_kernel", &cuda_kernel, py::arg("m"), py::arg("n"), py::arg("k"), py::arg("bits"), py::arg("sm"),
      "(name, reason): the kernel that a CUDA product of these sizes would take on compute capability `sm`. ValueError "
      "where the build has none.");
  m.def("isa", [] { return isa(nullptr); }, "The CPU instruction set in use. ValueError for a bad PTQ4ARVG_CPU_ISA.");
  m.def(
      "set_isa", [](const std::string& name) { return isa(name.c_str()); }, py::arg("name"),
      "Use this CPU instruction set from now on ('' for the default); returns its name. ValueError if it is unknown "
      "or the machine lacks it.");
  m.def(
      "measure_peak",
      [](const std::string& kind, int threads, double seconds) { return measure(kind.c_str(), 0, threads, seconds); },
      py::arg("kind"), py::arg("threads"), py::arg("seconds"),
      "Multiplications and additions a second of a register-only loop: 'amx', 'vnni', 'avx2_maddubs' (int8) or 'fma' "
      "(float32). ValueError for a kind that this machine lacks.");
  m.def(
      "measure_bandwidth",
      [](int64_t bytes, int threads, double seconds) { return measure(nullptr, bytes, threads, seconds); },
      py::arg("bytes"), py::arg("threads"), py::arg("seconds"),
      "Bytes read a second from a buffer of this size by so many threads together.");
}
