package broker

import (
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A client that is gone without a word, for a cable that was pulled, is found by its MQTT keep alive; one that has none is
// found by TCP's. The kernel asks a silent peer, and the connection ends where nothing answers, be it those questions or
// what it was sent.

// probes is how often a silent peer is asked before its connection ends.
const probes = 4

// tcpTimeout reads for how long a peer may not answer.
func tcpTimeout(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 2*time.Second || d > 24*time.Hour {
		return 0, fmt.Errorf("tcp_timeout %q: want a duration of 2s to 24h, such as 3m", s)
	}
	return d, nil
}

// listenConfig makes listeners whose connections inherit the time-out: half of it passes before the first question.
func listenConfig(d time.Duration) *net.ListenConfig {
	second := func(d time.Duration) time.Duration { return max(d.Truncate(time.Second), time.Second) }
	return &net.ListenConfig{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: second(d / 2), Interval: second(d / 2 / probes), Count: probes},
		Control: func(_, _ string, raw syscall.RawConn) (err error) {
			cerr := raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d/time.Millisecond))
			})
			if cerr != nil {
				return cerr
			}
			return err
		},
	}
}
