package main

import (
	"context"
	"math"
	"time"

	"github.com/spf13/cobra"

	"github.com/naru-platform/naru/operator/topic"
)

// rate is one window of `topic hz` or `topic bw`.
type rate struct {
	Messages  int     `json:"messages"`
	PerSecond float64 `json:"messages_per_second"`
	Bytes     int     `json:"bytes"`
	BytesPerS float64 `json:"bytes_per_second"`
	MeanGap   float64 `json:"gap_mean_seconds"`
	LeastGap  float64 `json:"gap_min_seconds"`
	MostGap   float64 `json:"gap_max_seconds"`
	Deviation float64 `json:"gap_stddev_seconds"`
	LeastSize int     `json:"size_min"`
	MostSize  int     `json:"size_max"`
	Missed    int64   `json:"missed,omitempty"`
}

// measure prints a rate per window. The gaps are those between the times at which the platform recorded the messages.
func measure(c *cobra.Command, o *options, cl *client, subject, kind string, window time.Duration, rounds int) error {
	ctx, cancel := context.WithCancel(c.Context())
	defer cancel()
	heard := make(chan topic.Heard, 4096)
	missed := make(chan int64, 16)
	done := make(chan error, 1)
	go func() {
		done <- echo(ctx, cl, subject, true, func(_ []byte, h topic.Heard, n int64) bool {
			if n > 0 {
				select {
				case missed <- n:
				default:
				}
				return true
			}
			select {
			case heard <- h:
			case <-ctx.Done():
			}
			return ctx.Err() == nil
		})
	}()
	tick := time.NewTicker(window)
	defer tick.Stop()
	var r rate
	var last time.Time
	var gaps []float64
	for round := 0; ; {
		select {
		case err := <-done:
			return err
		case n := <-missed:
			r.Missed += n
		case h := <-heard:
			r.Messages++
			r.Bytes += h.Size
			if r.Messages == 1 || h.Size < r.LeastSize {
				r.LeastSize = h.Size
			}
			r.MostSize = max(r.MostSize, h.Size)
			if !last.IsZero() {
				gaps = append(gaps, math.Abs(h.Recorded.Sub(last).Seconds()))
			}
			last = h.Recorded
		case <-tick.C:
			r.finish(gaps, window)
			if err := o.show(c.OutOrStdout(), r, func(p *printer) {
				if kind == "hz" {
					p.line("%.2f msg/s over %s  gap mean %.4fs min %.4fs max %.4fs stddev %.4fs  (%d messages)",
						r.PerSecond, short(window), r.MeanGap, r.LeastGap, r.MostGap, r.Deviation, r.Messages)
				} else {
					p.line("%s/s over %s  size min %d max %d bytes  (%d messages)", size(uint64(r.BytesPerS)), short(window), r.LeastSize, r.MostSize, r.Messages)
				}
				if r.Missed > 0 {
					p.line("(%d more came faster than they could be counted)", r.Missed)
				}
			}); err != nil {
				return err
			}
			if round++; round == rounds {
				return nil
			}
			r, gaps = rate{}, gaps[:0]
		}
	}
}

func (r *rate) finish(gaps []float64, window time.Duration) {
	r.PerSecond = float64(r.Messages) / window.Seconds()
	r.BytesPerS = float64(r.Bytes) / window.Seconds()
	if len(gaps) == 0 {
		return
	}
	r.LeastGap = gaps[0]
	for _, g := range gaps {
		r.MeanGap += g / float64(len(gaps))
		r.LeastGap, r.MostGap = min(r.LeastGap, g), max(r.MostGap, g)
	}
	for _, g := range gaps {
		r.Deviation += (g - r.MeanGap) * (g - r.MeanGap) / float64(len(gaps))
	}
	r.Deviation = math.Sqrt(r.Deviation)
}
