# `make help` lists the targets.  Everything is installed into .venv (and .venvs, for
# test-versions), except for missing Debian packages, which apt-get installs.

PYTHON ?= $(shell scripts/find_python '>=3.11')
# The Pythons that are there are used; scripts/make_pythons makes the newest ones.
VERSIONS ?= 3.12 3.13 3.14 3.15 3.14t
# The accounting, and the tests that reach every line of the drivers; all tests take several times longer.
ASAN_TESTS ?= tests/native tests/contract/test_data.py tests/contract/test_order.py \
	tests/contract/test_cancellation.py tests/contract/test_sockets.py \
	tests/contract/test_broadcast.py tests/features/test_lowlevel.py \
	tests/features/test_staging.py tests/features/test_datagrams.py \
	tests/features/test_closed_or_not.py tests/features/test_file_kept.py \
	tests/streams/test_ring_receiving.py tests/streams/test_content.py tests/streams/test_errors.py \
	tests/streams/test_resets.py
# Tests of what another Python could break; empty for all tests.
VERSION_TESTS ?= tests/native tests/contract/test_data.py tests/contract/test_generations.py \
	tests/contract/test_release.py tests/contract/test_guards.py tests/contract/test_threads.py \
	tests/features/test_pool.py tests/features/test_garbage.py tests/trio_only
# Debian releases on whose kernels test-kernels runs KERNEL_TESTS, the tests of what the kernel decides.
# Tests that take long in an emulated machine are left out.
KERNELS ?= bullseye bookworm trixie
KERNEL_TESTS ?= tests/native/test_direct.py tests/native/test_receiving.py \
	tests/contract/test_data.py tests/contract/test_release.py \
	tests/contract/test_cancellation.py tests/contract/test_vectors.py \
	tests/features/test_alone.py tests/features/test_pool.py tests/features/test_closed_or_not.py \
	tests/features/test_closed_by_program.py tests/features/test_trains.py \
	tests/features/test_trains_of_sockets.py \
	tests/streams/test_content.py tests/streams/test_ring_receiving.py
KERNEL_CHOICE ?= not uvloop and not 100_groups and not 64_mib and not many_groups \
	and not without_waiting and not each_arrives_as_it_was_cut and not wrong_segments
# The tests of the kernel's TLS, in the same machine with the module tls loaded: there they fail if the
# kernel does not encrypt.
KERNEL_TLS_TESTS ?= tests/tls/test_wrapping.py tests/tls/test_connecting.py \
	tests/tls/test_key_updates.py tests/tls/test_peers.py tests/tls/test_negotiating.py::test_ciphers \
	tests/asgi/test_tls.py
KERNEL_TLS_CHOICE ?= socket and asyncio and not msg_zerocopy and not copy
KERNEL_PACKAGES := busybox-static cpio kmod qemu-system-x86 xz-utils
PYTEST_ARGS ?=
# Peers of the tests: a browser, a web server for comparison, a load generator, a source of videos, and
# the server through which several chat servers share rooms; and what sets a device up.
TEST_PACKAGES := chromium ethtool ffmpeg nftables nginx openssl redis-server wrk
# Tests wait for peers more than they compute.
JOBS ?= $(shell expr $$(nproc) + 1)
# The length of the whole `make soak`; three backends share it.
MINUTES ?= 10
# How many datagrams `make soak-trains` sends.
DATAGRAMS ?= 10000000
# The length of `make fuzz`.
SECONDS ?= 600
# The cross compiler, the other libc and the emulator of `make dist`.
DIST_PACKAGES := gcc-aarch64-linux-gnu musl-tools qemu-user-static
FUZZ_PACKAGES := clang libclang-rt-dev
# What `make stream` serves: a test video, unless told otherwise.
FOLDER ?= build/videos
TEST_VIDEO := build/videos/test.mp4
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
SCHEMA := $(VENV)/bin/check-jsonschema --quiet --builtin-schema
PIP_INSTALL := -m pip --disable-pip-version-check --quiet install

