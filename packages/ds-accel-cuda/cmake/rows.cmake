# dsk_row_names(<variable> <folder>): JSON list of the names in the op table, from the rows.h of every family, so that a
# plugin knows what its libraries have without loading one.

function(dsk_row_names out folder)
  file(GLOB headers CONFIGURE_DEPENDS "${folder}/*/rows.h")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${headers})
  set(names)
  foreach(header IN LISTS headers)
    file(READ "${header}" text)
    string(REGEX MATCHALL "[({]\"[a-z0-9_]+\"" found "${text}")
    list(TRANSFORM found REPLACE "[({]" "")
    list(APPEND names ${found})
  endforeach()
  string(JOIN ", " names ${names})
  set(${out} "[${names}]" PARENT_SCOPE)
endfunction()
