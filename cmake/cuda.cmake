# CUDA is compiled when nvcc is found and never required. Sets QT_WITH_CUDA and QT_CUDA_SOURCES.

set(QT_WITH_CUDA OFF)
file(GLOB_RECURSE QT_CUDA_SOURCES CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/*.cu)
if(NOT QT_CUDA STREQUAL "OFF" AND QT_CUDA_SOURCES)
  find_program(QT_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
  if(QT_NVCC)
    set(CMAKE_CUDA_COMPILER ${QT_NVCC})
    # wgmma and bulk copies are features of sm_90a; -gencode, because -arch=sm_90a may add a plain sm_90 pass.
    set(CMAKE_CUDA_ARCHITECTURES OFF)
    set(CMAKE_CUDA_FLAGS_INIT "-gencode arch=compute_90a,code=sm_90a")
    enable_language(CUDA)
    # CMake 3.25 (Debian 12) does not know nvcc's flag for C++20.
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    endif()
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_FLAGS_RELEASE "-O3")
    # The driver is only needed to run: libcuda is looked up at run time, the runtime is linked statically.
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    set(QT_WITH_CUDA ON)
    set(QT_CUDA_INCLUDE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
    # Results must not depend on which multiplications the compiler fuses. {fmt} of Debian 12 checks format
    # strings in a way that nvcc cannot follow, so they are checked at run time in .cu files.
    set(QT_CUDA_OPTIONS --fmad=false -DFMT_CONSTEVAL= -DFMT_USE_CONSTEXPR=1 -Werror=all-warnings
      -Xcompiler=-Wall,-Wextra,-Werror,-ffp-contract=off,-fPIC)
    if(QT_RACECHECK)
      list(APPEND QT_CUDA_OPTIONS -DQT_RACECHECK)
    endif()
  elseif(QT_CUDA STREQUAL "ON")
    message(FATAL_ERROR "QT_CUDA=ON, but nvcc was not found. Put it on PATH or set CUDA_HOME.")
  endif()
endif()
message(STATUS "CUDA kernels: ${QT_WITH_CUDA}")
