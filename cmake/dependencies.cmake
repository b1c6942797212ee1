# Third-party libraries: Debian packages, and what tools/setup.sh put into .deps.

set(QT_DEPS ${CMAKE_SOURCE_DIR}/.deps)
foreach(dependency torch arrow llama-jinja)
  if(NOT EXISTS ${QT_DEPS}/${dependency}/.stamp)
    message(FATAL_ERROR "${QT_DEPS}/${dependency} is missing. Run tools/setup.sh first.")
  endif()
endforeach()

find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(GTest REQUIRED)
find_package(PkgConfig REQUIRED)
find_path(QT_NLOHMANN_INCLUDE nlohmann/json.hpp REQUIRED)
find_path(QT_CLI11_INCLUDE CLI/CLI.hpp REQUIRED)
pkg_check_modules(HWY REQUIRED IMPORTED_TARGET libhwy)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(GMPXX REQUIRED IMPORTED_TARGET gmpxx)
pkg_check_modules(HTTPLIB REQUIRED IMPORTED_TARGET cpp-httplib)

# An imported shared library of .deps: name, file, further libraries it needs at run time in the same folder.
function(quatrain_import NAME FILE INCLUDES)
  add_library(${NAME} SHARED IMPORTED GLOBAL)
  set_target_properties(${NAME} PROPERTIES
    IMPORTED_LOCATION ${FILE}
    INTERFACE_INCLUDE_DIRECTORIES "${INCLUDES}")
endfunction()

# find_package(Torch) of the CUDA wheel demands a CUDA toolkit; the CPU part needs none.
quatrain_import(qt::c10 ${QT_DEPS}/torch/lib/libc10.so "")
quatrain_import(qt::torch ${QT_DEPS}/torch/lib/libtorch_cpu.so
  "${QT_DEPS}/torch/include;${QT_DEPS}/torch/include/torch/csrc/api/include")
target_link_libraries(qt::torch INTERFACE qt::c10 Threads::Threads)
target_compile_definitions(qt::torch INTERFACE _GLIBCXX_USE_CXX11_ABI=1)
# libcudart, libcupti and libgomp lie beside it and are found through its own run path.
target_link_options(qt::torch INTERFACE -Wl,--allow-shlib-undefined)

quatrain_import(qt::arrow ${QT_DEPS}/arrow/lib/libarrow.so ${QT_DEPS}/arrow/include)
quatrain_import(qt::parquet ${QT_DEPS}/arrow/lib/libparquet.so ${QT_DEPS}/arrow/include)
target_link_libraries(qt::parquet INTERFACE qt::arrow)

include(jinja)
