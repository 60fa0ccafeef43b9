# dsk_add_emulation(<target> <sources> [WARP <lanes>] [SANITIZED] [DEFINITIONS <name>...]): the .cu files as host C++, with
# the machine they run on.

set(DSK_EMULATION_SOURCES "${CMAKE_CURRENT_LIST_DIR}/../csrc/emulation")
set(DSK_EMULATION_WARNINGS -Wall -Wextra -Wshadow -Wno-unknown-pragmas)
include(CheckCXXCompilerFlag)
check_cxx_compiler_flag(-fno-gnu-unique DSK_HAS_NO_GNU_UNIQUE)
if(DSK_HAS_NO_GNU_UNIQUE)
  list(APPEND DSK_EMULATION_WARNINGS -fno-gnu-unique)
endif()

function(dsk_add_emulation target sources)
  cmake_parse_arguments(PARSE_ARGV 2 arg "SANITIZED" "WARP" "DEFINITIONS")
  if(NOT arg_WARP)
    set(arg_WARP ${DSK_EMULATE_WARP})
  endif()
  get_filename_component(root "${DSK_EMULATION_SOURCES}/.." ABSOLUTE)
  file(GLOB machine CONFIGURE_DEPENDS "${DSK_EMULATION_SOURCES}/*.cpp")
  add_library(${target} MODULE ${sources} ${machine})
  set_source_files_properties(${sources} PROPERTIES LANGUAGE CXX)
  target_include_directories(${target} PRIVATE "${root}" "${root}/kernels" "${DS_CORE_INCLUDE_DIR}")
  target_compile_definitions(
    ${target}
    PRIVATE DSK_EMULATED DSK_EMULATE_WARP=${arg_WARP} DSK_TARGET="emulated, warps of ${arg_WARP}" ${arg_DEFINITIONS}
            DSK_BUILD="${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}, ${SKBUILD_PROJECT_NAME} ${SKBUILD_PROJECT_VERSION}")
  # A .cu file is C++ to this compiler only if told so. Floating point as written, as nvcc is told too.
  target_compile_options(${target} PRIVATE -x c++ ${DSK_EMULATION_WARNINGS} -ffp-contract=off -fno-math-errno
                                           -fno-trapping-math)
  if(arg_SANITIZED)
    # Shifts of negative numbers are defined by every compiler that is served, and by C++20.
    target_compile_options(${target} PRIVATE -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined
                                             -fno-sanitize-recover=all -fno-sanitize=shift)
    target_link_options(${target} PRIVATE -fsanitize=address,undefined)
  else()
    target_compile_options(${target} PRIVATE -O2)
    target_link_options(${target} PRIVATE -Wl,--as-needed -Wl,-z,now -Wl,--exclude-libs,ALL)
  endif()
  # Templates of the standard library would be exported, too.
  target_link_options(${target} PRIVATE "-Wl,--version-script=${DSK_EMULATION_SOURCES}/exports.map")
  target_link_libraries(${target} PRIVATE Threads::Threads)
endfunction()
