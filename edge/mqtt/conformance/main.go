// Command conformance runs test suites that others wrote against a real
// tailrace-edge: the two of Eclipse paho.mqtt.testing and the wire cases of mosquitto.
// The suites come from checkouts that the caller names; nothing of them is part of
// this repository. `make conformance` runs it, ../CONFORMANCE.md explains what differs.
//
//	go run ./edge/mqtt/conformance -node bin/tailrace-edge -paho DIR -mosquitto DIR
//	go run ./edge/mqtt/conformance -address 127.0.0.1:1883 -mosquitto DIR   # another broker
//
// Exit status 0 when every bar is met.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"
)

func main() { os.Exit(run()) }

func run() int {
	node := flag.String("node", "bin/tailrace-edge", "the `binary` under test")
	address := flag.String("address", "", "test the broker at this `address` instead")
	paho := flag.String("paho", "", "checkout of eclipse/paho.mqtt.testing; empty skips its suites")
	mosquitto := flag.String("mosquitto", "", "checkout of eclipse/mosquitto; empty skips its wire cases")
	python := flag.String("python", "python3", "interpreter for the suites of paho.mqtt.testing")
	known := flag.String("known", "edge/mqtt/conformance/differences.txt", "`file` with the wire cases that differ on purpose; \"\" = none")
	flag.Parse()
	addr := *address
	refusing := ""
	if addr == "" {
		n, err := startNode(*node, "")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer n.stop()
		addr = n.mqtt
		if n, err = startNode(*node, `["deny * subscribe test/nosubscribe", "allow * all #"]`); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer n.stop()
		refusing = n.mqtt
	}
	ok := true
	if *mosquitto != "" {
		ok = runWire(*mosquitto, addr, *known) && ok
	}
	if *paho != "" {
		ok = runPaho(*python, *paho, "client_test.py", 10, addr, refusing) && ok
		ok = runPaho(*python, *paho, "client_test5.py", 27, addr, refusing) && ok
	}
	if !ok {
		return 1
	}
	return 0
}

// runWire prints every case that differs; it is a failure unless it is in known.
func runWire(dir, addr, known string) bool {
	cases, err := loadWire(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return false
	}
	expected, err := readKnown(known)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return false
	}
	began := time.Now()
	passed, unknown := 0, 0
	defer func() {
		for name := range expected {
			fmt.Printf("wire: listed, but agrees (or is not in this checkout): %s\n", name)
		}
	}()
	for i := range cases {
		c := &cases[i]
		err := c.run(addr)
		if err == nil {
			passed++
			continue
		}
		listed := expected[c.String()]
		delete(expected, c.String())
		mark := "as listed"
		if !listed {
			unknown++
			mark = "DIFFERS"
		}
		fmt.Printf("wire: %s: %s: %v\n", mark, c, err)
	}
	fmt.Printf("wire cases of mosquitto: %d of %d as mosquitto expects, %d differ and are not listed (%v)\n", passed, len(cases), unknown, time.Since(began).Round(time.Second))
	return unknown == 0
}
