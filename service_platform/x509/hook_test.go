package x509

import (
	"net"
	"net/http"
	"strings"
	"testing"
)

// TestNobodyIsToldWhereTheHookIs since its URL may hold a secret, and claim certificates are in many hands.
func TestNobodyIsToldWhereTheHookIs(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().String()
	_ = l.Close() // nobody answers there
	err = askHook(t.Context(), "http://"+at+"/approve?code=s3cret", hookRequest{Device: "d"})
	if err == nil || strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), "refused") {
		t.Errorf("operators are told %v", err)
	}
	said := string(rejected("t", awsRefuse("hook", http.StatusForbidden, notApproved, "%w", err)).Payload)
	if strings.Contains(said, at) || !strings.Contains(said, notApproved) || !strings.Contains(said, "not approved") {
		t.Errorf("the device is told %s", said)
	}
}
