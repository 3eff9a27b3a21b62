package main

import (
	"strings"
	"testing"
)

// Brokers are one among several where another process may be on their bus, unless somebody says otherwise.
func TestBrokersThatShareABusAreToldSo(t *testing.T) {
	for text, want := range map[string]string{
		"http: 127.0.0.1:1\n":                                          "",
		"bus: {listen: '127.0.0.1:1'}\n":                               "on",
		"bus: {url: 'nats://127.0.0.1:1'}\n":                           "on",
		"bus: {listen: x}\nservice_platform.broker: {cluster: auto}\n": "on",
		"bus: {listen: x}\nservice_platform.broker: {cluster: off}\n":  "off",
		"service_platform.broker: {cluster: on}\n":                     "on",
	} {
		c, err := load(t, text)
		if err == nil {
			err = c.cluster()
		}
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got := string(c.Components[brokerName]); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%q: the broker is configured with %s; want cluster %q", text, got, want)
		}
	}
}
