# Everything a developer, CI or a stranger runs. `make help` lists it.
SHELL := /bin/bash
GO ?= go
BIN := bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
BUILD := CGO_ENABLED=0 $(GO) build -trimpath -ldflags='$(LDFLAGS)'
COMMANDS := tailrace tailrace-edge tailrace-hub firmware-sim
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0
HOT := ./storage/... ./edge/mqtt/... ./uplink ./uplink/wire ./uplink/link ./uplink/hub/...
FUZZTIME ?= 60s
KILLS ?= 1000
HISTORIES ?= 5000
DAYS ?= 100
CHAOS ?= 10m

.PHONY: help run build test quick race check lint cross setup kafka-up kafka-down kafka-chaos fuzz sim crash planted dup conformance ecosystem bench link-bench soak bars clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 16

run: build ## build and start the demo: a hub, two nodes and a wind farm; Ctrl-C ends it
	@$(BIN)/tailrace demo

build: ## build the four commands into bin/
	@mkdir -p $(BIN)
	@for c in $(COMMANDS); do $(BUILD) -o $(BIN)/$$c ./cmd/$$c || exit 1; done

test: setup build ## run every test (installs the peers it needs on Debian or Ubuntu as root)
	@.ci/test

quick: ## the minute-long subset: unit tests with -short
	$(GO) test -short ./...

race: ## race detector on the hot packages
	$(GO) test -race -short $(HOT)

check: lint cross ## format, vet, staticcheck, import rules, known vulnerabilities, cross-builds

lint:
	@fmt=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$fmt" ]; then echo "not gofmt'ed: $$fmt"; exit 1; fi
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	$(GO) test -count=1 ./cmd
	@.ci/vulncheck $(GOVULNCHECK)

cross: ## static binaries for all platforms, thrown away
	@.ci/cross

setup: ## install the outside programs that the tests talk to
	@.ci/setup
	@.ci/kafka-clients

kafka-up: ## an Apache Kafka cluster on loopback: three brokers, free ports, data in a temporary directory
	@.ci/kafka-clients
	@$(GO) run ./.ci/kafka up

kafka-down: ## ends it and removes its data
	@$(GO) run ./.ci/kafka down

kafka-chaos: ## CHAOS (10m) of brokers and hubs killed, stopped, added and removed under 50 nodes, 80 ms from hubs to brokers; then 5,000 nodes on one hub
	@.ci/kafka-clients
	$(GO) test -count=1 -v -timeout 0 ./uplink/hub/relay -run 'TestChaos' -chaos.for $(CHAOS) -chaos.nodes 50
	$(GO) test -count=1 -v -timeout 0 ./uplink/hub/relay -run 'TestManyNodes' -relay.nodes 5000

fuzz: ## every fuzz target for FUZZTIME (60s)
	@.ci/fuzz $(FUZZTIME)

sim: ## HISTORIES (5000) seeded histories of the whole system in simulated time
	$(GO) test -count=1 -timeout 0 ./firmware-sim/scenario/ -run 'TestHistories' -histories $(HISTORIES)

crash: build ## the long forms of power cuts, failing calls, damage, mounted images, planted bugs and KILLS (1000) SIGKILLs
	@GO=$(GO) KILLS=$(KILLS) .ci/crash

planted: ## plant known bugs (the twelve of the promise, and some beside them), one at a time: each must be found by the test named for it
	@.ci/crash planted

dup: ## kill -9 between fsync and PUBACK KILLS (200) times: what the device sends again is stored once
	TAILRACE_KILLS=$(if $(filter file,$(origin KILLS)),200,$(KILLS)) $(GO) test -count=1 -v -timeout 0 ./cmd/tailrace-edge -run TestWhatWasDurableBeforeTheKillIsStoredOnce

conformance: build ## the MQTT suites of Eclipse and mosquitto's wire cases (PAHO_MQTT_TESTING=dir MOSQUITTO=dir, else fetched)
	@.ci/conformance

ecosystem: setup ## Kafka Connect, Streams, the Debezium sink into PostgreSQL and MirrorMaker 2 on the hub (CI runs one of the last three a commit)
	TAILRACE_ECOSYSTEM=all $(GO) test -count=1 -timeout 30m -v ./uplink/hub/kafka -run 'TestConnectStandalone|TestStreamsApplication|TestDebeziumSink|TestMirrorMaker'

bench: ## Go benchmarks beside the code, with their physical floors
	$(GO) test -run '^$$' -bench . -benchmem ./storage/... ./edge/mqtt/... ./uplink/... ./devices/...

link-bench: ## goodput, live latency, first record, wire bytes, in virtual time; the loopback ceiling; as root, over TUN between namespaces
	$(GO) run ./cmd/bars -report -only link-simulated
	$(GO) run ./cmd/bars -report -only wire-bytes
	$(GO) test -run '^$$' -bench . -benchmem ./uplink/link ./uplink/wire/...
	[ "$$(id -u)" != 0 ] || $(GO) test -count=1 -timeout 0 -run TestDrainsBetweenNamespaces ./uplink/link -netns

soak: ## DAYS (100) seeded days of the link, and HISTORIES (5000) short ones: cuts, loss, no UDP, restarts, failing stores
	$(GO) test -count=1 -timeout 0 -v ./uplink/link -run 'TestLongHistories' -soak.hours 24 -soak.count $(DAYS)
	$(GO) test -count=1 -timeout 0 ./uplink/link -run 'TestRandomHistories' -chaos.count $(HISTORIES)

bars: setup build ## measure every bar with a figure: bar, target, measured, command; fails if one falls short
	@$(GO) run ./cmd/bars

clean: ## remove what the build made
	rm -rf $(BIN) dist
