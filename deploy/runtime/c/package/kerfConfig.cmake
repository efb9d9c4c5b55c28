# find_package(kerf) gives the target kerf::kerf.
get_filename_component(_kerf "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
if(NOT TARGET kerf::kerf)
  add_library(kerf::kerf SHARED IMPORTED)
  set_target_properties(kerf::kerf PROPERTIES
    IMPORTED_LOCATION "${_kerf}/lib/@LIBRARY@"
    INTERFACE_INCLUDE_DIRECTORIES "${_kerf}/include")
endif()
unset(_kerf)
