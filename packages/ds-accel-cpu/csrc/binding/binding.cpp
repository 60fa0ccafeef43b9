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

  template <typename Arguments>
  void run(const Arguments& arguments, int32_t threads) const {
    int32_t status;
    {
      py::gil_scoped_release release;
      Workspace workspace(entry_->workspace_bytes != nullptr ? entry_->workspace_bytes(&arguments) : 0);
      ds_exec exec = {};
      exec.struct_size = sizeof(exec);
      exec.threads = threads < 1 ? 1 : threads;
      exec.workspace = workspace.data();
      exec.workspace_bytes = workspace.bytes();
      exec.parallel_for = dsk::parallel_for;
      status = entry_->run(&arguments, &exec);
    }
    if (status != DS_OK) {
      throw std::runtime_error(std::string("kernel ") + entry_->name + " refused the call (status " +
                               std::to_string(status) + "): " + describe(status));
    }
  }

  std::string name() const { return entry_->name; }

 protected:
  const ds_kernel_entry* entry_;
};

template <typename Arguments>
Arguments sized() {
  Arguments arguments = {};
  arguments.struct_size = sizeof(Arguments);
  return arguments;
}

class Adam : public Kernel {
 public:
  using Kernel::Kernel;
  void operator()(Address param, Address grad, Address exp_avg, Address exp_avg_sq, Address copy_out,
                  Address grad_factor, int64_t numel, int32_t param_dtype, int32_t grad_dtype, int32_t state_dtype,
                  int32_t copy_dtype, bool adamw, double lerp_weight, double beta2, double square_weight, double decay,
                  double weight_decay, double eps, double correction2_sqrt, double negative_step_size,
                  int64_t rounding_seed, int64_t rounding_offset, int32_t threads) const {
    auto a = sized<ds_adam_args>();
    a.param_dtype = param_dtype;
    a.grad_dtype = grad_dtype;
    a.state_dtype = state_dtype;
    a.copy_dtype = copy_dtype;
    a.adamw = adamw;
    a.numel = numel;
    a.param = pointer<void>(param);
    a.grad = pointer<const void>(grad);
    a.exp_avg = pointer<void>(exp_avg);
    a.exp_avg_sq = pointer<void>(exp_avg_sq);
    a.copy_out = pointer<void>(copy_out);
    a.grad_factor = pointer<const float>(grad_factor);
    a.lerp_weight = static_cast<float>(lerp_weight);
    a.beta2 = static_cast<float>(beta2);
    a.square_weight = static_cast<float>(square_weight);
    a.decay = static_cast<float>(decay);
    a.weight_decay = static_cast<float>(weight_decay);
    a.eps = static_cast<float>(eps);
    a.correction2_sqrt = static_cast<float>(correction2_sqrt);
    a.negative_step_size = static_cast<float>(negative_step_size);
    a.rounding_seed = rounding_seed;
    a.rounding_offset = rounding_offset;
    run(a, threads);
  }
};

class SumOfSquares : public Kernel {
 public:
  using Kernel::Kernel;
  void operator()(Address x, Address out, int64_t numel, int32_t dtype, int32_t threads) const {
    auto a = sized<ds_sum_of_squares_args>();
    a.dtype = dtype;
    a.numel = numel;
    a.x = pointer<const void>(x);
    a.out = pointer<double>(out);
    run(a, threads);
  }
};

class RmsNormForward : public Kernel {
 public:
  using Kernel::Kernel;
  void operator()(Address x, Address weight, Address y, Address rstd, int64_t rows, int64_t columns, int32_t dtype,
                  int32_t weight_dtype, double eps, int32_t threads) const {
    auto a = sized<ds_rms_norm_forward_args>();
    a.dtype = dtype;
    a.weight_dtype = weight_dtype;
    a.eps = static_cast<float>(eps);
    a.rows = rows;
    a.columns = columns;
    a.x = pointer<const void>(x);
    a.weight = pointer<const void>(weight);
    a.y = pointer<void>(y);
    a.rstd = pointer<float>(rstd);
    run(a, threads);
  }
};

class RmsNormBackward : public Kernel {
 public:
  using Kernel::Kernel;
  void operator()(Address dy, Address x, Address weight, Address rstd, Address dx, Address dweight, int64_t rows,
                  int64_t columns, int32_t dtype, int32_t weight_dtype, int32_t threads) const {
    auto a = sized<ds_rms_norm_backward_args>();
    a.dtype = dtype;
    a.weight_dtype = weight_dtype;
    a.rows = rows;
    a.columns = columns;
    a.dy = pointer<const void>(dy);
    a.x = pointer<const void>(x);
    a.weight = pointer<const void>(weight);
    a.rstd = pointer<const float>(rstd);
    a.dx = pointer<void>(dx);
    a.dweight = pointer<void>(dweight);
    run(a, threads);
  }
};