NATIVE := $(wildcard _native/*.h _native/*/*.c _native/*/*.h) _native/build.py setup.py pyproject.toml
PACKAGE := $(shell find zc_anyio -name '*.py' -o -name '*.pyi' -o -name py.typed)
# Everything that the sanitized copy consists of.
TREE := $(NATIVE) $(PACKAGE) $(shell find tests examples -type f -not -path '*/__pycache__/*')

# The C++ runtime comes along because AddressSanitizer must find __cxa_throw at start if any
# extension module is to throw.
ASAN_PRELOAD = $(shell gcc -print-file-name=libasan.so) $(shell gcc -print-file-name=libstdc++.so.6)
# CPython frees little at exit, so leaks are not reported.  Python's own small-object allocator is
# switched off so that buffers of Python objects have red zones too.  pytest leaves descriptor 2 alone,
# where the report appears, and sets no SIGSEGV handler.
ASAN_ENV = LD_PRELOAD="$(ASAN_PRELOAD)" PYTHONMALLOC=malloc PYTHONPATH="$(CURDIR)/build/asan" \
	ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:strict_string_checks=1 \
	UBSAN_OPTIONS=print_stacktrace=1:abort_on_error=1
ASAN_PYTEST = -m pytest -n $(JOBS) --capture=sys -p no:faulthandler

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo stream chat test test-anyio test-autobahn bench bench-web bench-quick \
	bench-page docs lint types asan soak soak-trains fuzz fuzz-replay fuzz-keep mutants wheel dist test-versions test-kernels clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

setup: $(VENV)/.installed ## Install what is missing and build the extension

demo: $(VENV)/.installed ## Run the demonstration
	@$(BIN)/python -m examples.demo

stream: $(VENV)/.installed $(filter $(TEST_VIDEO),$(FOLDER)/test.mp4) ## Serve videos and a live picture (FOLDER=... for yours)
	@$(BIN)/python -m examples.stream $(FOLDER)

chat: $(VENV)/.installed ## Run the chat server (ARGS=--help: the options)
	@$(BIN)/python -m examples.chat $(ARGS)

test: $(VENV)/.peers ## Run all tests (PYTEST_ARGS="-k name" to choose)
	@$(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

bench: $(VENV)/.bench ## Compare with other ways to send (ARGS=--help: the choices)
	@$(BIN)/python -m benchmarks $(ARGS)

bench-web: $(VENV)/.bench ## Measure a Starlette application under several servers (ARGS=--help: the choices)
	@$(BIN)/python -m benchmarks.web $(ARGS)

bench-page: $(VENV)/.bench ## Write the latest results into docs/performance*, with plots
	@$(BIN)/python -m benchmarks.report

# Where everything is required (ZC_ANYIO_REQUIRE_ALL), loopback does not replace the lab.
bench-quick: $(VENV)/.bench ## Try the benchmarks out, in two or three minutes
	@rm -rf build/benchmarks/quick && mkdir -p build/benchmarks/quick/performance
	@cp docs/performance.md build/benchmarks/quick
	@cp docs/performance/details.md docs/performance/web.md build/benchmarks/quick/performance
	@$(BIN)/python -m benchmarks --quick --results build/benchmarks/quick \
		$(if $(ZC_ANYIO_REQUIRE_ALL),--place lab)
	@$(BIN)/python -m benchmarks.web --quick --results build/benchmarks/quick
	@$(BIN)/python -m benchmarks.report --results build/benchmarks/quick \
		--page build/benchmarks/quick/performance.md

# Built from nothing: Sphinx does not repeat the warnings of pages that are unchanged.
docs: $(VENV)/.docs ## Build the site into build/docs/html, and follow its links
	@rm -rf build/docs
	@$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -d build/docs/doctrees \
		docs build/docs/html
	@$(BIN)/python scripts/check_links.py build/docs/html

lint: $(VENV)/.lint ## Check style and formatting, workflows, and news fragments
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/zizmor --offline --quiet --no-progress .github
	@$(SCHEMA) vendor.github-workflows .github/workflows/*.yml
	@$(SCHEMA) vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/idea.yml
	@$(SCHEMA) vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	@$(SCHEMA) vendor.dependabot .github/dependabot.yml
	@$(BIN)/pre-commit validate-config
	@news=$$($(BIN)/towncrier build --draft 2>&1) || { echo "$$news"; exit 1; }

types: $(VENV)/.lint ## Check types, and that the public interface is typed completely
	@$(BIN)/mypy --strict
# --verifytypes examines the package that the python3 in PATH imports.
	@PATH="$(CURDIR)/$(BIN):$$PATH" PYRIGHT_PYTHON_IGNORE_WARNINGS=1 \
		pyright --verifytypes zc_anyio --ignoreexternal

asan: build/asan/.built ## Run ASAN_TESTS with AddressSanitizer and UndefinedBehaviorSanitizer
	@cd build/asan && $(ASAN_ENV) $(CURDIR)/$(BIN)/python $(ASAN_PYTEST) $(ASAN_TESTS) $(PYTEST_ARGS)

soak: $(VENV)/.installed ## Do random work for MINUTES, and check that nothing grows (ARGS="--seed ...")
	@$(BIN)/python -m tests.soak --minutes $(MINUTES) $(ARGS)

soak-trains: $(VENV)/.peers ## Send DATAGRAMS of random sizes in trains, and look at each (as root)
	@$(BIN)/python -m tests.soak.trains --datagrams $(DATAGRAMS) $(ARGS)

# New inputs go into build/fuzz/corpus; `make fuzz-keep` keeps what they reach.
fuzz: build/fuzz/.corpus ## Fuzz the native accounting for SECONDS
	@cd build/fuzz && ./accounting -max_total_time=$(SECONDS) -max_len=4096 -timeout=25 \
		-print_final_stats=1 corpus

fuzz-replay: build/fuzz/.corpus ## Run the kept inputs, and say how many edges they reach
	@cd build/fuzz && { ./accounting -runs=0 corpus >replay.log 2>&1 || { cat replay.log; exit 1; }; }
	@grep -E 'INITED|Loaded 1 modules' build/fuzz/replay.log

fuzz-keep: build/fuzz/.corpus
	@rm -rf build/fuzz/kept && mkdir build/fuzz/kept
	@cd build/fuzz && ./accounting -merge=1 -max_len=1024 kept corpus
	@tar --sort=name --mtime=@0 --owner=0 --group=0 -C build/fuzz/kept -cJf tests/fuzz/corpus.tar.xz .

mutants: build/mutants/.built $(VENV)/.mutants build/fuzz/accounting ## Change the code in small ways, and list what no test notices
	@cd build/mutants && PYTHONPATH=$(CURDIR)/build/mutants \
		$(CURDIR)/$(BIN)/python -m tests.mutants.native --seconds $(SECONDS)
	@cd build/mutants && $(CURDIR)/$(BIN)/mutmut run --max-children $(JOBS); \
		$(CURDIR)/$(BIN)/mutmut results

wheel: dist/.built ## Build the wheel into dist/

dist: $(VENV)/.dist ## Build the sdist and the wheels of a release into dist/, and try them
	@scripts/make_dist "$(CURDIR)/$(BIN)/python"

test-versions: dist/.built ## Test the built wheel on those of VERSIONS that are there
	@for version in $(VERSIONS); do \
		if python=$$(scripts/find_python $$version); then \
			PYTEST_ARGS="-n $(JOBS) $(VERSION_TESTS) $(PYTEST_ARGS)" \
				scripts/test_wheel_on "$$python" .venvs/$$version || exit 1; \
		else \
			echo "test-versions: there is no Python $$version here"; \
		fi; \
	done

test-anyio: $(VENV)/.installed ## Run anyio's own tests of sockets over this library, on each driver
	@$(BIN)/python $(PIP_INSTALL) -e '.[test-anyio]'
	@scripts/test_anyio "$(CURDIR)/$(BIN)/python" "$(CURDIR)/build/anyio" -n $(JOBS) $(PYTEST_ARGS)

test-autobahn: $(VENV)/.installed ## Run the Autobahn test suite against the ASGI server's WebSockets (needs Python 2.7)
	@python2=$$(scripts/find_python 2.7) || { echo "test-autobahn: Python 2.7 is needed" >&2; exit 1; }; \
		$(BIN)/python scripts/test_autobahn.py "$$python2" build/autobahn $(ARGS)

test-kernels: $(VENV)/.peers ## Run KERNEL_TESTS on the kernels of KERNELS, in a virtual machine
	@scripts/install_debian_packages "$(PYTHON)" $(KERNEL_PACKAGES)
	@for suite in $(KERNELS); do \
		echo "test-kernels: $$suite"; \
		scripts/run_kernel $$suite scripts/test_kernel $(BIN)/python "$(KERNEL_CHOICE)" \
			"$(KERNEL_TESTS)" "$(KERNEL_TLS_CHOICE)" "$(KERNEL_TLS_TESTS)" $(PYTEST_ARGS) || exit 1; \
	done

clean: ## Remove everything that was built and installed here
	rm -rf $(VENV) .venvs build dist *.egg-info zc_anyio/_native/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created: scripts/install_debian_packages
	@test -n "$(PYTHON)" || { echo "setup: Python 3.11 or newer is needed" >&2; exit 1; }
	@scripts/install_debian_packages "$(PYTHON)"
	@echo "setup: making the virtual environment $(VENV) with $(PYTHON)"
	@"$(PYTHON)" -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created $(NATIVE)
	@echo "setup: building zc_anyio and installing it with its test tools into $(VENV)"
	@$(BIN)/python $(PIP_INSTALL) -e '.[test]'
	@touch $@

$(VENV)/.peers: $(VENV)/.installed
	@scripts/install_debian_packages "$(PYTHON)" $(TEST_PACKAGES)
	@touch $@

$(TEST_VIDEO): | $(VENV)/.created
	@scripts/install_debian_packages "$(PYTHON)" ffmpeg
	@mkdir -p $(@D)
	@ffmpeg -loglevel error -y -f lavfi -i testsrc2=size=640x360:rate=25:duration=60 \
		-f lavfi -i sine=beep_factor=4:duration=60 -pix_fmt yuv420p -movflags +faststart $@

# The lab needs root anyway; without root the benchmarks measure on loopback.
$(VENV)/.bench: $(VENV)/.installed pyproject.toml
	@scripts/install_debian_packages "$(PYTHON)" wrk \
		$$([ "$$(id -u)" -ne 0 ] || echo clang libbpf-dev)
	@echo "setup: installing what the benchmarks need into $(VENV)"
	@$(BIN)/python $(PIP_INSTALL) -e '.[test,bench]'
	@touch $@

$(VENV)/.lint: $(VENV)/.installed pyproject.toml
	@echo "setup: installing the linters and type checkers into $(VENV)"
	@$(BIN)/python $(PIP_INSTALL) -e '.[test,bench,lint]'
	@touch $@

$(VENV)/.dist: $(VENV)/.installed pyproject.toml
	@[ "$$(uname -m)" != x86_64 ] || scripts/install_debian_packages "$(PYTHON)" $(DIST_PACKAGES)
	@echo "setup: installing what builds a release into $(VENV)"
	@$(BIN)/python $(PIP_INSTALL) -e '.[test,dist]'
	@touch $@

$(VENV)/.docs: $(VENV)/.installed pyproject.toml
	@echo "setup: installing what builds the documentation into $(VENV)"
	@$(BIN)/python $(PIP_INSTALL) -e '.[test,docs]'
	@touch $@

build/asan/.built: $(VENV)/.installed $(TREE) scripts/copy_project
	@echo "asan: building a sanitized copy of the project in build/asan"
	@scripts/copy_project build/asan
	@cd build/asan && ZC_SANITIZE=1 $(CURDIR)/$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

# libFuzzer writes a new input beside the others, so the kept ones are unpacked.
build/fuzz/.corpus: build/fuzz/accounting tests/fuzz/corpus.tar.xz
	@mkdir -p build/fuzz/corpus && tar -C build/fuzz/corpus -xf tests/fuzz/corpus.tar.xz
	@touch $@

build/fuzz/accounting: $(VENV)/.created $(NATIVE) $(wildcard tests/fuzz/*.[ch]) scripts/build_fuzz_target
	@scripts/install_debian_packages "$(PYTHON)" $(FUZZ_PACKAGES)
	@scripts/build_fuzz_target $(@D)

build/mutants/.built: $(VENV)/.installed $(TREE) scripts/copy_project
	@scripts/copy_project build/mutants
	@cd build/mutants && $(CURDIR)/$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

$(VENV)/.mutants: $(VENV)/.installed pyproject.toml
	@$(BIN)/python $(PIP_INSTALL) -e '.[test,mutants]'
	@touch $@

# setuptools packs whatever an earlier build left in build/lib*.
dist/.built: $(VENV)/.installed $(NATIVE) $(PACKAGE) README.md LICENSE
	@rm -rf build/lib* build/bdist* build/temp* dist
	@$(BIN)/python -m pip --disable-pip-version-check --quiet wheel --no-deps -w dist .
	@touch $@
	@echo "wheel: built $$(ls dist/*.whl)"
