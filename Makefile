# The two commands of a user, `make demo` and `make test`, and those of a developer.

# A compilation with libtorch's headers takes up to 2.5 GiB, so memory bounds the jobs as the cores do.
JOBS := $(shell awk -v cores="$$(nproc)" '/^MemAvailable:/ { jobs = int($$2 / 2621440) } \
          END { if (jobs > cores) jobs = cores; print (jobs < 1 ? 1 : jobs) }' /proc/meminfo)

.PHONY: help setup build debug demo test presubmit asan fuzz bench format clean

help:
	@echo "make demo       set up, build, and run the whole pipeline on the example model; ends with a report"
	@echo "make test       set up, build, presubmit checks, all tests"
	@echo "make build      set up and build build/release/quatrain"
	@echo "make asan       build with the address and undefined-behaviour sanitizers and run all tests"
	@echo "make fuzz       build the readers of files with clang's fuzzer and run each for 10 minutes"
	@echo "make bench      build and run the benchmarks"
	@echo "make presubmit  the static checks alone"
	@echo "make format     clang-format every source file"
	@echo "make clean      remove build/ (the fetched libraries in .deps/ stay)"

setup:
	@tools/setup.sh

# $(call build,preset,target)
define build
	@mkdir -p build
	@cmake --preset $(1) > build/configure-$(1).log 2>&1 || { cat build/configure-$(1).log; exit 1; }
	@cmake --build build/$(1) --parallel $(JOBS) --target $(2)
endef

build: setup
	$(call build,release,all)

debug: setup
	$(call build,debug,all)

# The program alone: the tests are more than half of the whole build.
demo: setup
	$(call build,release,quatrain)
	@tools/demo.sh

# The quick static checks come first: they fail within seconds.
test: setup presubmit
	$(call build,release,all)
	@ctest --preset release --parallel 1

presubmit: setup
	@tools/presubmit.sh

asan: setup
	$(call build,asan,all)
	@ctest --preset asan --parallel 1

fuzz: setup
	@python3 tests/fuzz/run.py

bench: setup
	$(call build,release,bench)
	@set -e; for program in build/release/bench_*; do "$$program"; done

format: setup
	@tools/check_format.py --fix

clean:
	rm -rf build
