# Firebreak. `make` builds bin/firebreak, one file to copy to a server.
#
#   make          build bin/firebreak (guest agent and runsc embedded)
#   make demo     build, then run the main job for real
#   make test     everything CI runs
#   make vm       version 2 cgroups, root's and a user's, in an emulated machine (QEMU and a kernel needed)
#   make test-kvm  everything of machines, where KVM works, QEMU's and Firecracker's; what does not run fails
#   make bench-kvm  machines beside Firecracker alone, where there are both
#   make soak     hundreds of cycles, ten minutes of mixed load with random kills
#   make chaos    the crash matrix in full; its table goes to docs/guides
#   make bench    floor, peer and ours, interleaved; results in bench/results
#   make lint     formatting, vet, the darwin build
#   make generate regenerate api/gen and api/openapi.json from api/proto

export GOFLAGS := -trimpath
SHELL     := /bin/bash
GO        := go
VERSION   := $(shell cat VERSION)
REVISION  := $(shell git rev-parse --short=12 HEAD 2>/dev/null)
# The sentry is large, so everything static is built with one set of flags: vet
# and build then share one cache.
BUILD     := CGO_ENABLED=0 $(GO) build
LDFLAGS   := -s -w
LDVERSION := -X main.version=$(VERSION) -X main.revision=$(REVISION)

ASSETS := internal/bundle/assets
# Everything but the sentry, which nothing else compiles.
PACKAGES = $$($(GO) list ./... | grep -v -e /cmd/firebreak-runsc -e /bench/runsc)

.DEFAULT_GOAL := build
.PHONY: build demo test test-short chaos soak vm test-kvm bench bench-kvm lint generate clean FORCE

build: bin/firebreak

# go build decides by itself what is stale, so these always ask it.
bin/firebreak: $(ASSETS)/runsc.zst $(ASSETS)/firebreak-guest.gz FORCE
	@$(BUILD) -ldflags "$(LDFLAGS) $(LDVERSION)" -o $@ ./cmd/firebreak
	@echo "built $@ ($$(du -h $@ | cut -f1))"

bin/runsc: FORCE
	@mkdir -p bin
	@scripts/with-progress "compiling gVisor (first time: a few minutes)" \
	  env CGO_ENABLED=0 $(GO) build -v -ldflags "$(LDFLAGS) -X gvisor.dev/gvisor/runsc/version.version=$(GVISOR)" -o $@ ./cmd/firebreak-runsc
GVISOR := $(shell sed -n 's/^.*gvisor.dev\/gvisor //p' go.mod | cut -d' ' -f1)

bin/firebreak-guest: FORCE
	@mkdir -p bin
	@$(BUILD) -ldflags "$(LDFLAGS)" -o $@ ./cmd/firebreak-guest

# Deterministic: no name, no time. Rewritten only when the content changed, so
# that an unchanged embed does not relink.
$(ASSETS)/%.zst: bin/%
	@mkdir -p $(ASSETS)
	@rm -f $(@:.zst=.gz)
	@$(GO) run ./internal/bundle/pack $< $@

$(ASSETS)/%.gz: bin/%
	@mkdir -p $(ASSETS)
	@if [ ! -e $@ ] || [ "$$(gzip -dc $@ | sha256sum)" != "$$(sha256sum < $<)" ]; then t=$$(mktemp bin/gz.XXXXXX) && gzip -n -9 -c $< > $$t && mv $$t $@; fi

demo: build
	@bin/firebreak demo

test: build lint
	@$(GO) run ./test/runner -allow CONTRIBUTING.md

test-short: build
	@$(GO) run ./test/runner -allow CONTRIBUTING.md -short

# On a machine with KVM, QEMU, firecracker and jailer, as root, with
# FIREBREAK_MACHINE_KERNEL naming an uncompressed kernel: everything of machines. A test
# that is skipped fails here.
test-kvm: build
	@$(GO) run ./test/runner -fuzztime 0 ./internal/backend/microvm ./internal/firecracker ./internal/guest/machine ./internal/snapimage ./internal/vmimage ./bench
	@$(GO) test ./test/e2e -run TestMicroVM -count=1 -v -timeout 30m | tee /dev/stderr | { ! grep -q '^ *--- SKIP\|^FAIL\|^--- FAIL'; }

# Ours beside Firecracker alone, interleaved. Fails, and says why, where that cannot be.
bench-kvm: build
	@$(GO) run ./bench/kvm

vm: build
	@FIREBREAK_QEMU=1 $(GO) test ./test/vm -count=1 -v -timeout 45m

soak: build
	@FIREBREAK_SOAK=1 $(GO) test ./test/chaos -run 'TestCycles|TestMixedLoad|TestNetworkSoak|TestStopped' -count=1 -v -timeout 60m

chaos: build
	@FIREBREAK_CHAOS=full FIREBREAK_CHAOS_REPORT=$(CURDIR)/docs/guides/crash-matrix.md \
	  $(GO) test ./test/chaos -run 'TestCrashMatrix|TestNeighbours|TestLocalRunKilled' -count=1 -v -timeout 3h | grep -v '^=== '

bench: build
	@$(GO) run ./bench/cmd

lint:
	@out=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); [ -z "$$out" ] || { echo "not gofmt-ed:"; echo "$$out"; exit 1; }
	@CGO_ENABLED=0 $(GO) vet $(PACKAGES)
	@GOOS=darwin CGO_ENABLED=0 $(GO) build -o /dev/null ./cmd/firebreak

# The drift tests of api and internal/server fail when this was forgotten.
generate:
	@$(GO) -C tools tool protogen -api $(CURDIR)/api -out $(CURDIR)/api
	@$(GO) -C tools tool protogen -api $(CURDIR)/internal/e2b -out $(CURDIR)/internal/e2b -descriptors=false
	@$(GO) test ./internal/server -run TestOpenAPI -count=1 -update

clean:
	rm -rf bin $(ASSETS)/*.gz $(ASSETS)/*.zst
