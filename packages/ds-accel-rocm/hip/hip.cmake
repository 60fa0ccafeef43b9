# dsk_add_hip(<sources>): libdsk_rocm.so by calling hipcc, for every architecture it can build. The runtime is not linked:
# hip/runtime.cpp finds the one that torch brings, of any ROCm, when a kernel is launched first.

function(dsk_hip_left_out reason)
  message(WARNING "The library for AMD GPUs is left out: ${reason}")
  string(REGEX REPLACE "([\\\"])" "\\\\\\1" reason "${reason}")
  string(JSON record SET "${DSK_RECORD}" left_out rocm "\"${reason}\"")
  set(DSK_RECORD "${record}" PARENT_SCOPE)
endfunction()

function(dsk_add_hip sources)
  find_program(DSK_HIPCC hipcc HINTS ENV ROCM_PATH /opt/rocm PATH_SUFFIXES bin)
  if(NOT DSK_ROCM)
    dsk_hip_left_out("DSK_ROCM was off when the wheel was built")
  elseif(NOT DSK_HIPCC)
    dsk_hip_left_out("no hipcc was found when the wheel was built; install ROCm's, or Debian's package hipcc")
  endif()
  if(NOT DSK_ROCM OR NOT DSK_HIPCC)
    set(DSK_RECORD "${DSK_RECORD}" PARENT_SCOPE)
    return()
  endif()

  # hipcc takes nvcc where it sees no AMD GPU.
  set(hipcc ${CMAKE_COMMAND} -E env HIP_PLATFORM=amd "${DSK_HIPCC}")
  set(flags -x hip -std=c++17 -O3 -ffp-contract=off -fPIC -fvisibility=hidden -fvisibility-inlines-hidden
      "-I${DSK_CSRC}" "-I${DSK_CSRC}/kernels" "-I${DS_CORE_INCLUDE_DIR}")
  execute_process(COMMAND ${hipcc} --version OUTPUT_VARIABLE said ERROR_VARIABLE said)
  string(REGEX MATCH "HIP version: ([0-9.]+)" version "${said}")
  set(version "${CMAKE_MATCH_1}")

  set(folder "${CMAKE_CURRENT_BINARY_DIR}/dsk_rocm")
  file(MAKE_DIRECTORY "${folder}")
  set(wanted gfx906 gfx908 gfx90a gfx942 gfx950 gfx1030 gfx1100 gfx1101 gfx1200 gfx1201)
  if(DSK_ROCM_ARCHITECTURES)
    set(wanted ${DSK_ROCM_ARCHITECTURES})
  endif()
  set(chosen)
  set(refused)
  file(WRITE "${folder}/trial.cu" "#include <hip/hip_runtime.h>\n__global__ void trial(float* x) { *x = sqrtf(*x); }\n")
  foreach(arch IN LISTS wanted)
    execute_process(COMMAND ${hipcc} ${flags} --offload-arch=${arch} -c "${folder}/trial.cu" -o "${folder}/trial.o"
                    RESULT_VARIABLE failed OUTPUT_QUIET ERROR_QUIET)
    if(failed)
      list(APPEND refused ${arch})
    else()
      list(APPEND chosen ${arch})
    endif()
  endforeach()
  if(refused AND DSK_ROCM_ARCHITECTURES)
    message(FATAL_ERROR "DSK_ROCM_ARCHITECTURES asks for ${refused}, which hipcc ${version} cannot build")
  elseif(NOT chosen)
    dsk_hip_left_out("hipcc ${version} can build none of ${wanted}")
    set(DSK_RECORD "${DSK_RECORD}" PARENT_SCOPE)
    return()
  endif()
  set(targets ${chosen})
  list(TRANSFORM targets PREPEND "--offload-arch=")
  string(JOIN " " target ${chosen})

  set(objects)
  foreach(source IN LISTS sources)
    file(RELATIVE_PATH name "${DSK_CSRC}/kernels" "${source}")
    string(REPLACE "/" "." name "${name}")
    string(REGEX REPLACE "\\.cu$" "" name "${name}")
    set(object "${folder}/${name}.o")
    add_custom_command(
      OUTPUT "${object}"
      COMMAND ${hipcc} ${flags} ${targets} "-DDSK_TARGET=\"${target}\""
              "-DDSK_BUILD=\"HIP ${version}, ds-accel-rocm ${SKBUILD_PROJECT_VERSION}\"" -MD -MF "${object}.d" -c "${source}"
              -o "${object}"
      DEPENDS "${source}"
      DEPFILE "${object}.d"
      COMMENT "hipcc ${name} for ${target}"
      VERBATIM)
    list(APPEND objects "${object}")
  endforeach()

  add_library(dsk_rocm MODULE ${objects} "${CMAKE_CURRENT_SOURCE_DIR}/hip/runtime.cpp")
  set_source_files_properties(${objects} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  target_compile_options(dsk_rocm PRIVATE -O2 -Wall -Wextra -Wshadow)
  target_link_libraries(dsk_rocm PRIVATE Threads::Threads ${CMAKE_DL_LIBS})
  target_link_options(dsk_rocm PRIVATE -Wl,--as-needed -Wl,--no-undefined -Wl,-z,now
                      "-Wl,--version-script=${DSK_CSRC}/gpu/exports.map")
  install(TARGETS dsk_rocm DESTINATION ds_accel_rocm/lib)

  list(TRANSFORM chosen REPLACE "(.+)" "\"\\1\"" OUTPUT_VARIABLE archs)
  string(JOIN ", " archs ${archs})
  string(JSON record SET "${DSK_RECORD}" toolkit "\"HIP ${version}\"")
  string(JSON record SET "${record}" file "\"libdsk_rocm.so\"")
  string(JSON record SET "${record}" archs "[${archs}]")
  if(refused)
    string(JOIN ", " names ${refused})
    string(JSON record SET "${record}" left_out architectures "\"${names}: hipcc ${version} cannot build them\"")
  endif()
  set(DSK_RECORD "${record}" PARENT_SCOPE)
endfunction()
