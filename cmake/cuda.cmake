# The CUDA object: ops compiled by the C++ compiler from stable-ABI headers only, so a CPU build of
# torch is enough; device code compiled on its own and embedded as data (device_code.cmake).
set(CMAKE_CUDA_ARCHITECTURES OFF)  # -gencode below says it exactly
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
# The first whose runtime loads device code as libraries and reaches the newest architectures.
if(CUDAToolkit_VERSION VERSION_LESS 12.9)
  message(FATAL_ERROR "VIDK_BUILD_CUDA: got CUDA ${CUDAToolkit_VERSION}, expected 12.9 or newer; "
                      "install a newer toolkit or build with VIDK_BUILD_CUDA=OFF")
endif()

set(cuda_toolkit ${CMAKE_CUDA_COMPILER_VERSION})
set(cuda_archs ${VIDK_CUDA_ARCHS})
set(gencode "")
foreach(arch IN LISTS VIDK_CUDA_ARCHS)
  if(arch MATCHES "^([0-9]+[af]?)-virtual$")
    list(APPEND gencode -gencode arch=compute_${CMAKE_MATCH_1},code=compute_${CMAKE_MATCH_1})
  elseif(arch MATCHES "^[0-9]+[af]?$")
    list(APPEND gencode -gencode arch=compute_${arch},code=sm_${arch})
  else()
    message(FATAL_ERROR "VIDK_CUDA_ARCHS: got '${arch}', expected capabilities such as 90a or "
                        "90-virtual, separated by semicolons")
  endif()
endforeach()
string(REPLACE ";" " " arch_text "${VIDK_CUDA_ARCHS}")

include(cmake/device_code.cmake)

file(GLOB cuda_sources CONFIGURE_DEPENDS RELATIVE "${PROJECT_SOURCE_DIR}"
     csrc/*/*_cuda.cpp csrc/*/*_plan.cpp)
add_library(_cuda MODULE ${cuda_sources} csrc/common/check.cpp "${device_code_source}")
set_target_properties(_cuda PROPERTIES PREFIX "" SUFFIX ".so" LINKER_LANGUAGE CXX)
target_include_directories(_cuda SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
target_compile_definitions(_cuda PRIVATE USE_CUDA "VIDK_ARCH_TEXT=\"${arch_text}\"")
# libtorch.so is a stub without a symbol of ours; in a CUDA build of torch it is what brings
# libtorch_cuda into the lookup scope, so the linker must not drop it. The runtime is static: one
# object for torch builds of every CUDA version.
target_link_options(_cuda PRIVATE ${exports} -Wl,--no-as-needed)
target_link_libraries(_cuda PRIVATE vidk_torch vidk_options torch torch_cpu -Wl,--as-needed
                                    CUDA::cudart_static)
install(TARGETS _cuda DESTINATION .)
