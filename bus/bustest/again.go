//go:build linux

package bustest

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// asRoot gives a process a user namespace in which this user is root.
func asRoot(attr *syscall.SysProcAttr) {
	attr.Cloneflags |= syscall.CLONE_NEWUSER
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
}

// again runs the test once more in a process with namespaces of its own, which knows by the variable that it is there, and
// takes its outcome over. wants is what the test wants, for who reads that it cannot have it.
func again(t *testing.T, variable string, attr *syscall.SysProcAttr, wants string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"-test.run", "^" + regexp.QuoteMeta(t.Name()) + "$", "-test.count=1", "-test.v"}
	for _, a := range os.Args[1:] {
		if strings.HasPrefix(a, "-test.timeout") {
			args = append(args, a)
		}
	}
	c := exec.CommandContext(t.Context(), self, args...)
	c.Env = append(os.Environ(), variable+"=1")
	c.SysProcAttr = attr
	c.SysProcAttr.Pdeathsig = syscall.SIGKILL
	out, err := c.CombinedOutput()
	t.Logf("in namespaces of its own:\n%s", out)
	if err != nil {
		t.Fatalf("this test wants %s (sysctl kernel.unprivileged_userns_clone=1): %v", wants, err)
	}
}
