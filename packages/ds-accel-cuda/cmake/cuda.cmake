# dsk_add_cuda(<toolkit JSON> <architectures> <sources>): libdsk_cuda<major>.so by calling nvcc, so that any toolkit will
# do, also one that pip installed and CMake's own CUDA support does not find its way in; or by calling Clang (toolkit12.py).
#
# Sets DSK_CUDA_MAJOR and DSK_CUDA_RECORD in the caller's scope.

function(dsk_find_toolkit out asked)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/toolkit.py" "${CMAKE_CXX_COMPILER}" ${asked}
    OUTPUT_VARIABLE said COMMAND_ERROR_IS_FATAL ANY)
  set(${out} "${said}" PARENT_SCOPE)
endfunction()

function(dsk_find_toolkit12 out clang)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/toolkit12.py" "${clang}"
            "${CMAKE_CURRENT_BINARY_DIR}/cuda12"
    OUTPUT_VARIABLE said COMMAND_ERROR_IS_FATAL ANY)
  set(${out} "${said}" PARENT_SCOPE)
endfunction()

function(dsk_add_cuda toolkit architectures sources)
  foreach(key nvcc version major cudart archs root)
    string(JSON ${key} GET "${toolkit}" ${key})
  endforeach()
  string(REGEX MATCHALL "[0-9]+" known "${archs}")

  # Machine code for each that was asked for. Portable code, which a driver compiles: a release has machine code for all
  # devices there are, so it is of the newest, for devices to come; another build has it of the oldest, for all others.
  set(chosen)
  if("${architectures}" STREQUAL "release")
    foreach(arch 70 75 80 86 89 90 100 120)
      if(arch IN_LIST known)
        list(APPEND chosen ${arch})
      endif()
    endforeach()
    list(GET chosen -1 portable)
  else()
    foreach(arch IN LISTS architectures)
      if(NOT arch IN_LIST known)
        message(FATAL_ERROR "Asked for compute capability ${arch}; CUDA ${version} knows ${known}")
      endif()
      list(APPEND chosen ${arch})
    endforeach()
    list(SORT chosen COMPARE NATURAL)
    list(GET chosen 0 portable)
  endif()
  list(TRANSFORM chosen PREPEND "sm_" OUTPUT_VARIABLE sass)
  string(JOIN " " target ${sass} compute_${portable})

  set(target_name dsk_cuda${major})
  set(folder "${CMAKE_CURRENT_BINARY_DIR}/${target_name}")
  file(MAKE_DIRECTORY "${folder}")
  set(flags
      "-I${CMAKE_CURRENT_SOURCE_DIR}/csrc" "-I${CMAKE_CURRENT_SOURCE_DIR}/csrc/kernels" "-I${DS_CORE_INCLUDE_DIR}"
      "-DDSK_TARGET=\"${target}\""
      "-DDSK_BUILD=\"CUDA ${version}, ${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}, ds-accel-cuda ${SKBUILD_PROJECT_VERSION}\"")
  if(nvcc MATCHES "clang")
    set(compiler clang)
    list(APPEND flags -x cuda --cuda-path=${root} -Wno-unknown-cuda-version -Wno-unknown-attributes -std=c++17 -O3 -ffp-contract=off -fPIC
         -fvisibility=hidden -fvisibility-inlines-hidden -Xcuda-ptxas -v)
    foreach(arch IN LISTS chosen)
      list(APPEND flags --offload-arch=sm_${arch})
    endforeach()
    list(APPEND flags --no-cuda-include-ptx=all --cuda-include-ptx=sm_${portable})
  else()
    set(compiler nvcc)
    list(APPEND flags -std=c++17 -O3 -fmad=false -ccbin "${CMAKE_CXX_COMPILER}" -Xptxas -v
         -Xcompiler "-fPIC,-fvisibility=hidden,-fvisibility-inlines-hidden,-ffp-contract=off")
    foreach(arch IN LISTS chosen)
      list(APPEND flags -gencode arch=compute_${arch},code=sm_${arch})
    endforeach()
    list(APPEND flags -gencode arch=compute_${portable},code=compute_${portable})
    if(version VERSION_GREATER_EQUAL 12.8)
      list(APPEND flags --compress-mode=size) # a quarter of the bytes; a driver unpacks what is used, once
    endif()
  endif()
  set(objects)
  set(spoken)
  foreach(source IN LISTS sources)
    file(RELATIVE_PATH name "${CMAKE_CURRENT_SOURCE_DIR}/csrc/kernels" "${source}")
    string(REPLACE "/" "." name "${name}")
    string(REGEX REPLACE "\\.cu$" "" name "${name}")
    set(object "${folder}/${name}.o")
    add_custom_command(
      OUTPUT "${object}"
      BYPRODUCTS "${folder}/${name}.ptxas"
      COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/compile.py" "${object}" "${nvcc}" ${flags}
              -MD -MF "${object}.d" -c "${source}"
      DEPENDS "${source}" "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/compile.py"
      DEPFILE "${object}.d"
      COMMENT "nvcc ${name} for ${target}"
      VERBATIM)
    list(APPEND objects "${object}")
    list(APPEND spoken "${folder}/${name}.ptxas")
  endforeach()

  add_library(${target_name} MODULE ${objects})
  set_source_files_properties(${objects} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  set_target_properties(${target_name} PROPERTIES LINKER_LANGUAGE CXX)
  target_link_libraries(${target_name} PRIVATE "${cudart}" Threads::Threads ${CMAKE_DL_LIBS} rt)
  target_link_options(${target_name} PRIVATE -Wl,--as-needed -Wl,--no-undefined -Wl,-z,now -Wl,--exclude-libs,ALL
                      "-Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/csrc/gpu/exports.map")
  install(TARGETS ${target_name} DESTINATION ds_accel_cuda/lib)

  add_custom_command(
    OUTPUT "${folder}/resources.json"
    COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/resources.py" "${folder}/resources.json" "${folder}"
    DEPENDS ${objects} "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/resources.py"
    VERBATIM)
  add_custom_target(${target_name}_resources ALL DEPENDS "${folder}/resources.json")
  install(FILES "${folder}/resources.json" DESTINATION ds_accel_cuda/lib RENAME resources_cuda${major}.json)

  list(TRANSFORM sass REPLACE "(.+)" "\"\\1\"")
  string(JOIN ", " sass ${sass})
  set(DSK_CUDA_RECORD
      "{\"toolkit\": \"${version}\", \"compiler\": \"${compiler}\", \"file\": \"lib${target_name}.so\", \"sass\": [${sass}], \"ptx\": \"compute_${portable}\"}"
      PARENT_SCOPE)
  set(DSK_CUDA_MAJOR ${major} PARENT_SCOPE)
endfunction()