class LayerNormForward : public Kernel {
 public:
  using Kernel::Kernel;
  void operator()(Address x, Address weight, Address bias, Address y, Address mean, Address rstd, int64_t rows,
                  int64_t columns, int32_t dtype, int32_t weight_dtype, double eps, int32_t threads) const {
    auto a = sized<ds_layer_norm_forward_args>();
    a.dtype = dtype;
    a.weight_dtype = weight_dtype;
    a.eps = static_cast<float>(eps);
    a.rows = rows;
    a.columns = columns;
    a.x = pointer<const void>(x);
    a.weight = pointer<const void>(weight);
    a.bias = pointer<const void>(bias);
    a.y = pointer<void>(y);
    a.mean = pointer<float>(mean);
    a.rstd = pointer<float>(rstd);
    run(a, threads);
  }
};

class LayerNormBackward : public Kernel {
 public:
  using Kernel::Kernel;
  void operator()(Address dy, Address x, Address weight, Address mean, Address rstd, Address dx, Address dweight,
                  Address dbias, int64_t rows, int64_t columns, int32_t dtype, int32_t weight_dtype,
                  int32_t threads) const {
    auto a = sized<ds_layer_norm_backward_args>();
    a.dtype = dtype;
    a.weight_dtype = weight_dtype;
    a.rows = rows;
    a.columns = columns;
    a.dy = pointer<const void>(dy);
    a.x = pointer<const void>(x);
    a.weight = pointer<const void>(weight);
    a.mean = pointer<const float>(mean);
    a.rstd = pointer<const float>(rstd);
    a.dx = pointer<void>(dx);
    a.dweight = pointer<void>(dweight);
    a.dbias = pointer<void>(dbias);
    run(a, threads);
  }
};

class QuantizeInt8 : public Kernel {
 public:
  using Kernel::Kernel;
  void operator()(Address x, Address q, Address scales, int64_t numel, int64_t group_size, int32_t dtype,
                  int32_t threads) const {
    auto a = sized<ds_quantize_int8_args>();
    a.dtype = dtype;
    a.numel = numel;
    a.group_size = group_size;
    a.x = pointer<const void>(x);
    a.q = pointer<int8_t>(q);
    a.scales = pointer<float>(scales);
    run(a, threads);
  }
};

class DequantizeInt8 : public Kernel {
 public:
  using Kernel::Kernel;
  void operator()(Address q, Address scales, Address x, int64_t numel, int64_t group_size, int32_t dtype,
                  int32_t threads) const {
    auto a = sized<ds_dequantize_int8_args>();
    a.dtype = dtype;
    a.numel = numel;
    a.group_size = group_size;
    a.q = pointer<const int8_t>(q);
    a.scales = pointer<const float>(scales);
    a.x = pointer<void>(x);
    run(a, threads);
  }
};

template <typename Op>
void bind(py::module_& module, const char* name) {
  py::class_<Op>(module, name)
      .def(py::init<Address>(), py::arg("entry"))
      .def("__call__", &Op::operator())
      .def_property_readonly("name", &Op::name);
}

}  // namespace

PYBIND11_MODULE(_binding, module) {
  module.doc() = "Calls into the kernel libraries of ds-accel-cpu, the probe of the processor, and the thread pool.";
  py::class_<dsk::Level>(module, "Level")
      .def_property_readonly("name", [](const dsk::Level& level) { return std::string(level.name); })
      .def_readonly("usable", &dsk::Level::usable)
      .def_readonly("reason", &dsk::Level::reason);
  module.def("levels", &dsk::levels, "Instruction-set levels this build knows, best first.");
  module.def("features", &dsk::features, "Processor features that are present and saved by the operating system.");
  module.def("worker_count", &dsk::worker_count, "Threads the own pool has started in this process.");
  module.def(
      "borrow_threads",
      [](Address gomp_parallel) { dsk::borrow_threads(pointer<GompParallelFunction>(gomp_parallel)); },
      py::arg("gomp_parallel"), "Runs kernels on libgomp's threads, given the address of GOMP_parallel; 0 ends that.");
  module.def("is_borrowing", &dsk::is_borrowing, "Whether kernels run on borrowed threads.");
  bind<Adam>(module, "Adam");
  bind<SumOfSquares>(module, "SumOfSquares");
  bind<RmsNormForward>(module, "RmsNormForward");
  bind<RmsNormBackward>(module, "RmsNormBackward");
  bind<LayerNormForward>(module, "LayerNormForward");
  bind<LayerNormBackward>(module, "LayerNormBackward");
  bind<QuantizeInt8>(module, "QuantizeInt8");
  bind<DequantizeInt8>(module, "DequantizeInt8");
}
