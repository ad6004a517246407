# Device code in the CUDA object: one fatbin per source, embedded as data and loaded by name at run
# time (csrc/common/launch_cuda.cpp). The sources are CUDA C++ (csrc/*/*.cu), compiled for every
# architecture of VIDK_CUDA_ARCHS, or for those of them that a line `// VIDK_ARCHS 100a 120f` of the
# source names, and PTX that the TileLang exporter wrote (kernels/ptx/<kernel>.sm_<target>.ptx),
# assembled for those architectures that have no better file.

# The number of an architecture such as 90a.
function(arch_number out arch)
  string(REGEX MATCH "^[0-9]+" number "${arch}")
  set(${out} ${number} PARENT_SCOPE)
endfunction()

# Of the targets that a kernel has PTX for, the one for an architecture: its very own, else the
# newest that is neither newer nor tied to another architecture. Empty if there is none.
function(best_target out arch targets)
  set(best "")
  arch_number(arch_n ${arch})
  foreach(target IN LISTS targets)
    if(target STREQUAL arch)
      set(best ${target})
      break()
    elseif(target MATCHES "^[0-9]+$" AND target LESS_EQUAL arch_n)
      if(best STREQUAL "" OR target GREATER best)
        set(best ${target})
      endif()
    endif()
  endforeach()
  set(${out} "${best}" PARENT_SCOPE)
endfunction()

# -gencode options of one PTX file, among all targets of its kernel.
function(ptx_gencode out target targets)
  set(options "")
  set(kept FALSE)
  foreach(arch IN LISTS VIDK_CUDA_ARCHS)
    if(arch MATCHES "-virtual$")
      set(kept TRUE)
      continue()
    endif()
    best_target(best ${arch} "${targets}")
    if(best STREQUAL target)
      list(APPEND options -gencode arch=compute_${target},code=sm_${arch})
    endif()
  endforeach()
  # As text it serves devices to come, which a target with a suffix never does.
  if(kept AND target MATCHES "^[0-9]+$")
    list(APPEND options -gencode arch=compute_${target},code=compute_${target})
  endif()
  set(${out} "${options}" PARENT_SCOPE)
endfunction()

# -gencode options of a CUDA source that names its targets. An exact target such as 100a serves the
# architecture of that name, a family such as 120f all of one major version that are not older: one
# image for several. Empty if none of VIDK_CUDA_ARCHS is served.
function(named_gencode out targets)
  set(options "")
  foreach(target IN LISTS targets)
    arch_number(target_n ${target})
    math(EXPR family "${target_n} / 10")
    foreach(arch IN LISTS VIDK_CUDA_ARCHS)
      if(arch MATCHES "-virtual$")
        continue()
      endif()
      arch_number(arch_n ${arch})
      math(EXPR arch_family "${arch_n} / 10")
      if(arch STREQUAL target OR (target MATCHES "f$" AND arch_family EQUAL family AND
                                  arch_n GREATER_EQUAL target_n))
        list(APPEND options -gencode arch=compute_${target},code=sm_${target})
        break()
      endif()
    endforeach()
  endforeach()
  set(${out} "${options}" PARENT_SCOPE)
endfunction()

set(device_code_dir "${PROJECT_BINARY_DIR}/device_code")
set(device_code_text "")   # the generated source
set(device_code_table "")  # its table
set(device_code_fatbins "")

