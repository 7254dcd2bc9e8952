// The extension module; BITLENS_KERNEL_LIST comes from the one list in CMakeLists.txt.
#include <pybind11/pybind11.h>

#if !defined(BITLENS_DEVICE_IS_CUDA)
#include "common/instruction_set.h"
#include "common/parallel.h"
#endif

namespace bitlens {
#define BITLENS_KERNEL(name) void bind_##name(pybind11::module_& module);
BITLENS_KERNEL_LIST
#undef BITLENS_KERNEL
}  // namespace bitlens

PYBIND11_MODULE(BITLENS_MODULE, module) {
#if !defined(BITLENS_DEVICE_IS_CUDA)
  bitlens::guard_against_fork();
  module.def("instruction_set", [] { return bitlens::instruction_set_name(bitlens::instruction_set()); });
  module.def("set_instruction_set", &bitlens::set_instruction_set);
#endif
#define BITLENS_KERNEL(name) bitlens::bind_##name(module);
  BITLENS_KERNEL_LIST
#undef BITLENS_KERNEL
}
