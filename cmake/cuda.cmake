# The CUDA object: compiled from stable-ABI headers only, so a CPU build of torch is enough.
set(CMAKE_CUDA_ARCHITECTURES OFF)  # -gencode below says it exactly
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)  # one object for torch builds of every CUDA version
enable_language(CUDA)

set(cuda_toolkit ${CMAKE_CUDA_COMPILER_VERSION})
set(cuda_archs ${VIDK_CUDA_ARCHS})
set(gencode "")
foreach(arch IN LISTS VIDK_CUDA_ARCHS)
  if(arch MATCHES "^([0-9]+[af]?)-virtual$")
    list(APPEND gencode "SHELL:-gencode arch=compute_${CMAKE_MATCH_1},code=compute_${CMAKE_MATCH_1}")
  elseif(arch MATCHES "^[0-9]+[af]?$")
    list(APPEND gencode "SHELL:-gencode arch=compute_${arch},code=sm_${arch}")
  else()
    message(FATAL_ERROR "VIDK_CUDA_ARCHS: got '${arch}', expected capabilities such as 90a or "
                        "90-virtual, separated by semicolons")
  endif()
endforeach()
string(REPLACE ";" " " arch_text "${VIDK_CUDA_ARCHS}")

file(GLOB cuda_sources CONFIGURE_DEPENDS RELATIVE "${PROJECT_SOURCE_DIR}" csrc/*/*_cuda.cu)
add_library(_cuda MODULE ${cuda_sources} csrc/common/check.cpp)
set_target_properties(_cuda PROPERTIES PREFIX "" SUFFIX ".so")
target_compile_definitions(_cuda PRIVATE USE_CUDA "VIDK_ARCH_TEXT=\"${arch_text}\"")
list(JOIN prefix_maps "," host_options)
set(cuda_options ${gencode} --compress-mode=size -Werror=all-warnings
                 -Xcompiler=-Wall,-Wextra,${host_options})
target_compile_options(_cuda PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${cuda_options}>")
# libtorch.so is a stub without a symbol of ours; in a CUDA build of torch it is what brings
# libtorch_cuda into the lookup scope, so the linker must not drop it.
target_link_options(_cuda PRIVATE ${exports} -Wl,--no-as-needed)
target_link_libraries(_cuda PRIVATE vidk_torch vidk_options torch torch_cpu -Wl,--as-needed)
install(TARGETS _cuda DESTINATION .)
