// Package ledger proves, all the time, that no message is without a fate.
//
// It holds two accounts against each other that are kept by different hands. What was accepted is what the appenders
// wrote into the headers of their batches: a running count, and a running sum of id hashes. What became of it is what
// each consumer committed together with its position: per outcome, the count and sum of the ids its handlers really
// finished, and of those that wait. Arithmetic on positions would always come out even; this does not, when a single
// message is skipped, repeated or swapped for another.
package ledger

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/operator"
)

// Config is the ledger's configuration.
type Config struct {
	// EverySeconds is how often the accounts are compared.
	EverySeconds int `json:"every_seconds"`
}

// Spec declares the ledger.
var Spec = component.Define(component.Spec{
	Name:     "operator.ledger",
	Doc:      "proves all the time that accepted = handled + waiting + dead, for each log and consumer",
	Hears:    []message.Pattern{">"},
	Says:     []message.Pattern{"operator.alarm.*"},
	State:    component.Local,
	Lazy:     true,
	Required: true,
}, Config{EverySeconds: 1}, New)

// Ledger keeps the appenders' account and compares it with the consumers'.
type Ledger struct {
	env   component.Env
	every time.Duration

	balanced  *prometheus.GaugeVec
	imbalance *prometheus.GaugeVec

	mu      sync.Mutex
	memory                                 // what outlives the process
	loaded  bool                           // the memory was read
	excused map[consumerAt]map[string]bool // rows that a consumer begins later than the ledger since what was before was trimmed
	lines   []Line                         // the last comparison
	alarms  map[[2]string]operator.Alarm   // raised, by consumer and log
	batches int
}

// place is a partition.
type place struct {
	log                   string
	generation, partition uint32
}

type consumerAt struct {
	consumer string
	place    place
}

// New builds the ledger.
func New(env component.Env, c Config) (*component.Part, error) {
	if c.EverySeconds < 1 {
		return nil, fmt.Errorf("every_seconds is %d; want at least 1", c.EverySeconds)
	}
	l := &Ledger{
		env: env, every: time.Duration(c.EverySeconds) * time.Second,
		memory: newMemory(), excused: map[consumerAt]map[string]bool{}, alarms: map[[2]string]operator.Alarm{},
		balanced: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "naru_ledger_balanced", Help: "1 if every accepted message has a fate at this consumer, else 0.",
		}, []string{"log", "consumer"}),
		imbalance: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "naru_ledger_imbalance_messages", Help: "Accepted minus handled, waiting and dead, at the consumer's position.",
		}, []string{"log", "consumer"}),
	}
	if env.Metrics != nil {
		env.Metrics.MustRegister(l.balanced, l.imbalance)
	}
	return &component.Part{HandleBatch: l.account, Run: l.run, Routes: l.routes()}, nil
}

// The account has one key per batch, `h log gen part row 0 seq`, with the row's count and sum after that batch; one per
// row for where it started and with which batch, `s log gen part row`, and what it has come to, `l log gen part row`; and
// one per partition, `a log gen part`, with the sequence reached. The memory's keys are said there.
const (
	kindRow     = 'h'
	kindReached = 'a'
	pruneEvery  = 4096 // batches
)

