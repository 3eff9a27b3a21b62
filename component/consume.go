package component

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// logsOf are the logs that a component's patterns can select from.
func logsOf(patterns []message.Pattern) []string {
	var names []string
	for _, ns := range message.Namespaces() {
		for _, p := range patterns {
			if p[0] == '*' || p[0] == '>' || message.Subject(p).Namespace() == ns {
				names = append(names, ns)
				break
			}
		}
	}
	return names
}

// consume feeds a worker from its logs and queues until ctx is done. A partition that cannot go on says why in its
// report and stands still; the others go on.
func consume(ctx context.Context, env Env, w *worker) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	run := func(f func() error) {
		group.Go(func() {
			if err := f(); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	for _, name := range logsOf(env.Spec.Hears) {
		run(func() error { return w.follow(ctx, name) })
	}
	for i, p := range env.Spec.Takes {
		run(func() error { return w.fetchQueue(ctx, fmt.Sprintf("%s-%d", env.Spec.Name, i), p) })
	}
	group.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// follow reads a log, one generation after the other.
func (w *worker) follow(ctx context.Context, name string) error {
	log, err := w.env.Bus.Log(ctx, name, bus.LogOptions{})
	if err != nil {
		return err
	}
	for done := uint32(0); ctx.Err() == nil; {
		info, err := log.Info(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		if at, c := w.stranger(name, info.ID); c != nil {
			w.stand(at, fmt.Sprintf("%s: the log is another one (%s) than the one that was read (%s)", message.LogTruncated, info.ID, c.Position.Log))
			w.env.Log.Error("the log is not the one that was read", "log", name, "reason", message.LogTruncated)
			<-ctx.Done()
			return nil
		}
		i := 0
		for i < len(info.Generations) && info.Generations[i].Number <= done {
			i++
		}
		if i == len(info.Generations) {
			if err := pause(ctx, w.retry.First); err != nil {
				return nil
			}
			continue
		}
		g := info.Generations[i]
		var group sync.WaitGroup
		errs := make([]error, len(g.Partitions))
		for n, p := range g.Partitions {
			group.Go(func() { errs[n] = w.read(ctx, log, g, p) })
		}
		group.Wait()
		if err := errors.Join(errs...); err != nil && ctx.Err() == nil {
			return err
		}
		done = g.Number
	}
	return nil
}

// stranger finds a checkpoint that belongs to another log of the same name.
func (w *worker) stranger(name string, id message.ID) (place, *Report) {
	for _, r := range w.snapshot() {
		if r.Log == name && r.Position.Sequence > 0 && r.Position.Log != id {
			return place{name, r.Position.Generation, r.Position.Partition}, &r
		}
	}
	return place{}, nil
}

// read reads one partition to its end; nil at the end of a sealed one, and when ctx is done.
func (w *worker) read(ctx context.Context, log bus.Log, g bus.Generation, p bus.Partition) error {
	at := place{log.Name(), g.Number, p.Number}
	from, known := w.position(at)
	if !known {
		from = bus.Position{Log: log.ID(), Generation: g.Number, Partition: p.Number}
		if w.env.Spec.From == Newest && !g.Sealed {
			from.Sequence = p.Last
		}
	}
	for {
		reader, err := log.Reader(ctx, from)
		switch {
		case errors.Is(err, bus.ErrTruncated):
			w.stand(at, fmt.Sprintf("%s: the log ends before batch %d, which was read", message.LogTruncated, from.Sequence))
			w.env.Log.Error("the log ends before what was read of it", "log", at.log, "sequence", from.Sequence, "reason", message.LogTruncated)
			<-ctx.Done()
			return nil
		case errors.Is(err, bus.ErrPurged):
			w.env.Log.Error("what comes next was trimmed; it counts as unreadable", "log", at.log, "sequence", from.Sequence, "reason", message.RetentionExceeded)
			if from.Sequence == 0 {
				return nil // the generation is gone
			}
			from.Sequence = 0
			continue
		case err != nil:
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		err = w.pump(ctx, at, reader)
		reader.Close()
		if errors.Is(err, bus.ErrSealed) || ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, bus.ErrPurged) || errors.Is(err, bus.ErrTruncated) {
			if from, known = w.position(at); known {
				continue
			}
		}
		return err
	}
}

func (w *worker) pump(ctx context.Context, at place, reader bus.Reader) error {
	for {
		s, err := reader.Next(ctx)
		if err != nil {
			return err
		}
		select {
		case w.events <- event{at: at, stored: s}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// fetchQueue takes from the queue of commands.
func (w *worker) fetchQueue(ctx context.Context, name string, p message.Pattern) error {
	q, err := w.env.Bus.Queue(ctx, commandQueue)
	if err != nil {
		return err
	}
	c, err := q.Consumer(ctx, bus.ConsumerOptions{Name: name, Pattern: p})
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		d, err := c.Next(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		select {
		case w.events <- event{delivery: d}:
		case <-ctx.Done():
			return nil
		}
	}
}
