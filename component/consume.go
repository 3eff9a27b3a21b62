package component

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/operator"
)

// Logs are the logs that what a component hears is read from.
func (s *Spec) Logs() []string {
	var names []string
	for _, ns := range message.Namespaces() {
		for _, p := range s.Hears {
			if p[0] == '*' || p[0] == '>' || message.Subject(p).Namespace() == ns {
				if copied := s.Instead[ns]; copied != "" {
					ns = copied
				}
				names = append(names, ns)
				break
			}
		}
	}
	return append(names, s.Also...)
}

// consume feeds a worker from its logs and queues until ctx is done. A partition that cannot go on says why in its
// report and stands still; the others go on.
func consume(ctx context.Context, env Env, w *worker) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	run := func(f func() error) {
		group.Go(func() {
			if err := caught(f); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	for _, name := range env.Spec.Logs() {
		run(func() error { return w.follow(ctx, name) })
	}
	if env.Spec.takesBack() && (w.part.Handle != nil || w.part.HandleAll != nil || w.part.Call != nil) {
		run(func() error {
			return w.fetchQueue(ctx, env.Spec.Name+"-retry", message.Pattern(operator.RetrySubject(env.Spec.Name)))
		})
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
	done, err := w.begin(ctx, log)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	for ctx.Err() == nil {
		info, err := log.Info(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		if at, c := w.stranger(name, info.ID); c != nil {
			w.truncated(ctx, at, fmt.Sprintf("the log %s is another one (%s) than the one that was read (%s)", name, info.ID, c.Position.Log))
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
			group.Go(func() { errs[n] = caught(func() error { return w.read(ctx, log, g, p) }) })
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
	}
	for {
		reader, err := log.Reader(ctx, from)
		switch {
		case errors.Is(err, bus.ErrTruncated):
			w.truncated(ctx, at, fmt.Sprintf("the log %s ends before batch %d of generation %d, partition %d, which was read", at.log, from.Sequence, at.gen, at.part))
			return nil
		case errors.Is(err, bus.ErrPurged):
			if from.Sequence == 0 {
				return nil // the generation is gone
			}
			if !w.tell(ctx, w.trimmedAway(at, from.Sequence)) {
				return nil
			}
			from.Sequence = 0
			continue
		case err != nil:
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		read, err := w.pump(ctx, at, reader, from.Sequence)
		reader.Close()
		switch {
		case errors.Is(err, bus.ErrSealed):
			w.tell(ctx, event{at: at, finished: true})
			return nil
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, bus.ErrPurged) && read > 0: // while it was being read
			if !w.tell(ctx, w.trimmedAway(at, read)) {
				return nil
			}
			from.Sequence = 0
		case errors.Is(err, bus.ErrTruncated) && read > 0:
			from.Sequence = read
		default:
			return err
		}
	}
}

// pump hands batches to the worker, and says how far it came.
func (w *worker) pump(ctx context.Context, at place, reader bus.Reader, read uint64) (uint64, error) {
	for {
		s, err := reader.Next(ctx)
		if err != nil {
			return read, err
		}
		if !w.tell(ctx, event{at: at, stored: s}) {
			return read, ctx.Err()
		}
		read = s.Position.Sequence
	}
}

// tell hands an event to the worker once its partition may go on, unless ctx ends first.
func (w *worker) tell(ctx context.Context, e event) bool {
	if !w.free(ctx, e.at) {
		return false
	}
	select {
	case w.events <- e:
		return true
	case <-ctx.Done():
		return false
	}
}

// begin says which generations are behind a consumer before it reads. One that never read the log and begins with the
// newest has its place there noted, so that what comes while it is away is not left out. What disappeared before it was
// read to its end is told of.
func (w *worker) begin(ctx context.Context, log bus.Log) (done uint32, err error) {
	info, err := log.Info(ctx)
	if err != nil || len(info.Generations) == 0 {
		return 0, err
	}
	known := false
	for _, r := range w.snapshot() {
		if r.Log != log.Name() || r.Position.Log.IsZero() {
			continue
		}
		known = true
		if r.Position.Log == info.ID && !r.Finished && r.Position.Generation < info.Generations[0].Number {
			at := place{r.Log, r.Position.Generation, r.Position.Partition}
			w.tell(ctx, event{at: at, finished: true, alarm: message.RetentionExceeded, detail: fmt.Sprintf(
				"%s: generation %d of log %s was trimmed before partition %d was read to its end; it was read up to batch %d",
				w.env.Spec.Name, at.gen, at.log, at.part, r.Position.Sequence)})
		}
	}
	if known || w.env.Spec.From != Newest {
		return 0, nil
	}
	g, places, err := w.lastKnown(ctx, info, log.Name())
	if err != nil {
		return 0, err
	}
	if places == nil {
		g = info.Generations[len(info.Generations)-1]
	}
	e := event{at: place{log: log.Name()}, noted: make(chan struct{})}
	for _, p := range g.Partitions {
		at, known := places[p.Number] // it goes on where it was elsewhere
		if places == nil {
			at = p.Last
		} else if !known { // with all there is
			at = max(p.First, 1) - 1
		}
		e.began = append(e.began, bus.Position{Log: info.ID, Generation: g.Number, Partition: p.Number, Sequence: at})
	}
	if !w.tell(ctx, e) {
		return 0, ctx.Err()
	}
	select {
	case <-e.noted:
		return g.Number - 1, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// truncated makes a partition stand still, since its log is not the one that was read.
func (w *worker) truncated(ctx context.Context, at place, what string) {
	w.stand(at, message.LogTruncated.String()+": "+what)
	w.tell(ctx, event{at: at, alarm: message.LogTruncated, detail: w.env.Spec.Name + " stands still: " + what})
	<-ctx.Done()
}

// trimmedAway says that what comes behind a batch was trimmed before it was read.
func (w *worker) trimmedAway(at place, read uint64) event {
	return event{at: at, trimmed: true, alarm: message.RetentionExceeded, detail: fmt.Sprintf(
		"%s: what comes behind batch %d of log %s, generation %d, partition %d was trimmed before it was read; it is dead, and counted as soon as its appenders' next batches are read",
		w.env.Spec.Name, read, at.log, at.gen, at.part)}
}

// fetchQueue takes from the queue of commands.
func (w *worker) fetchQueue(ctx context.Context, name string, p message.Pattern) error {
	q, err := w.env.Bus.Queue(ctx, CommandQueue)
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
		case w.deliveries <- d:
		case <-ctx.Done():
			return nil
		}
	}
}
