# One folder of src/ is one static library and one test program; the lists of files are globbed.

# Precompiled headers, one set for folders with torch and one for those without. Kernels take none: they are
# compiled with other options and include little.
set(QT_PCH_PLAIN <algorithm> <cmath> <cstdint> <cstring> <filesystem> <functional> <map> <memory>
    <optional> <span> <string> <string_view> <unordered_map> <vector> <fmt/format.h> <nlohmann/json.hpp>
    <spdlog/spdlog.h>)
set(QT_PCH_TORCH ${QT_PCH_PLAIN} <ATen/ATen.h>)

function(quatrain_make_precompiled NAME)
  file(WRITE ${CMAKE_BINARY_DIR}/${NAME}.cc.new "")
  configure_file(${CMAKE_BINARY_DIR}/${NAME}.cc.new ${CMAKE_BINARY_DIR}/${NAME}.cc COPYONLY)
  add_library(${NAME} OBJECT ${CMAKE_BINARY_DIR}/${NAME}.cc)
  target_link_libraries(${NAME} PRIVATE quatrain_options fmt::fmt spdlog::spdlog)
  target_precompile_headers(${NAME} PRIVATE ${ARGN})
endfunction()

if(QT_PRECOMPILED_HEADERS)
  quatrain_make_precompiled(quatrain_pch_plain ${QT_PCH_PLAIN})
  quatrain_make_precompiled(quatrain_pch_torch ${QT_PCH_TORCH})
  target_link_libraries(quatrain_pch_torch PRIVATE qt::torch)
endif()

# KIND is plain or torch.
function(quatrain_precompile TARGET KIND)
  if(QT_PRECOMPILED_HEADERS)
    target_precompile_headers(${TARGET} REUSE_FROM quatrain_pch_${KIND})
  endif()
endfunction()

# The shared settings of a test program: the repository root, the command line under test, one CTest entry.
function(quatrain_add_test NAME)
  add_executable(${NAME} ${ARGN})
  target_link_libraries(${NAME} PRIVATE quatrain_options GTest::gtest GTest::gtest_main)
  target_compile_definitions(${NAME} PRIVATE
    QT_SOURCE_DIR="${CMAKE_SOURCE_DIR}"
    QT_CLI="${CMAKE_BINARY_DIR}/quatrain")
  add_test(NAME ${NAME} COMMAND ${NAME} --gtest_brief=1)
  set_tests_properties(${NAME} PROPERTIES
    TIMEOUT 1200
    # libtorch keeps what it allocates at start-up until the end, on purpose.
    ENVIRONMENT "ASAN_OPTIONS=detect_leaks=0:abort_on_error=1;UBSAN_OPTIONS=print_stacktrace=1")
endfunction()

# quatrain_folder(NAME [DEPENDENCIES...] [TORCH] [OPTIMIZE] [PRIVATE libraries...] [PUBLIC libraries...])
#   NAME          a folder of src/; makes the library quatrain_NAME of its *.cc, and NAME_test of its *_test.cc
#   DEPENDENCIES  folders of strictly lower rank (tools/check_includes.py holds the files to it)
#   TORCH         its headers use ATen
#   OPTIMIZE      arithmetic that is worth -O3
function(quatrain_folder NAME)
  cmake_parse_arguments(FOLDER "TORCH;OPTIMIZE" "" "PRIVATE;PUBLIC" ${ARGN})
  set(library quatrain_${NAME})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/${NAME}/*.cc)
  set(tests ${sources})
  list(FILTER tests INCLUDE REGEX "_test\\.cc$")
  list(FILTER sources EXCLUDE REGEX "(_test|/main)\\.cc$")
  set(cuda_sources)
  if(QT_WITH_CUDA)
    set(cuda_sources ${QT_CUDA_SOURCES})
    list(FILTER cuda_sources INCLUDE REGEX "/src/${NAME}/")
    set_source_files_properties(${cuda_sources} PROPERTIES COMPILE_OPTIONS "${QT_CUDA_OPTIONS}")
    list(APPEND sources ${cuda_sources})
  endif()
  list(TRANSFORM FOLDER_UNPARSED_ARGUMENTS PREPEND quatrain_)
  set(dependencies quatrain_options ${FOLDER_UNPARSED_ARGUMENTS} ${FOLDER_PUBLIC})
  set(precompiled plain)
  if(FOLDER_TORCH)
    list(APPEND dependencies qt::torch)
    set(precompiled torch)
  endif()

  if(sources)
    add_library(${library} STATIC ${sources})
    target_link_libraries(${library} PUBLIC ${dependencies} PRIVATE ${FOLDER_PRIVATE})
    if(FOLDER_OPTIMIZE)
      target_compile_options(${library} PRIVATE $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CONFIG:Release>>:-O3>)
    else()
      quatrain_precompile(${library} ${precompiled})
    endif()
    if(cuda_sources)
      # Tests of device kernels, x_gpu_test.cc, are empty without this and skip without a device.
      target_compile_definitions(${library} PUBLIC QT_WITH_CUDA=1)
      target_include_directories(${library} SYSTEM PUBLIC ${QT_CUDA_INCLUDE})
    endif()
  else()
    add_library(${library} INTERFACE)
    target_link_libraries(${library} INTERFACE ${dependencies})
  endif()

  if(tests)
    quatrain_add_test(${NAME}_test ${tests})
    target_link_libraries(${NAME}_test PRIVATE ${library} ${FOLDER_PRIVATE})
    quatrain_precompile(${NAME}_test ${precompiled})
  endif()
endfunction()

# One test program for a folder under tests/, which may use every library and runs the command line.
function(quatrain_test_programs FOLDER)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/${FOLDER}/*.cc)
  if(sources)
    get_filename_component(name ${FOLDER} NAME)
    quatrain_add_test(${name}_test ${sources})
    target_link_libraries(${name}_test PRIVATE quatrain_cli)
    target_include_directories(${name}_test PRIVATE ${CMAKE_SOURCE_DIR})
    quatrain_precompile(${name}_test torch)
    if(TARGET quatrain)
      add_dependencies(${name}_test quatrain)
    endif()
  endif()
endfunction()

# One Google Benchmark program for each bench_*.cc; built by the target `bench` only.
function(quatrain_bench_programs FOLDER)
  add_custom_target(bench)
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/${FOLDER}/bench_*.cc)
  foreach(source ${sources})
    find_package(benchmark REQUIRED)
    get_filename_component(name ${source} NAME_WE)
    add_executable(${name} EXCLUDE_FROM_ALL ${source})
    target_link_libraries(${name} PRIVATE quatrain_cli benchmark::benchmark benchmark::benchmark_main)
    target_compile_definitions(${name} PRIVATE QT_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
    add_dependencies(bench ${name})
  endforeach()
endfunction()

# One libFuzzer program for each fuzz_*.cc; built by the target `fuzz` only.
function(quatrain_fuzz_programs FOLDER)
  add_custom_target(fuzz)
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/${FOLDER}/fuzz_*.cc)
  foreach(source ${sources})
    get_filename_component(name ${source} NAME_WE)
    # Of src/models what reads config.json alone, which needs no torch.
    add_executable(${name} EXCLUDE_FROM_ALL ${source}
      ${CMAKE_SOURCE_DIR}/src/models/model_config.cc ${CMAKE_SOURCE_DIR}/src/models/families.cc)
    target_link_libraries(${name} PRIVATE quatrain_options quatrain_io quatrain_text)
    target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR})
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
    add_dependencies(fuzz ${name})
  endforeach()
endfunction()
