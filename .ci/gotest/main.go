// Command gotest runs "go test -json" with its arguments, prints what "go test" would,
// and fails when a test skipped itself that .ci/skips does not name: a test that quietly
// stops to run looks like one that passes.
//
//	go run ./.ci/gotest -count=1 ./...
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"strings"
)

// event is one line of go test -json (go doc test2json).
type event struct {
	Action, Package, Test, Output, ImportPath string
	Elapsed                                   float64
}

// allowed are the lines of .ci/skips: package, a pattern of the test (path.Match), reason.
type allowed struct{ pkg, test string }

func readAllowed(file string) (out []allowed, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for i, line := range strings.Split(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		if len(f) < 3 {
			return nil, fmt.Errorf("%s:%d: want: package test reason", file, i+1)
		}
		if _, err := path.Match(f[1], ""); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, i+1, err)
		}
		out = append(out, allowed{f[0], f[1]})
	}
	return out, nil
}

func main() {
	list, err := readAllowed(".ci/skips")
	if err != nil {
		fmt.Fprintln(os.Stderr, "gotest:", err)
		os.Exit(2)
	}
	cmd := exec.Command("go", append([]string{"test", "-json"}, os.Args[1:]...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gotest:", err)
		os.Exit(2)
	}
	skipped := watch(bufio.NewScanner(out), list)
	err = cmd.Wait()
	for _, s := range skipped {
		fmt.Println("SKIPPED, and not named in .ci/skips:", s)
	}
	if err != nil || len(skipped) > 0 {
		os.Exit(1)
	}
}

// watch prints results and returns the skips that are not allowed, with what they said.
func watch(sc *bufio.Scanner, list []allowed) (bad []string) {
	sc.Buffer(nil, 16<<20)
	said := map[string]*strings.Builder{} // by package and test, until it ends
	for sc.Scan() {
		var e event
		if json.Unmarshal(sc.Bytes(), &e) != nil { // not of test2json
			fmt.Println(sc.Text())
			continue
		}
		key := e.Package + " " + e.Test
		b := said[key]
		if b == nil {
			b = new(strings.Builder)
			said[key] = b
		}
		switch e.Action {
		case "build-output":
			fmt.Print(e.Output)
		case "output":
			if b.Len() < 1<<20 {
				b.WriteString(e.Output)
			}
		case "fail":
			fmt.Print(b.String())
			delete(said, key)
		case "skip":
			if e.Test != "" && !isAllowed(list, e) {
				bad = append(bad, key+": "+strings.TrimSpace(b.String()))
			}
			if e.Test == "" {
				fmt.Print(b.String()) // no test files
			}
			delete(said, key)
		case "pass":
			if e.Test == "" {
				fmt.Print(lastLine(b.String()))
			}
			delete(said, key)
		}
	}
	return bad
}

func lastLine(s string) string {
	s = strings.TrimRight(s, "\n")
	return s[strings.LastIndexByte(s, '\n')+1:] + "\n"
}

func isAllowed(list []allowed, e event) bool {
	for _, a := range list {
		if ok, _ := path.Match(a.test, e.Test); ok && a.pkg == e.Package {
			return true
		}
	}
	return false
}
