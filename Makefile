# naru: the two commands a newcomer needs are `make run` and `make test`.
.DEFAULT_GOAL := help
SHELL := /bin/bash
TOOL := go tool -modfile=tools/go.mod
# Two clones that build with -trimpath share what cgo made in the cache, and vet then looks for sources in the other one.
export GOFLAGS := $(filter-out -trimpath -trimpath=true,$(shell go env GOFLAGS))
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
.PHONY: help run build test race long fuzz bench lint clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-7s %s\n", $$1, $$2}' Makefile

run: build ## start everything, with 20 simulated devices, in ./naru-data
	./bin/naru up --data ./naru-data --sim 20

build: # build bin/naru
	go build -ldflags "-X github.com/naru-platform/naru/internal/built.version=$(VERSION)" -o bin/naru ./cmd/naru

test: ## everything that must pass: lint, the suites under the race detector, the long suites
	@tools/needs.sh
	@$(MAKE) --no-print-directory lint race long

race: ## the suites under the race detector
	go test -race -timeout 20m $$(go list ./... | grep -v /test/)

long: ## SIGKILL, clusters, full disks, clients of others: the suites behind the build tags `long` and `foreign`
	@tools/needs.sh
	go test -race -tags long -count=1 -timeout 35m ./bus/nats
	go test -tags "long foreign" -count=1 -timeout 35m -p 1 ./bus/kinesis ./service_platform/twin ./test/... # the cache does not see that the binary has changed
	go test -race -tags long -count=1 -timeout 15m -run 'NothingAcknowledged|Alone' ./test/e2e # of the binary too

fuzz: ## each fuzz target for 20 s (FUZZTIME=1m for longer)
	@set -e; grep -rl '^func Fuzz' --include=*_test.go . | while read -r f; do \
	  for t in $$(grep -ho '^func Fuzz[A-Za-z0-9]*' $$f | cut -c6-); do \
	    echo "$$(dirname $$f) $$t"; go test $$(dirname $$f) -run '^$$' -fuzz "^$$t$$" -fuzzminimizetime 1x -fuzztime $${FUZZTIME:-20s}; done; done

bench: build ## the budgets of docs/benchmarks.md
	./bin/naru bench ingest
	./bin/naru bench mqtt --rounds 1
	go test -run '^$$' -bench . -benchmem ./message ./bus/... ./service_platform/... ./operator/... ./test/e2e

lint: ## gofmt, vet, staticcheck, known vulnerabilities
	@out=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "gofmt would change:"; echo "$$out"; exit 1; fi
	go vet ./... && go vet -tags "long foreign" ./...
	$(TOOL) staticcheck -tags long,foreign ./...
	@./tools/vulncheck.sh

clean: ## remove what was built; naru-data stays
	rm -rf bin
