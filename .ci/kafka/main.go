// Command kafka starts and ends the Apache Kafka cluster of make kafka-up: three brokers
// on loopback, on free ports, with their data in a new directory.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"tailrace/uplink/hub/relay/kafkatest"
)

// state is what down needs to know, in a file of its own.
type state struct {
	Dir     string   `json:"dir"`
	Brokers []string `json:"brokers"`
	PIDs    []int    `json:"pids"`
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: kafka up|down")
		os.Exit(2)
	}
	var err error
	switch os.Args[1] {
	case "up":
		err = up()
	case "down":
		err = down()
	default:
		err = fmt.Errorf("%q: use up or down", os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kafka:", err)
		os.Exit(1)
	}
}

func stateFile() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("tailrace-kafka-%d.json", os.Getuid()))
}

func up() error {
	if _, err := os.Stat(stateFile()); err == nil {
		return fmt.Errorf("%s exists: a cluster is up, make kafka-down ends it", stateFile())
	}
	dir, err := os.MkdirTemp("", "tailrace-kafka-")
	if err != nil {
		return err
	}
	began := time.Now()
	c, err := kafkatest.Start(context.Background(), kafkatest.Options{Dir: dir, Detach: true, Fast: true})
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	s := state{Dir: dir, Brokers: c.Addrs}
	for i := range c.Addrs {
		s.PIDs = append(s.PIDs, c.PID(i))
	}
	b, err := json.Marshal(s)
	if err == nil {
		err = os.WriteFile(stateFile(), b, 0o600)
	}
	if err != nil {
		c.Close()
		return errors.Join(err, os.RemoveAll(dir))
	}
	fmt.Printf("three brokers after %.0f s, data and logs in %s\nbrokers: [%s]\n", time.Since(began).Seconds(), dir, strings.Join(c.Addrs, ", "))
	return nil
}

func down() error {
	b, err := os.ReadFile(stateFile())
	if errors.Is(err, fs.ErrNotExist) {
		fmt.Println("no cluster is up")
		return nil
	}
	var s state
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return err
	}
	for _, pid := range s.PIDs {
		// The number may belong to somebody else by now.
		if cmd, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err != nil || s.Dir == "" || !strings.Contains(string(cmd), s.Dir) {
			continue
		}
		syscall.Kill(pid, syscall.SIGKILL)
	}
	if strings.HasPrefix(filepath.Base(s.Dir), "tailrace-kafka-") {
		os.RemoveAll(s.Dir)
	}
	fmt.Println("the cluster and its data are gone")
	return os.Remove(stateFile())
}
