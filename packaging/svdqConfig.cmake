# find_package(svdq) defines svdq::svdq, the shared library, and svdq::static. The folder that this was installed to may
# be moved as a whole.
get_filename_component(_svdq_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

if(NOT TARGET svdq::svdq)
  add_library(svdq::svdq SHARED IMPORTED)
  set_target_properties(svdq::svdq PROPERTIES
    IMPORTED_LOCATION "${_svdq_prefix}/lib/libsvdq.so.@VERSION@"
    IMPORTED_SONAME "libsvdq.so.@MAJOR@"
    INTERFACE_INCLUDE_DIRECTORIES "${_svdq_prefix}/include")

  add_library(svdq::static STATIC IMPORTED)
  set_target_properties(svdq::static PROPERTIES
    IMPORTED_LOCATION "${_svdq_prefix}/lib/libsvdq.a"
    INTERFACE_COMPILE_DEFINITIONS SVDQ_STATIC
    INTERFACE_INCLUDE_DIRECTORIES "${_svdq_prefix}/include"
    INTERFACE_LINK_LIBRARIES "@STATIC_NEEDS@")
endif()
unset(_svdq_prefix)
