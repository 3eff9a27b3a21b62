package main

import (
	"fmt"
	"io"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// progressEvery is between two lines of a command that nobody watches in a terminal: a log is read, not looked at.
const progressEvery = 5 * time.Second

// progress tells on standard error how far a command is: by a bar in a terminal, else by a line now and then. It is not for
// several goroutines at once.
type progress struct {
	out   io.Writer
	what  string // such as `imported`
	total int    // -1 where nobody knows
	bar   *progressbar.ProgressBar
	now   func() time.Time

	began, told time.Time
	done        int
}

func newProgress(c *cobra.Command, what string, total int) *progress {
	p := &progress{out: c.ErrOrStderr(), what: what, total: total, now: time.Now}
	if f, ok := p.out.(interface{ Fd() uintptr }); ok && term.IsTerminal(int(f.Fd())) {
		p.bar = progressbar.NewOptions64(int64(total), progressbar.OptionSetDescription(what), progressbar.OptionSetWriter(p.out),
			progressbar.OptionClearOnFinish(), progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionThrottle(100*time.Millisecond))
	}
	p.began = p.now()
	p.told = p.began
	return p
}

// add says that one more is done.
func (p *progress) add() {
	p.done++
	if p.bar != nil {
		_ = p.bar.Add(1) // a picture
		return
	}
	now := p.now()
	if now.Sub(p.told) < progressEvery {
		return
	}
	p.told = now
	rate := float64(p.done) / now.Sub(p.began).Seconds()
	if p.total < 0 {
		fmt.Fprintf(p.out, "%d %s, %.0f a second\n", p.done, p.what, rate)
		return
	}
	left := time.Duration(float64(p.total-p.done) / rate * float64(time.Second)).Round(time.Second)
	fmt.Fprintf(p.out, "%d of %d %s, %.0f a second, %s to go\n", p.done, p.total, p.what, rate, left)
}

// end takes the bar away; what came of it the command says itself.
func (p *progress) end() {
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}
