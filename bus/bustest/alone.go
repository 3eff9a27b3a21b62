//go:build linux

package bustest

import (
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// alone is set in a process that has a network of its own.
const alone = "NARU_TEST_NETWORK"

// Alone gives the test a network of its own, in which there is the loopback only: for servers of others that listen at all
// addresses, and must not be reachable from anywhere. The test is run again in a process there, its outcome is taken over,
// and ok is false for the caller to return.
func Alone(t *testing.T) (ok bool) {
	t.Helper()
	if os.Getenv(alone) != "" {
		if err := loopback(); err != nil {
			t.Fatalf("bring up the loopback: %v", err)
		}
		return true
	}
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Getuid() != 0 {
		asRoot(attr)
	}
	again(t, alone, attr, "a network of its own, as root or with user namespaces")
	return false
}

// loopback brings up the loopback interface, which is down in a new network.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}
