package main

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWrongTokenIsNotAMissingOne(t *testing.T) {
	wants := map[string]http.HandlerFunc{"GET /api/v1/status": says(http.StatusUnauthorized, map[string]string{"detail": "a token is wanted"})}
	_, _, err := asked(t, wants, "status")
	if err == nil || !strings.Contains(err.Error(), "does not take this token") {
		t.Errorf("a wrong one: %v", err)
	}
	t.Setenv("NARU_TOKEN", "")
	_, _, err = asked(t, wants, "status", "--token", "")
	if err == nil || !strings.Contains(err.Error(), "wants a token: --token or NARU_TOKEN") {
		t.Errorf("none: %v", err)
	}
}

func TestTLSWhereThereIsNoneIsNamed(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	_, _, err := asked(t, nil, "status", "--server", strings.Replace(server.URL, "http:", "https:", 1))
	if err == nil || !strings.Contains(err.Error(), "speaks no TLS: name it by http://") {
		t.Error(err)
	}
}

// An import into a platform that is gone says so once, not once a line.
func TestImportEndsWhereThePlatformIsGone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "fleet.csv")
	if err := os.WriteFile(file, []byte("id\n"+strings.Repeat("d\n", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	gone := httptest.NewServer(nil)
	gone.Close()
	_, hints, err := asked(t, nil, "device", "import", file, "--server", gone.URL)
	if err == nil || strings.Count(err.Error(), "connection refused") != 1 {
		t.Errorf("it ends with %v", err)
	}
	if strings.Contains(hints, "connection refused") {
		t.Errorf("and says before: %s", hints)
	}
}

func TestSimulatedDevicesDoNotTakeTheNamesOfOthers(t *testing.T) {
	there := map[string]http.HandlerFunc{"GET /api/v1/broker/connections": func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("device") == "sim-0" {
			says(http.StatusOK, []map[string]string{{"client_id": "sim-0"}})(w, r)
			return
		}
		says(http.StatusOK, []string{})(w, r)
	}}
	if _, _, err := asked(t, there, "sim"); err == nil || !strings.Contains(err.Error(), "another --prefix") {
		t.Errorf("of the same name: %v", err)
	}
	if _, _, err := asked(t, there, "sim", "--prefix", "lab-"); err == nil || strings.Contains(err.Error(), "--prefix") {
		t.Errorf("of another name, with no broker: %v", err)
	}
}

// Who waits for a command in a script goes on when it is done, and not when the time was over.
func TestCommandThatHasNotEndedIsAFault(t *testing.T) {
	queued := says(http.StatusOK, map[string]any{"device": "d-1", "name": "ping", "id": "c1", "state": "queued"})
	ways := map[string]http.HandlerFunc{"POST /api/v1/commands": queued, "GET /api/v1/commands/d-1/c1": queued}
	if _, _, err := asked(t, ways, "command", "send", "d-1", "ping"); err != nil {
		t.Errorf("said, and not waited for: %v", err)
	}
	_, hints, err := asked(t, ways, "command", "send", "d-1", "ping", "--wait", "1ms")
	if !errors.Is(err, errFault) || !strings.Contains(hints, "naru command show d-1 c1") {
		t.Errorf("waited for in vain: %v, %s", err, hints)
	}
}
