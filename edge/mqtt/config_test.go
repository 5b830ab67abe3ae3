package mqtt_test

import (
	"strings"
	"testing"
	"time"

	"tailrace/edge/mqtt"
)

func TestConfigReportsAllProblemsAtOnce(t *testing.T) {
	_, err := mqtt.NewServer(mqtt.Config{Limits: mqtt.Limits{ReceiveMaximum: 70000, Window: 3, Bursts: -1, WriteTimeout: -1, MaxSessionExpiry: 200 * 365 * 24 * time.Hour}})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"Backend", "State", "ReceiveMaximum 70000", "Window 3", "Bursts", "WriteTimeout", "MaxSessionExpiry"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no word of %s in: %v", want, err)
		}
	}
}
