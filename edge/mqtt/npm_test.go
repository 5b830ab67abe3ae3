package mqtt_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// MQTT.js, which nobody here wrote: QoS 2 to itself with properties by MQTT 5 and 3.1.1,
// a retained message, and a session that is resumed with what came meanwhile.
func TestMQTTjs(t *testing.T) { runNode(t, "client.js", "mqtt") }

// What Sparkplug 3.0 asks of a server, with the payload codec of Eclipse Tahu: NDEATH as a will, STATE
// retained, BIRTHs kept under $sparkplug/certificates.
func TestSparkplugWithTahusCodec(t *testing.T) { runNode(t, "sparkplug.js", "sparkplug-payload") }

func runNode(t *testing.T, script, module string) {
	t.Helper()
	node := outside(t, "node")
	if _, err := os.Stat("testdata/npm/node_modules/" + module); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("run .ci/setup first: testdata/npm is not installed")
		}
		t.Skip("testdata/npm is not installed: .ci/setup does it")
	}
	b := newBackend()
	w := newWorld(t, b, inLog(b, 100))
	host, port, _ := net.SplitHostPort(w.addr)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, node, script, "mqtt://"+host+":"+port)
	cmd.Dir = "testdata/npm"
	out, err := cmd.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "ok" {
		t.Fatalf("%v\n%s", err, out)
	}
}
