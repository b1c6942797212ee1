# How every file of ours is compiled.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Release or Debug" FORCE)
endif()

# -g1 keeps line numbers for back traces; full debug information would double the time to compile.
# Assertions stay on in Release: no -DNDEBUG.
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -g1")
set(CMAKE_CXX_FLAGS_DEBUG "-O0 -g")

# Results must not depend on which multiplications the compiler fuses: fused steps are written as such.
add_library(quatrain_options INTERFACE)
target_compile_options(quatrain_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Werror -ffp-contract=off>
  # A designated initialiser names what differs from the defaults; the rest is meant to be left out.
  $<$<COMPILE_LANGUAGE:CXX>:-Wno-missing-field-initializers>
  # Libraries and programs alike, so that all of them share the precompiled headers.
  -fPIC
  # Messages and debug information name src/..., whatever the folder of the clone.
  $<$<COMPILE_LANGUAGE:CXX>:-ffile-prefix-map=${CMAKE_SOURCE_DIR}/=>)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  target_compile_options(quatrain_options INTERFACE
    # A header that does not fit is read as text instead, which costs time but is no error.
    $<$<COMPILE_LANGUAGE:CXX>:-Wno-error=invalid-pch>
    # False alarms of GCC 12 and 13 inside std::string and std::vector (GCC bugs 105329, 105651, 107852).
    $<$<COMPILE_LANGUAGE:CXX>:-Wno-array-bounds -Wno-restrict -Wno-stringop-overflow -Wno-stringop-overread>)
endif()
target_include_directories(quatrain_options INTERFACE ${CMAKE_SOURCE_DIR}/src)
target_compile_definitions(quatrain_options INTERFACE QT_VERSION="${PROJECT_VERSION}")

if(QT_SANITIZE)
  # Every linked piece of ours carries these; the fetched shared libraries do not.
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fsanitize=address,undefined>
                      $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize-recover=all>
                      $<$<COMPILE_LANGUAGE:CXX>:-fno-omit-frame-pointer>)
  add_link_options(-fsanitize=address,undefined)
endif()

if(QT_FUZZ)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fsanitize=fuzzer-no-link,address,undefined>
                      $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize-recover=all>)
  add_link_options(-fsanitize=address,undefined)
  # Not the compiler that the sources are kept free of warnings with.
  target_compile_options(quatrain_options INTERFACE -Wno-error)
endif()

find_program(QT_CCACHE ccache)
if(QT_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # ccache handles precompiled headers only when told that their time stamps do not matter.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime ${QT_CCACHE})
endif()

# GNU ld needs seconds for libtorch_cpu's symbol table; gold comes with binutils and does not.
find_program(QT_GOLD ld.gold)
if(QT_GOLD AND NOT QT_SANITIZE AND NOT QT_FUZZ)
  add_link_options(-fuse-ld=gold)
endif()
