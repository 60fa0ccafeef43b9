# Kernels in C++ for OpenCL, compiled to SPIR-V by any clang and llvm-spirv (SPIRV-LLVM-Translator) of version 14 or more.

# Sets DSK_CLANG and DSK_LLVM_SPIRV, or DSK_WHY_NO_SPIRV.
function(dsk_find_spirv_tools)
  set(why "")
  # The two speak LLVM bitcode with each other, so the translator must not be older than the compiler.
  foreach(version IN ITEMS 22 21 20 19 18 17 16 15 14)
    find_program(DSK_CLANG_${version} NAMES clang-${version} PATHS /usr/lib/llvm-${version}/bin)
    find_program(DSK_LLVM_SPIRV_${version} NAMES llvm-spirv-${version} PATHS /usr/lib/llvm-${version}/bin)
    mark_as_advanced(DSK_CLANG_${version} DSK_LLVM_SPIRV_${version})
    if(DSK_CLANG_${version} AND DSK_LLVM_SPIRV_${version})
      set(DSK_CLANG "${DSK_CLANG_${version}}" CACHE FILEPATH "Compiler of the kernels")
      set(DSK_LLVM_SPIRV "${DSK_LLVM_SPIRV_${version}}" CACHE FILEPATH "Translator of LLVM bitcode to SPIR-V")
      break()
    endif()
  endforeach()
  find_program(DSK_CLANG NAMES clang)
  find_program(DSK_LLVM_SPIRV NAMES llvm-spirv)
  if(NOT DSK_CLANG OR NOT DSK_LLVM_SPIRV)
    set(why "no clang and llvm-spirv of one version from 14 on (Debian: apt-get install clang-15 llvm-spirv-15)")
  else()
    set(trial "${CMAKE_CURRENT_BINARY_DIR}/trial")
    file(WRITE "${trial}.cl" "kernel void trial(global float* x) { x[get_global_id(0)] += 1.0f; }\n")
    execute_process(COMMAND "${DSK_CLANG}" ${DSK_CL_FLAGS} -o "${trial}.bc" "${trial}.cl" RESULT_VARIABLE failed
                    ERROR_VARIABLE said OUTPUT_QUIET)
    if(NOT failed)
      execute_process(COMMAND "${DSK_LLVM_SPIRV}" ${DSK_SPIRV_FLAGS} "${trial}.bc" -o "${trial}.spv"
                      RESULT_VARIABLE failed ERROR_VARIABLE said OUTPUT_QUIET)
    endif()
    if(failed)
      string(REGEX REPLACE "[\r\n\"\\]+" " " said "${said}")
      set(why "${DSK_CLANG} and ${DSK_LLVM_SPIRV} cannot compile OpenCL to SPIR-V: ${said}")
    endif()
  endif()
  set(DSK_WHY_NO_SPIRV "${why}" PARENT_SCOPE)
endfunction()

# No passes: what the optimizer makes of loops is not always valid SPIR-V, and the driver optimizes for its device.
set(DSK_CL_FLAGS
    -c
    -x
    cl
    -cl-std=clc++2021
    -target
    spir64
    -O2
    -Xclang
    -disable-llvm-passes
    -ffp-contract=off
    -Wall
    -Wextra
    -Wno-unused-function
    -emit-llvm)
set(DSK_SPIRV_FLAGS --spirv-max-version=1.2)

# One module for each file of csrc/kernels. Sets DSK_SPIRV_FILES and DSK_SPIRV_FOLDER.
function(dsk_add_spirv)
  set(folder "${CMAKE_CURRENT_BINARY_DIR}/spirv")
  file(MAKE_DIRECTORY "${folder}")
  file(GLOB sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/csrc/kernels/*.cl")
  file(GLOB headers CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/csrc/kernels/*.h")
  set(files "")
  foreach(source IN LISTS sources)
    get_filename_component(name "${source}" NAME_WE)
    add_custom_command(
      OUTPUT "${folder}/${name}.spv"
      COMMAND "${DSK_CLANG}" ${DSK_CL_FLAGS} -o "${folder}/${name}.bc" "${source}"
      COMMAND "${DSK_LLVM_SPIRV}" ${DSK_SPIRV_FLAGS} "${folder}/${name}.bc" -o "${folder}/${name}.spv"
      DEPENDS "${source}" ${headers}
      COMMENT "SPIR-V of ${name}.cl"
      VERBATIM)
    list(APPEND files "${folder}/${name}.spv")
    string(JSON count LENGTH "${DSK_RECORD}" spirv)
    string(JSON DSK_RECORD SET "${DSK_RECORD}" spirv ${count} "\"${name}.spv\"")
  endforeach()
  add_custom_target(dsk_spirv ALL DEPENDS ${files})
  install(FILES ${files} DESTINATION ds_accel_xpu/lib)
  execute_process(COMMAND "${DSK_CLANG}" --version OUTPUT_VARIABLE version)
  string(REGEX MATCH "clang version [^ \n]+" version "${version}")
  string(JSON DSK_RECORD SET "${DSK_RECORD}" spirv_tools "\"${version}\"")
  set(DSK_SPIRV_FILES "${files}" PARENT_SCOPE)
  set(DSK_SPIRV_FOLDER "${folder}" PARENT_SCOPE)
  set(DSK_CLANG_VERSION "${version}" PARENT_SCOPE)
  set(DSK_RECORD "${DSK_RECORD}" PARENT_SCOPE)
endfunction()
