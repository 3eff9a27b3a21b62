//go:build linux

package bustest

import (
	"errors"
	"os"
	"syscall"
	"testing"
	"time"
)

// inside is set in a process that may mount since it has a namespace of its own.
const inside = "NARU_TEST_NAMESPACE"

// SmallDisk gives a directory on a file system of its own, of a size such as 64m, until the test ends. Who is not root may
// not mount: there the test is run again in namespaces of its own, its outcome is taken over, and ok is false for the
// caller to return.
func SmallDisk(t *testing.T, size string) (dir string, ok bool) {
	t.Helper()
	dir = t.TempDir()
	err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size+",mode=0700")
	if err == nil {
		t.Cleanup(func() {
			// A process that was killed is told to have ended a moment before the kernel has closed all its files.
			err := syscall.Unmount(dir, 0)
			for until := time.Now().Add(10 * time.Second); errors.Is(err, syscall.EBUSY) && time.Now().Before(until); err = syscall.Unmount(dir, 0) {
				<-time.After(10 * time.Millisecond)
			}
			if err != nil {
				t.Errorf("unmount %s: %v", dir, err)
			}
		})
		return dir, true
	}
	if !errors.Is(err, syscall.EPERM) || os.Getenv(inside) != "" {
		t.Fatalf("mount a small file system at %s: %v", dir, err)
	}
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	asRoot(attr)
	again(t, inside, attr, "to mount a small file system, as root or with user namespaces")
	return "", false
}
