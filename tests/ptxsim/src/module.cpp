// The simulator as a Python module.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <memory>

#include "machine.h"
#include "text_py.h"

namespace py = pybind11;

namespace ptxsim {
namespace {

constexpr const char* kClassNames[] = {
    "integer",      "float",       "half",       "double",      "special",      "convert",
    "move",         "predicate",   "control",    "global_load", "global_store", "shared_load",
    "shared_store", "local",       "param",      "atomic",      "warp",         "barrier",
    "matrix",       "matrix_load", "async_copy", "other"};
static_assert(sizeof(kClassNames) / sizeof(*kClassNames) == static_cast<size_t>(Class::kCount));

py::dict to_python(const Counters::Global& c) {
  py::dict d;
  d["requests"] = c.requests;
  d["bytes"] = c.bytes;
  d["sectors"] = c.sectors;
  return d;
}

py::dict to_python(const Counters::Shared& c) {
  py::dict d;
  d["requests"] = c.requests;
  d["bytes"] = c.bytes;
  d["wavefronts"] = c.wavefronts;
  d["ideal"] = c.ideal;
  return d;
}

py::dict report(const Machine& m) {
  const Counters& c = m.counters;
  py::dict classes;
  for (size_t i = 0; i < static_cast<size_t>(Class::kCount); ++i) {
    classes[kClassNames[i]] = c.warp_class[i];
  }
  py::dict d;
  d["warp_instructions"] = c.warp_instructions;
  d["thread_instructions"] = c.thread_instructions;
  d["classes"] = classes;
  d["global_load"] = to_python(c.load);
  d["global_store"] = to_python(c.store);
  d["bulk_read_bytes"] = c.bulk_read_bytes;
  d["bulk_written_bytes"] = c.bulk_written_bytes;
  d["unique_read_bytes"] = m.memory.unique_read();
  d["unique_written_bytes"] = m.memory.unique_written();
  d["shared_load"] = to_python(c.shared_load);
  d["shared_store"] = to_python(c.shared_store);
  d["matrix_load"] = to_python(c.matrix_load);
  d["matrix_store"] = to_python(c.matrix_store);
  d["local_bytes"] = c.local_bytes;
  d["barriers"] = c.barriers;
  d["matrix_flops"] = c.matrix_flops;
  d["special"] = c.special;
  d["divergent"] = c.divergent;
  d["warnings"] = m.warnings;
  d["printed"] = py::bytes(m.printed);
  d["fault"] = py::none();
  return d;
}

// PTX text with its kernels, decoded when they are first run.
class Source {
 public:
  explicit Source(const std::string& text) : module_(parse(text)) {}

  std::vector<std::string> entries() const {
    std::vector<std::string> names;
    for (const Function& f : module_.functions) {
      if (f.is_entry) names.push_back(f.name);
    }
    return names;
  }

  std::string target() const { return module_.target; }

  // (offset, size) of each parameter.
  std::vector<std::pair<uint32_t, uint32_t>> params(const std::string& entry) {
    const Program& p = program(entry);
    std::vector<std::pair<uint32_t, uint32_t>> all;
    for (size_t i = 0; i < p.param_offset.size(); ++i) {
      all.emplace_back(p.param_offset[i], p.param_size[i]);
    }
    return all;
  }

  // All opcodes with their modifiers, and how often each stands in the text.
  std::map<std::string, int> opcodes(const std::string& entry) {
    std::map<std::string, int> counts;
    for (const Instruction& inst : find(entry).instructions) {
      std::string name = inst.opcode;
      for (const std::string& m : inst.modifiers) name += "." + m;
      ++counts[name];
    }
    return counts;
  }

  py::dict run(
      const std::string& entry, std::array<uint32_t, 3> grid, std::array<uint32_t, 3> block,
      uint32_t shared_bytes, const py::bytes& params,
      const std::vector<std::tuple<std::string, uint64_t, uint64_t, bool, bool>>& memory,
      const std::string& policy, uint64_t seed, bool checks, bool coresident,
      bool truncate_products, uint64_t max_instructions,
      const std::vector<std::tuple<uint64_t, uint64_t, std::vector<uint64_t>>>& multicast) {
    Launch launch;
    std::copy(grid.begin(), grid.end(), launch.grid);
    std::copy(block.begin(), block.end(), launch.block);
    launch.shared_bytes = shared_bytes;
    const std::string bytes = params;
    launch.params.assign(bytes.begin(), bytes.end());
    launch.policy = policy == "eager"  ? Policy::kEager
                    : policy == "late" ? Policy::kLate
                                       : Policy::kRandom;
    launch.seed = seed;
    launch.checks = checks;
    launch.coresident = coresident;
    launch.truncate_products = truncate_products;
    launch.max_instructions = max_instructions;
    std::vector<Allocation> allocations;
    for (const auto& [name, begin, size, writable, defined] : memory) {
      Allocation a;
      a.name = name;
      a.begin = begin;
      a.bytes = size;
      a.writable = writable;
      a.defined = defined;
      allocations.push_back(std::move(a));
    }
    Machine machine(program(entry), std::move(launch), std::move(allocations));
    for (const auto& [begin, size, places] : multicast) {
      machine.memory.add(ptxsim::Multicast{begin, size, places});
    }
    std::string kind, message;
    {
      py::gil_scoped_release release;
      try {
        machine.run();
      } catch (const Fault& fault) {
        kind = fault.kind;
        message = fault.what();
      }
    }
    py::dict d = report(machine);
    if (!kind.empty()) d["fault"] = py::make_tuple(kind, message);
    return d;
  }

 private:
  const Function& find(const std::string& entry) const {
    for (const Function& f : module_.functions) {
      if (f.is_entry && f.name == entry) return f;
    }
    throw SyntaxError("no entry named " + entry);
  }

  const Program& program(const std::string& entry) {
    auto found = programs_.find(entry);
    if (found == programs_.end()) {
      found = programs_.emplace(entry, decode(module_, find(entry))).first;
    }
    return found->second;
  }

  Module module_;
  std::map<std::string, Program> programs_;
};

}  // namespace
}  // namespace ptxsim

PYBIND11_MODULE(_ptxsim, m) {
  using ptxsim::Source;
  py::register_exception<ptxsim::SyntaxError>(m, "SyntaxError", PyExc_ValueError);
  m.def("parse", [](const std::string& text) { return ptxsim::to_python(ptxsim::parse(text)); });
  py::class_<Source>(m, "Source")
      .def(py::init<const std::string&>())
      .def("entries", &Source::entries)
      .def("target", &Source::target)
      .def("params", &Source::params)
      .def("opcodes", &Source::opcodes)
      .def("run", &Source::run, py::arg("entry"), py::arg("grid"), py::arg("block"),
           py::arg("shared_bytes"), py::arg("params"), py::arg("memory"), py::arg("policy"),
           py::arg("seed"), py::arg("checks"), py::arg("coresident"), py::arg("truncate_products"),
           py::arg("max_instructions"), py::arg("multicast"));
}
