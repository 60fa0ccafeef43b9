// Python's door to the shared-memory collectives: raw addresses in, errors as RuntimeError. Knows nothing of torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "channels.h"
#include "group.h"
#include "queue.h"

namespace py = pybind11;

namespace {

using Address = uintptr_t;
using dsc::Call;

// Lets Python look at signals while C++ waits: an interrupt ends the wait.
void poll_signals() {
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

// One rank's end of a group with everything that belongs to it.
class Endpoint {
 public:
  Endpoint(int fd, const dsc::Settings& settings) : group_(fd, settings), queue_(group_), channels_(group_) {}

  void close(double drain_s) {
    if (is_closed_) return;
    is_closed_ = true;
    channels_.stop(drain_s);
    queue_.stop(drain_s);
  }

  dsc::Group& group() { return group_; }
  dsc::Queue& queue() { return queue_; }
  dsc::Channels& channels() { return channels_; }

 private:
  dsc::Group group_;
  dsc::Queue queue_;
  dsc::Channels channels_;
  bool is_closed_ = false;
};

constexpr double kLastGrace_s = 1.0;  // for what was issued and never waited for, when a group is dropped

// Threads and locks of the parent do not exist in a forked child: there, nothing of the endpoint is touched.
struct Dispose {
  void operator()(Endpoint* endpoint) const {
    if (endpoint->group().is_forked()) return;
    const bool has_gil = PyGILState_Check() != 0;
    if (!has_gil) return destroy(endpoint);
    const py::gil_scoped_release release;
    destroy(endpoint);
  }
  static void destroy(Endpoint* endpoint) {
    endpoint->close(kLastGrace_s);
    delete endpoint;
  }
};

class Handle {
 public:
  Handle(std::shared_ptr<Endpoint> endpoint, dsc::JobPtr job, bool is_message, double timeout_s)
      : endpoint_(std::move(endpoint)), job_(std::move(job)), is_message_(is_message), timeout_s_(timeout_s) {}

  bool wait(double limit_s) {
    bool in_time = true;
    if (!job_->is_over()) {
      const py::gil_scoped_release release;
      in_time = is_message_ ? endpoint_->channels().wait(job_, timeout_s_, limit_s, poll_signals)
                            : endpoint_->queue().wait(*job_, limit_s, poll_signals);
    }
    if (in_time && job_->state == dsc::Job::kFailed) throw dsc::Broken(job_->error);
    return in_time;
  }
  bool is_over() const { return job_->is_over(); }
  std::string error() const { return job_->state == dsc::Job::kFailed ? job_->error : std::string(); }
  int32_t source() const { return job_->source; }

 private:
  std::shared_ptr<Endpoint> endpoint_;
  dsc::JobPtr job_;
  bool is_message_;
  double timeout_s_;
};

// The addresses; one alone stands for `count` consecutive blocks of `stride` bytes.
template <typename T>
std::vector<T*> pointers(const std::vector<Address>& addresses, int32_t count, int64_t stride) {
  std::vector<T*> result;
  for (const Address address : addresses) result.push_back(reinterpret_cast<T*>(address));
  if (addresses.size() == 1) {
    for (int32_t i = 1; i < count; ++i) result.push_back(result.front() + i * stride);
  }
  return result;
}

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

// Lists of one address stand for consecutive blocks.
py::object collective(const std::shared_ptr<Endpoint>& endpoint, int32_t kind, int32_t dtype, int32_t op, int32_t root,
                      int64_t bytes, const std::vector<Address>& in, const std::vector<Address>& out, double timeout_s,
                      bool is_async) {
  const int32_t ranks = endpoint->group().ranks();
  require(kind >= 0 && kind < dsc::kKinds && kind != dsc::kAllToAll, "no such collective");
  require(dtype >= 0 && dtype < dsc::kDtypeCount, "no such dtype");
  require(root >= -1 && root < ranks && bytes >= 0, "the root or the size is out of range");
  const bool lists_in = kind == dsc::kReduceScatter || kind == dsc::kScatter;
  const bool lists_out = kind == dsc::kAllGather || kind == dsc::kGather;
  Call call;
  call.kind = kind;
  call.dtype = dtype;
  call.op = op;
  call.root = root;
  call.bytes = bytes;
  call.in = pointers<const char>(in, lists_in ? ranks : 1, bytes);
  call.out = pointers<char>(out, lists_out ? ranks : 1, bytes);
  call.timeout_s = timeout_s;
  const bool is_root = root < 0 || root == endpoint->group().rank();
  const bool needs_in = kind != dsc::kBarrier && (kind != dsc::kScatter || is_root);
  const bool needs_out = kind != dsc::kBarrier && ((kind != dsc::kGather && kind != dsc::kReduce) || is_root);
  require(!needs_in || call.in.size() == static_cast<size_t>(lists_in ? ranks : 1), "wrong number of inputs");
  require(!needs_out || call.out.size() == static_cast<size_t>(lists_out ? ranks : 1), "wrong number of outputs");
  if (is_async) {
    return py::cast(Handle(endpoint, endpoint->queue().submit(std::move(call)), false, timeout_s));
  }
  {
    const py::gil_scoped_release release;
    endpoint->queue().run_now(std::move(call), poll_signals);
  }
  return py::none();
}

py::object all_to_all(const std::shared_ptr<Endpoint>& endpoint, int32_t dtype, const std::vector<Address>& in,
                      const std::vector<Address>& out, const std::vector<int64_t>& in_bytes,
                      const std::vector<int64_t>& out_bytes, double timeout_s, bool is_async) {
  const size_t ranks = static_cast<size_t>(endpoint->group().ranks());
  require(dtype >= 0 && dtype < dsc::kDtypeCount, "no such dtype");
  require(in.size() == ranks && out.size() == ranks && in_bytes.size() == ranks && out_bytes.size() == ranks,
          "all_to_all needs an input and an output for each rank");
  Call call;
  call.kind = dsc::kAllToAll;
  call.dtype = dtype;
  call.in = pointers<const char>(in, 1, 0);
  call.out = pointers<char>(out, 1, 0);
  call.in_bytes = in_bytes;
  call.out_bytes = out_bytes;
  call.timeout_s = timeout_s;
  if (is_async) {
    return py::cast(Handle(endpoint, endpoint->queue().submit(std::move(call)), false, timeout_s));
  }
  {
    const py::gil_scoped_release release;
    endpoint->queue().run_now(std::move(call), poll_signals);
  }
  return py::none();
}

Handle message(const std::shared_ptr<Endpoint>& endpoint, bool is_send, int32_t peer, int32_t tag, Address data,
               int64_t bytes, double timeout_s, bool is_async) {
  require(peer >= (is_send ? 0 : dsc::kAnyRank) && peer < endpoint->group().ranks() && bytes >= 0,
          "the peer or the size is out of range");
  dsc::JobPtr job;
  {
    const py::gil_scoped_release release;
    dsc::Channels& channels = endpoint->channels();
    job = is_send ? channels.send(peer, tag, reinterpret_cast<const char*>(data), bytes, is_async)
                  : channels.receive(peer, tag, reinterpret_cast<char*>(data), bytes, is_async);
  }
  return Handle(endpoint, job, true, timeout_s);
}

std::shared_ptr<Endpoint> make_endpoint(int fd, int32_t rank, int32_t slots, int64_t slot_bytes, int64_t ring_bytes,
                                        const std::vector<int32_t>& names, bool may_spin, Address reduce) {
  dsc::Settings settings;
  settings.shape = {static_cast<int32_t>(names.size()), slots, slot_bytes, ring_bytes};
  settings.rank = rank;
  settings.names = names;
  settings.may_spin = may_spin;
  settings.reduce = reinterpret_cast<const ds_kernel_entry*>(reduce);
  require(settings.reduce != nullptr && rank >= 0 && rank < settings.shape.ranks, "no kernel, or no such rank");
  require(slots >= 2 && slot_bytes % dsc::kPage == 0 && slot_bytes > 0, "at least two slots of whole pages");
  require(ring_bytes >= dsc::kPage && (ring_bytes & (ring_bytes - 1)) == 0, "a ring is a power of two of bytes");
  return std::shared_ptr<Endpoint>(new Endpoint(fd, settings), Dispose());
}

std::vector<std::string> dtype_names(bool reducible) {
  std::vector<std::string> names;
  for (int32_t i = 0; i < dsc::kDtypeCount; ++i) {
    if (!reducible || dsc::kDtypes[i].code != DS_NONE) names.emplace_back(dsc::kDtypes[i].name);
  }
  return names;
}

}  // namespace

PYBIND11_MODULE(_comm, module) {
  module.doc() = "Collectives and messages between ranks of one host through a shared segment; raw addresses only.";
  for (int32_t kind = 0; kind < dsc::kKinds; ++kind) {
    std::string name = dsc::kKindNames[kind];
    for (char& letter : name) letter = static_cast<char>(letter >= 'a' && letter <= 'z' ? letter - 32 : letter);
    module.attr(name.c_str()) = kind;
  }
  module.attr("ANY_RANK") = dsc::kAnyRank;
  module.def("dtypes", [] { return dtype_names(false); }, "Names of dtypes; the place of a name is its number.");
  module.def("reducible_dtypes", [] { return dtype_names(true); }, "Names of dtypes that can be reduced.");
  module.def(
      "segment_bytes",
      [](int32_t ranks, int32_t slots, int64_t slot_bytes, int64_t ring_bytes) {
        return dsc::Shape{ranks, slots, slot_bytes, ring_bytes}.total_bytes();
      },
      py::arg("ranks"), py::arg("slots"), py::arg("slot_bytes"), py::arg("ring_bytes"), "Size of the segment's file.");
  py::class_<Handle>(module, "Handle")
      .def("wait", &Handle::wait, py::arg("limit_s") = -1.0, "False when the limit was over first.")
      .def("is_over", &Handle::is_over)
      .def_property_readonly("error", &Handle::error)
      .def_property_readonly("source", &Handle::source);
  py::class_<Endpoint, std::shared_ptr<Endpoint>>(module, "Endpoint")
      .def(py::init(&make_endpoint), py::arg("fd"), py::arg("rank"), py::arg("slots"), py::arg("slot_bytes"),
           py::arg("ring_bytes"), py::arg("names"), py::arg("may_spin"), py::arg("reduce"))
      .def("collective", &collective, py::arg("kind"), py::arg("dtype"), py::arg("op"), py::arg("root"),
           py::arg("bytes"), py::arg("inputs"), py::arg("outputs"), py::arg("timeout_s"), py::arg("is_async"))
      .def("all_to_all", &all_to_all, py::arg("dtype"), py::arg("inputs"), py::arg("outputs"), py::arg("input_bytes"),
           py::arg("output_bytes"), py::arg("timeout_s"), py::arg("is_async"))
      .def("message", &message, py::arg("is_send"), py::arg("peer"), py::arg("tag"), py::arg("data"), py::arg("bytes"),
           py::arg("timeout_s"), py::arg("is_async"))
      .def(
          "failure", [](Endpoint& endpoint) { return endpoint.group().failure(); }, "What broke the group, or empty.")
      .def("is_forked", [](Endpoint& endpoint) { return endpoint.group().is_forked(); })
      .def(
          "fail", [](Endpoint& endpoint, const std::string& text) { endpoint.group().note_failure(text); },
          py::arg("text"), "Breaks the group for all ranks.")
      .def("close", &Endpoint::close, py::arg("drain_s"), py::call_guard<py::gil_scoped_release>());
}
