# The two commands to know: `make demo` and `make test`. Both set up what is missing first.
# Everything that is fetched comes by apt, by Maven with its default settings, or as a Go module; caches lie in
# $XDG_CACHE_HOME/claviger (see scripts/cache-dir) and in .cache.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build

GOLANGCI_LINT_VERSION := v2.15.0
GOLANGCI_LINT := .cache/bin/golangci-lint-$(GOLANGCI_LINT_VERSION)

# The packages whose tests need no Hadoop.
UNIT := $$(go list ./... | grep -v '/test/')
# `go test` begins with the packages that are named first: those that take longest, so that none runs alone at the end.
LONGEST := ./cmd/claviger ./test/hadoop ./test/conformance ./metastore/postgres ./test/secured ./test/faults \
  ./test/hsmfaults ./pkcs11 ./test/nodes ./test/twonodes ./provider/hsm ./zookeeper
# Four packages at once: much of a test's time is waiting for a JVM or a server to start. A package is vetted beside
# the tests of others (-vet=all), so that no core waits for the others at the beginning.
# With these, a test whose real part is missing fails; without, it is left out.
REQUIRE := CLAVIGER_REQUIRE_JAVA=1 CLAVIGER_REQUIRE_HADOOP=1 CLAVIGER_REQUIRE_KDC=1 CLAVIGER_REQUIRE_LDAP=1 CLAVIGER_REQUIRE_POSTGRES=1 CLAVIGER_REQUIRE_GPG=1 CLAVIGER_REQUIRE_LOGROTATE=1 CLAVIGER_REQUIRE_PROMTOOL=1 CLAVIGER_REQUIRE_CHROMIUM=1 CLAVIGER_REQUIRE_LIBCRYPTO=1
# A program with the race detector sleeps a second as it ends; the tests run a thousand of them.
export GORACE ?= atexit_sleep_ms=0
# Programs of the tests are short and small, so the garbage collector may come later: metastore/sqlite takes 31 s of
# processor time instead of 37.
test test-fast test-hadoop: export GOGC ?= 400
# The race detector watches our code and the drivers, not the C of SQLite and its libc, translated to Go: its threads
# share no memory of Go's, and watching it takes as long as all the rest. Nor does it watch the numbers of RSA and ECDSA,
# which no goroutine shares, and MD5, which only the protection of JCEKS entries uses, 400,000 times an entry.
unwatched := modernc.org/sqlite/lib modernc.org/libc/... crypto/internal/fips140/bigmod \
  crypto/internal/fips140/nistec/... crypto/md5
# Nobody debugs these programs, so the compiler leaves out DWARF: a sixth of its processor time. Stack traces need none.
no_dwarf := -dwarf=false
test test-fast test-hadoop: export GOFLAGS := $(GOFLAGS) -gcflags=all=$(no_dwarf) \
  $(unwatched:%='-gcflags=%=-race=false $(no_dwarf)')
# The tests of PKCS #11 run twice: with the library in their own process, and in a worker. These need no second run:
# they choose the mode themselves, or do not depend on it.
ONE_MODE := Crash|Worker|HungToken|HangAtStart|Fuzz|ConcurrentStarts|RefusedAttributes|Messages|TwoPairs|Attributes|SoftHSM|ConcurrentGenerate
FUZZTIME ?= 4s
BENCHTIME ?= 1s
SAMPLE ?= 20

.PHONY: help setup build packages release test test-fast test-hadoop conformance soak fuzz demo mutate bench lint clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: ## install what the tests need and is missing (SoftHSM2, C compiler, Kerberos headers, PostgreSQL, OpenLDAP, a KDC, Chromium, GnuPG, JDK, Maven, Hadoop's jars)
	@scripts/setup all

build: ## build bin/claviger
	@scripts/setup base
	@scripts/build

PACKAGE_ARCHS ?= amd64
# Root, lintian, rpm, mmdebstrap and nfpm.
REQUIRE += CLAVIGER_REQUIRE_PACKAGES=1

packages: ## make .deb and .rpm in bin/packages, for the architectures in PACKAGE_ARCHS (amd64 arm64)
	@scripts/setup base
	@for arch in $(PACKAGE_ARCHS); do scripts/setup $$arch; PACKAGE_ARCH=$$arch scripts/packages bin/packages; done

release: ## make the packages of the commit twice, compare, test and collect them in bin/release with checksums
	@scripts/setup all
	@scripts/release bin/release

test: ## set up what is missing and run everything: vet, all tests with the race detector, real Hadoop, Hadoop's own KMS tests, the seeds of the fuzz targets
	@scripts/setup all
	CLAVIGER_TEST_WORKER=1 go test -race -vet=off -count 1 -timeout 20m -skip '$(ONE_MODE)' ./pkcs11 & in_worker=$$!; \
	status=0; \
	$(REQUIRE) CLAVIGER_HADOOP_JARS=$$(scripts/hadoop-jars) \
	  go test -race -vet=all -p 4 -count 1 -timeout 20m $(LONGEST) ./... || status=$$?; \
	wait $$in_worker || status=$$?; \
	exit $$status

test-fast: ## all tests that need no Hadoop
	@scripts/setup base
	go test -race -vet=all -timeout 15m $(UNIT)

test-hadoop: ## the walk with a real Hadoop: KMS, NameNode, DataNode, clients
	@scripts/setup all
	go test -race -count 1 -timeout 15m -v ./test/hadoop

conformance: ## Hadoop's own tests of its KMS and of encryption zones against bin/claviger
	@scripts/setup all
	@scripts/build
	CLAVIGER_BIN=$(CURDIR)/bin/claviger go test -count 1 -timeout 30m -v ./test/conformance -zones

soak: ## ten minutes of random faults of the HSM, 200 kills of the library's process, 1,000 rolls seen by other nodes, and changes against caches
	@scripts/setup base
	CLAVIGER_SOAK=1 go test -p 1 -count 1 -timeout 30m -v -run 'Storm|KilledWorkers|RollIsSeen|AgainstCaches' ./test/hsmfaults ./test/nodes ./kmsapi

fuzz: ## look for new inputs that break something: each fuzz target for FUZZTIME (default 4s)
	@scripts/setup base
	scripts/fuzz $(FUZZTIME)

demo: build ## the whole migration on this machine, on SoftHSM2, narrated
	bin/claviger demo

mutate: ## break the code on purpose: the named changes, and SAMPLE changes by rule of each package (default 20); lists those that no test notices
	@scripts/setup base
	scripts/mutate --named
	scripts/mutate --sample $(SAMPLE)

bench: ## compare with a warmed Java KMS and write the tables and plots of docs/performance.md; then benchmarks of the packages
	@scripts/setup all
	CLAVIGER_HADOOP_JARS=$$(scripts/hadoop-jars) go test ./test/bench -run "Compare|RequestTime|Overload" -timeout 60m -v -args -compare -request-time \
	  -overload -write
	go test -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) -timeout 20m $$(scripts/packages-with '^func Benchmark')

$(GOLANGCI_LINT):
	mkdir -p .cache/bin/tmp
	GOBIN=$(CURDIR)/.cache/bin/tmp GOFLAGS= go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
	mv .cache/bin/tmp/golangci-lint $@

lint: $(GOLANGCI_LINT) ## golangci-lint, version pinned above
	@scripts/setup base
	$(GOLANGCI_LINT) run ./...

clean: ## remove what was built here; caches outside of the project stay
	rm -rf bin .cache
