# llama.cpp's Jinja engine with the patches of cmake/patches; its warnings are not ours. The engine and src/text
# call each other (chat_template.cc the engine, the engine text/python_text.h), so its objects go into quatrain_text.

set(QT_JINJA ${QT_DEPS}/llama-jinja/jinja)
add_library(quatrain_jinja OBJECT
  ${QT_JINJA}/lexer.cpp ${QT_JINJA}/parser.cpp ${QT_JINJA}/runtime.cpp ${QT_JINJA}/string.cpp ${QT_JINJA}/value.cpp)
target_include_directories(quatrain_jinja SYSTEM PUBLIC ${QT_DEPS}/llama-jinja)
target_include_directories(quatrain_jinja PRIVATE ${CMAKE_SOURCE_DIR}/src)
target_compile_options(quatrain_jinja PRIVATE -w -fPIC -ffp-contract=off)