# add_device_code(NAME SOURCE ENTRY_REGEX options...): compiles SOURCE; entries are what the regex
# captures in its lines.
function(add_device_code name source entry_regex)
  set(fatbin "${device_code_dir}/${name}.fatbin")
  add_custom_command(
    OUTPUT "${fatbin}"
    COMMAND ${CMAKE_CUDA_COMPILER} --fatbin -std=c++17 --compress-mode=size -Werror=all-warnings
            -I "${PROJECT_SOURCE_DIR}/csrc" -MD -MF "${fatbin}.d" -MT "${fatbin}"
            ${ARGN} "${source}" -o "${fatbin}"
    DEPENDS "${source}"
    DEPFILE "${fatbin}.d"
    COMMENT "Device code ${name}"
    VERBATIM)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${source}")
  string(MAKE_C_IDENTIFIER "vidk_fatbin_${name}" symbol)
  file(STRINGS "${source}" lines REGEX "${entry_regex}")
  if(NOT lines)
    message(FATAL_ERROR "${source}: holds no kernel entry")
  endif()
  foreach(line IN LISTS lines)
    string(REGEX MATCH "${entry_regex}" unused "${line}")
    string(APPEND device_code_table "    {\"${CMAKE_MATCH_1}\", ${symbol}},\n")
  endforeach()
  # The section is where NVIDIA's tools look for device code; 8 bytes of alignment are its header's.
  string(APPEND device_code_text
         "asm(\".pushsection .nv_fatbin, \\\"a\\\"\\n.balign 16\\n${symbol}:\\n\"\n"
         "    \".incbin \\\"${fatbin}\\\"\\n.popsection\\n\");\n"
         "extern \"C\" __attribute__((visibility(\"hidden\"))) const unsigned char ${symbol}[];\n")
  list(APPEND device_code_fatbins "${fatbin}")
  foreach(variable device_code_text device_code_table device_code_fatbins)
    set(${variable} "${${variable}}" PARENT_SCOPE)
  endforeach()
endfunction()

file(GLOB cu_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/csrc/*/*.cu")
foreach(source IN LISTS cu_sources)
  get_filename_component(name "${source}" NAME_WE)
  set(options ${gencode})
  file(STRINGS "${source}" named REGEX "^// VIDK_ARCHS ")
  if(named)
    string(REGEX MATCHALL "[0-9]+[af]" targets "${named}")
    named_gencode(options "${targets}")
  endif()
  if(options)
    add_device_code(${name} "${source}" "^VIDK_KERNEL\\(([A-Za-z0-9_]+)," ${options})
  else()
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${source}")
  endif()
endforeach()

file(GLOB ptx_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/kernels/ptx/*.ptx")
foreach(source IN LISTS ptx_sources)
  get_filename_component(file_name "${source}" NAME)
  if(NOT file_name MATCHES "^(.+)\\.sm_([0-9]+[af]?)\\.ptx$")
    message(FATAL_ERROR "${source}: expected a name such as attention.sm_90a.ptx")
  endif()
  set(name ${CMAKE_MATCH_1})
  set(target ${CMAKE_MATCH_2})
  set(targets "")
  foreach(other IN LISTS ptx_sources)
    get_filename_component(other_name "${other}" NAME)
    if(other_name MATCHES "^(.+)\\.sm_([0-9]+[af]?)\\.ptx$" AND CMAKE_MATCH_1 STREQUAL name)
      list(APPEND targets ${CMAKE_MATCH_2})
    endif()
  endforeach()
  ptx_gencode(options ${target} "${targets}")
  if(options)
    add_device_code(${name}.sm_${target} "${source}"
                    "^[^/]*\\.entry[ \t]+([A-Za-z0-9_$]+)" ${options})
  endif()
endforeach()

set(device_code_source "${device_code_dir}/device_code.cpp")
file(CONFIGURE OUTPUT "${device_code_source}" @ONLY CONTENT [[
// Made by cmake/device_code.cmake.
#include "common/device_code.h"

@device_code_text@
namespace vidk {

const EmbeddedKernel kEmbeddedKernels[] = {
@device_code_table@};
const size_t kEmbeddedKernelCount = sizeof(kEmbeddedKernels) / sizeof(kEmbeddedKernels[0]);

}  // namespace vidk
]])
set_source_files_properties("${device_code_source}" PROPERTIES OBJECT_DEPENDS
                            "${device_code_fatbins}")
