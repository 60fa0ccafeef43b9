// Python's door to the lanes: addresses and file descriptors in, a transfer to wait for out.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "lane.h"
#include "ring.h"
#include "transfer.h"

namespace py = pybind11;

namespace {

using Address = uintptr_t;
using Run = std::vector<std::tuple<uint64_t, uint64_t, int>>;  // start, bytes and way of spans
using Figures = std::tuple<uint64_t, uint64_t, uint64_t, uint64_t>;

// Lanes of one process. A forked child has none of their threads, so it leaves them alone.
class Engine {
 public:
  Engine(unsigned lanes, unsigned depth, uint64_t block_bytes, bool overlap, bool single_submit, unsigned buffers,
         py::object before)
      : before_(std::move(before)), pid_(::getpid()) {
    dsk::LaneSettings settings = {depth, block_bytes, overlap, single_submit, buffers, "", nullptr};
    if (!before_.is_none()) {
      settings.before = [question = py::handle(before_)](bool writes, int fd, uint64_t offset, uint64_t nbytes) {
        py::gil_scoped_acquire acquire;
        return question(writes, fd, offset, nbytes).cast<int64_t>();
      };
    }
    for (unsigned index = 0; index < lanes; ++index) {
      settings.name = "ds-uring-" + std::to_string(index);
      lanes_.push_back(std::make_unique<dsk::Lane>(settings));
    }
  }

  ~Engine() {
    if (::getpid() != pid_) {
      for (auto& lane : lanes_) (void)lane.release();
      return;
    }
    py::gil_scoped_release release;  // the threads may be in `before`, which takes it
    lanes_.clear();
  }

  std::shared_ptr<dsk::Transfer> begin(Address memory, uint64_t offset, uint64_t nbytes, bool writes, int direct_fd,
                                       int cached_fd, const std::vector<std::pair<unsigned, Run>>& runs) {
    auto transfer =
        std::make_shared<dsk::Transfer>(reinterpret_cast<char*>(memory), offset, nbytes, writes, direct_fd, cached_fd);
    for (const auto& [lane, run] : runs) {
      std::vector<dsk::Span> spans;
      for (const auto& [start, size, way] : run) spans.push_back({transfer, start, size, static_cast<dsk::Way>(way)});
      lanes_.at(lane)->add(std::move(spans));
    }
    return transfer;
  }

  bool set_buffer(unsigned index, Address memory, uint64_t nbytes) {
    bool all = true;
    for (auto& lane : lanes_) all = lane->set_buffer(index, reinterpret_cast<char*>(memory), nbytes) && all;
    return all;
  }

  void finish() {
    for (auto& lane : lanes_) lane->finish();
  }

  std::vector<Figures> figures() const {
    std::vector<Figures> found;
    for (const auto& lane : lanes_) {
      const dsk::LaneFigures& f = lane->figures();
      found.emplace_back(f.blocks.load(), f.fixed_blocks.load(), f.submissions.load(), f.most_under_way.load());
    }
    return found;
  }

 private:
  py::object before_;
  pid_t pid_;
  std::vector<std::unique_ptr<dsk::Lane>> lanes_;
};

void wait(dsk::Transfer& transfer) {
  for (;;) {
    bool done;
    {
      py::gil_scoped_release release;
      done = transfer.wait_for(std::chrono::milliseconds(100));
    }
    if (done) return;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();  // Ctrl-C
  }
}

}  // namespace

PYBIND11_MODULE(_aio, module) {
  module.doc() = "File I/O through io_uring, by raw system calls.";
  module.def("refusal", &dsk::uring_refusal, "Why this process cannot use io_uring; empty when it can.");
  py::class_<dsk::Transfer, std::shared_ptr<dsk::Transfer>>(module, "Transfer")
      .def("wait", &wait, "Returns when it is done, whether or not it failed; lets other threads run meanwhile.")
      .def_property_readonly("done", &dsk::Transfer::done)
      .def_property_readonly("code", &dsk::Transfer::code, "errno of the first failure, 0 without one.")
      .def_property_readonly("position", &dsk::Transfer::position, "Where in the file the block that failed begins.")
      .def_property_readonly("direct_refused",
                             [](const dsk::Transfer& transfer) { return transfer.direct_refused.load(); });
  py::class_<Engine>(module, "Engine")
      .def(py::init<unsigned, unsigned, uint64_t, bool, bool, unsigned, py::object>(), py::kw_only(), py::arg("lanes"),
           py::arg("depth"), py::arg("block_bytes"), py::arg("overlap"), py::arg("single_submit"), py::arg("buffers"),
           py::arg("before"))
      .def("begin", &Engine::begin, py::kw_only(), py::arg("memory"), py::arg("offset"), py::arg("nbytes"),
           py::arg("writes"), py::arg("direct_fd"), py::arg("cached_fd"), py::arg("runs"))
      .def("set_buffer", &Engine::set_buffer, py::arg("index"), py::arg("memory"), py::arg("nbytes"),
           py::call_guard<py::gil_scoped_release>())
      .def("finish", &Engine::finish, py::call_guard<py::gil_scoped_release>())
      .def("figures", &Engine::figures,
           "Of each lane: blocks, those of registered memory, submissions, most under way.");
}