// account writes down what a batch's header says.
func (l *Ledger) account(_ context.Context, tx component.Tx, log string, s bus.Stored) error {
	p := place{log, s.Position.Generation, s.Position.Partition}
	tx.Set(reachedKey(p), binary.BigEndian.AppendUint64(nil, s.Position.Sequence))
	if s.Err == nil {
		key := rowKey(p, s.Appender, s.Position.Sequence)
		upto := component.Sum{Count: s.Batch.Running + uint64(s.Batch.Count), IDs: s.Batch.RunningSum + s.Batch.IDSum}
		tx.Set(key, encodeSum(upto))
		if err := l.contradiction(tx, p, s); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.batches++
	if l.batches%pruneEvery == 0 && l.loaded { // or the entries of a consumer that is away would go
		return l.prune(tx)
	}
	return nil
}

// contradiction notes a row that went backwards: two owners wrote it at once, which the log must not let happen.
func (l *Ledger) contradiction(tx component.Tx, p place, s bus.Stored) error {
	v, err := tx.Get(lastKey(p, s.Appender))
	if err != nil {
		return err
	}
	if v == nil {
		before := encodeSum(component.Sum{Count: s.Batch.Running, IDs: s.Batch.RunningSum})
		tx.Set(startKey(p, s.Appender), binary.BigEndian.AppendUint64(before, s.Position.Sequence))
	} else {
		before := decodeSum(v)
		if s.Batch.Running < before.Count || s.Batch.Running == before.Count && s.Batch.RunningSum != before.IDs {
			what := fmt.Sprintf("batch %d of %s says that %d messages were before it; there were %d",
				s.Position.Sequence, s.Appender, s.Batch.Running, before.Count)
			tx.Set(faultKey(p, s.Appender), []byte(what))
			l.mu.Lock()
			l.blame(p, s.Appender, what)
			l.mu.Unlock()
		}
	}
	tx.Set(lastKey(p, s.Appender), encodeSum(component.Sum{
		Count: s.Batch.Running + uint64(s.Batch.Count), IDs: s.Batch.RunningSum + s.Batch.IDSum,
	}))
	return nil
}

// prune forgets what lies behind every consumer, but keeps of each row the last entry there: it is what the row had
// come to.
func (l *Ledger) prune(tx component.Tx) error {
	low := map[place]uint64{}
	for at, r := range l.reports {
		if seq, ok := low[at.place]; !ok || r.Position.Sequence < seq {
			low[at.place] = r.Position.Sequence
		}
	}
	for p, seq := range low {
		var last []byte
		err := tx.Scan(placePrefix(kindRow, p), func(k, _ []byte) bool {
			row, at, ok := parseRowKey(k)
			if !ok {
				return true
			}
			if last != nil {
				if before, _, _ := parseRowKey(last); before == row && at <= seq {
					tx.Delete(last)
				}
			}
			last = slices.Clone(k)
			return true
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// run compares, and raises and clears alarms.
func (l *Ledger) run(ctx context.Context, ready func()) error {
	tick := time.NewTicker(l.every)
	defer tick.Stop()
	ready()
	for {
		if err := l.compare(ctx); err != nil {
			return err
		}
		l.sound(ctx)
		if err := l.save(ctx); err != nil && ctx.Err() == nil {
			l.env.Log.Warn("keep what the consumers reported", "error", err) // tried again at the next comparison
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// sound raises an alarm for what became unbalanced, once, and clears it when it is balanced again.
func (l *Ledger) sound(ctx context.Context) {
	l.mu.Lock()
	lines := slices.Clone(l.lines)
	l.mu.Unlock()
	for _, line := range lines {
		key := [2]string{line.Consumer, line.Log}
		alarm, raised := l.alarms[key]
		switch {
		case !line.Balanced && !raised:
			alarm = operator.Alarm{Name: "ledger_unbalanced", Since: l.env.Now(), Look: "naru ledger",
				Detail: fmt.Sprintf("%s on log %s: %s", line.Consumer, line.Log, line.Fault)}
			l.env.Log.Error("ledger unbalanced", "consumer", line.Consumer, "log", line.Log, "fault", line.Fault)
		case line.Balanced && raised:
			alarm.Cleared = true
			l.env.Log.Info("ledger balanced again", "consumer", line.Consumer, "log", line.Log)
		default:
			continue
		}
		if err := l.say(ctx, alarm); err != nil {
			l.env.Log.Warn("tell of the ledger's alarm", "error", err)
			continue // said again at the next comparison
		}
		if alarm.Cleared {
			delete(l.alarms, key)
		} else {
			l.alarms[key] = alarm
		}
	}
}

// numbered has the logs by their numbers in keys, which are for ever: those of the namespaces, and then a copy of each.
var numbered = func() []string {
	all := message.Namespaces()
	for _, ns := range message.Namespaces() {
		all = append(all, bus.CopyName(ns))
	}
	return all
}()

func placePrefix(kind byte, p place) []byte {
	k := []byte{kind, byte(slices.Index(numbered, p.log))}
	k = binary.BigEndian.AppendUint32(k, p.generation)
	return binary.BigEndian.AppendUint32(k, p.partition)
}

func reachedKey(p place) []byte { return placePrefix(kindReached, p) }

func rowKey(p place, row string, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(rowPrefix(p, row), seq)
}

func rowPrefix(p place, row string) []byte {
	return append(append(placePrefix(kindRow, p), row...), 0)
}

// lastKey holds what a row has come to, whatever was pruned.
func lastKey(p place, row string) []byte { return append(placePrefix('l', p), row...) }

// placeSize is the length of placePrefix.
const placeSize = 1 + 1 + 4 + 4

func parseRowKey(k []byte) (row string, seq uint64, ok bool) {
	if len(k) < placeSize+1+8 {
		return "", 0, false
	}
	end := len(k) - 8
	return string(k[placeSize : end-1]), binary.BigEndian.Uint64(k[end:]), true
}

func parsePlace(k []byte) (p place, ok bool) {
	if len(k) < placeSize || int(k[1]) >= len(numbered) {
		return p, false
	}
	return place{numbered[k[1]], binary.BigEndian.Uint32(k[2:]), binary.BigEndian.Uint32(k[6:])}, true
}

func encodeSum(s component.Sum) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, s.Count), s.IDs)
}

func decodeSum(v []byte) component.Sum {
	if len(v) != 16 {
		return component.Sum{}
	}
	return component.Sum{Count: binary.BigEndian.Uint64(v), IDs: binary.BigEndian.Uint64(v[8:])}
}
