# Writes _build.json beside the objects, and prints the same.
function(json_list out)
  string(JOIN "\", \"" text ${ARGN})
  if(text STREQUAL "")
    set(${out} "[]" PARENT_SCOPE)
  else()
    set(${out} "[\"${text}\"]" PARENT_SCOPE)
  endif()
endfunction()

if(simd_sources)
  set(compiled_isas ${cpu_isas})
else()
  set(compiled_isas generic)
endif()
json_list(isas_json ${compiled_isas})
json_list(archs_json ${cuda_archs})
if(VIDK_SANITIZE)
  set(sanitize_json true)
else()
  set(sanitize_json false)
endif()
file(WRITE "${PROJECT_BINARY_DIR}/_build.json" "{
  \"version\": \"${VIDK_VERSION}\",
  \"git_rev\": \"${VIDK_GIT_REV}\",
  \"torch_target\": \"${TORCH_TARGET}\",
  \"compiler\": \"${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}\",
  \"build_type\": \"${CMAKE_BUILD_TYPE}\",
  \"sanitize\": ${sanitize_json},
  \"cpu_isas\": ${isas_json},
  \"cuda_toolkit\": \"${cuda_toolkit}\",
  \"cuda_archs\": ${archs_json},
  \"cuda_reason\": \"${cuda_reason}\"
}
")
install(FILES "${PROJECT_BINARY_DIR}/_build.json" DESTINATION .)

if(build_cuda)
  string(JOIN " " cuda_text "CUDA ${cuda_toolkit}, arches" ${cuda_archs})
else()
  set(cuda_text "not built: ${cuda_reason}")
endif()
string(JOIN " " isa_text ${compiled_isas})
# At install time: after the compiler's output, where it is seen.
install(CODE "
message(STATUS \"vidk ${VIDK_VERSION} ${VIDK_GIT_REV}\")
message(STATUS \"  torch      : target ${TORCH_TARGET}, headers of ${VIDK_TORCH_DIR}\")
message(STATUS \"  compiler   : ${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}, ${CMAKE_BUILD_TYPE}\")
message(STATUS \"  _C.abi3.so : ${isa_text}, sanitizers ${VIDK_SANITIZE}\")
message(STATUS \"  _cuda.so   : ${cuda_text}\")
")
