// Package porttest finds addresses for tests whose servers must be told theirs before they listen.
package porttest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
)

// Free is a loopback address that nobody listens at. Its port is none that systems give to connections that are made: until a
// server listens there, again after a kill too, one of these may have it.
func Free() (string, error) {
	for range 100 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 12_000+rand.IntN(18_000)))
		if err == nil {
			return l.Addr().String(), l.Close()
		}
	}
	return "", errors.New("of a hundred ports none is free")
}

// Addr is [Free] for a test.
func Addr(t testing.TB) string {
	t.Helper()
	addr, err := Free()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}
