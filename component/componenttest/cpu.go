package componenttest

import (
	"syscall"
	"testing"
	"time"
)

// CPU is how long the process has computed, on all processors: unlike the time that passed, it does not depend on who else does.
func CPU(tb testing.TB) time.Duration {
	tb.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
