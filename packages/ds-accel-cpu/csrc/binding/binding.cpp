// Python's door to a table of kernels: raw addresses in, status out. Knows neither torch nor any instruction set.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "ds_kernel.h"
#include "pool.h"
#include "probe.h"

namespace py = pybind11;

namespace {

using Address = uintptr_t;
using GompParallelFunction = std::remove_pointer_t<dsk::GompParallel>;

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

const char* describe(int32_t status) {
  switch (status) {
    case DS_BAD_ARGUMENT:
      return "an argument is outside of what the op allows";
    case DS_UNSUPPORTED_DTYPE:
      return "the dtypes are not served";
    case DS_WORKSPACE_TOO_SMALL:
      return "the workspace is too small";
    case DS_DEVICE_ERROR:
      return "the device runtime failed";
    case DS_INDEX_OUT_OF_RANGE:
      return "an index names no row";
    default:
      return "unknown status";
  }
}

// Memory for one call, aligned to a cache line; the kernels themselves allocate nothing.
class Workspace {
 public:
  explicit Workspace(uint64_t bytes) : bytes_(bytes) {
    if (bytes > 0) memory_ = ::operator new(bytes, std::align_val_t(64));
  }
  ~Workspace() {
    if (memory_ != nullptr) ::operator delete(memory_, std::align_val_t(64));
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  void* data() const { return memory_; }
  uint64_t bytes() const { return bytes_; }

 private:
  void* memory_ = nullptr;
  uint64_t bytes_;
};

// One row of the table of a library that ds_core.ops.native has loaded and checked.
class Kernel {
 public:
  explicit Kernel(Address entry) : entry_(pointer<const ds_kernel_entry>(entry)) {
    if (entry_ == nullptr) throw std::invalid_argument("the address of a kernel entry must not be 0");
  }

  // Calls the kernel with a packed argument struct, which begins with its own size (ds_core.ops.arguments makes it).
  void run(const py::bytes& packed, int32_t threads) const {
    char* arguments = nullptr;
    Py_ssize_t size = 0;
    if (PyBytes_AsStringAndSize(packed.ptr(), &arguments, &size) != 0) throw py::error_already_set();
    int32_t status;
    {
      py::gil_scoped_release release;
      Workspace workspace(entry_->workspace_bytes != nullptr ? entry_->workspace_bytes(arguments) : 0);
      ds_exec exec = {};
      exec.struct_size = sizeof(exec);
      exec.threads = threads < 1 ? 1 : threads;
      exec.workspace = workspace.data();
      exec.workspace_bytes = workspace.bytes();
      exec.parallel_for = dsk::parallel_for;
      status = entry_->run(arguments, &exec);
    }
    if (status == DS_OK) return;
    const std::string message = std::string("kernel ") + entry_->name + " refused the call (status " +
                                std::to_string(status) + "): " + describe(status);
    if (status == DS_INDEX_OUT_OF_RANGE) throw std::out_of_range(message);  // IndexError
    throw std::runtime_error(message);
  }

  std::string name() const { return entry_->name; }

 private:
  const ds_kernel_entry* entry_;
};

}  // namespace

PYBIND11_MODULE(_binding, module) {
  module.doc() = "Calls into the kernel libraries of ds-accel-cpu, the probe of the processor, and the thread pool.";
  py::class_<dsk::Level>(module, "Level")
      .def_property_readonly("name", [](const dsk::Level& level) { return std::string(level.name); })
      .def_readonly("usable", &dsk::Level::usable)
      .def_readonly("reason", &dsk::Level::reason);
  module.def("levels", &dsk::levels, "Instruction-set levels this build knows, best first.");
  module.def("request_permission", &dsk::request_permission, py::arg("level"),
             "Asks the operating system for what the code of a level needs; the reason when it refuses, else nothing.");
  module.def("levels_left_out", &dsk::levels_left_out, "Levels this build has no library for, and why.");
  module.def("features", &dsk::features, "Processor features that are present and saved by the operating system.");
  module.def("worker_count", &dsk::worker_count, "Threads the own pool has started in this process.");
  module.def(
      "borrow_threads",
      [](Address gomp_parallel) { dsk::borrow_threads(pointer<GompParallelFunction>(gomp_parallel)); },
      py::arg("gomp_parallel"), "Runs kernels on libgomp's threads, given the address of GOMP_parallel; 0 ends that.");
  module.def("is_borrowing", &dsk::is_borrowing, "Whether kernels run on borrowed threads.");
  py::class_<Kernel>(module, "Kernel")
      .def(py::init<Address>(), py::arg("entry"))
      .def("__call__", &Kernel::run, py::arg("arguments"), py::arg("threads"))
      .def_property_readonly("name", &Kernel::name);
}
