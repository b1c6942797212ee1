# llama.cpp's Jinja engine with the patches of cmake/patches; its warnings are not ours.

file(GLOB_RECURSE jinja_sources CONFIGURE_DEPENDS ${QT_DEPS}/llama-jinja/*.cpp)
add_library(quatrain_jinja STATIC ${jinja_sources})
target_include_directories(quatrain_jinja SYSTEM PUBLIC ${QT_DEPS}/llama-jinja)
target_include_directories(quatrain_jinja SYSTEM PRIVATE ${QT_NLOHMANN_INCLUDE})
target_compile_options(quatrain_jinja PRIVATE -w -ffp-contract=off)
