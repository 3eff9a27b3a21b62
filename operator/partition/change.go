package partition

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/operator"
)

// Most is a limit of ours: each partition is a stream with its files, and every row may have a batch in each.
const Most = 64

const (
	// changesTable has, under `<log>/<generation>`, who opened a generation.
	changesTable = "naru_repartitions"
	bodyMax      = 64 << 10
	textMax      = 1000
)

// Wish is what an operator asks for.
type Wish struct {
	Partitions int    `json:"partitions"`
	By         string `json:"by"` // for the record
	Note       string `json:"note,omitempty"`
}

// Done is what came of it.
type Done struct {
	operator.Repartitioned
	// Warnings are what the operator should know before the next one.
	Warnings []string `json:"warnings,omitempty"`
}

func (p *partition) serveRepartition(w http.ResponseWriter, r *http.Request) (any, error) {
	name := r.PathValue("log")
	if err := known(name); err != nil {
		return nil, err
	}
	var wish Wish
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, bodyMax))
	d.DisallowUnknownFields()
	if err := d.Decode(&wish); err != nil {
		return nil, answer.Bad(fmt.Errorf("want partitions, by and perhaps note, as JSON: %w", err))
	}
	switch {
	case wish.Partitions < 1 || wish.Partitions > Most:
		return nil, answer.Bad(fmt.Errorf("partitions %d: want 1 to %d", wish.Partitions, Most))
	case strings.TrimSpace(wish.By) == "":
		return nil, answer.Bad(errors.New("by: want the name of who does this, for the record"))
	case len(wish.By)+len(wish.Note) > textMax:
		return nil, answer.Bad(fmt.Errorf("by and note are %d bytes; want at most %d", len(wish.By)+len(wish.Note), textMax))
	}
	return p.repartition(r.Context(), name, wish)
}

// repartition seals a log's generation and opens the next. It is recorded before, so that no change is nobody's, and told
// of when it is done.
func (p *partition) repartition(ctx context.Context, name string, wish Wish) (*Done, error) {
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	l, err := p.look(ctx, name)
	if err != nil {
		return nil, err
	}
	if l.Partitions == wish.Partitions {
		return nil, answer.Conflict("log %s has %d already", name, wish.Partitions)
	}
	for _, c := range l.Consumers {
		if !c.Over && !c.Away {
			return nil, answer.Conflict("%s has not gone over to the partitions that log %s has now; it is in generation %d. Wait for it: `naru log show %s`", c.Name, name, c.Generation, name)
		}
	}
	open := l.Generations[len(l.Generations)-1].Number
	done := &Done{Repartitioned: operator.Repartitioned{Log: name, Generation: open + 1, Before: l.Partitions, Partitions: wish.Partitions,
		By: wish.By, Note: wish.Note, At: p.env.Now().UTC()}, Warnings: warnings(l, wish.Partitions)}
	table, err := p.env.Bus.Table(ctx, changesTable, bus.TableOptions{})
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(done.Repartitioned)
	if err != nil {
		return nil, err
	}
	// Who comes second meets the first one's record: one change at a time.
	revision, err := table.Update(ctx, changeKey(name, open+1), raw, 0)
	if errors.Is(err, bus.ErrConflict) {
		return nil, answer.Conflict("somebody else gives log %s other partitions just now, or began to and died: look with `naru log show %s`, and try again in a minute", name, name)
	}
	if err != nil {
		return nil, err
	}
	log, err := p.env.Bus.Log(ctx, name, bus.LogOptions{})
	if err == nil {
		err = log.Repartition(ctx, wish.Partitions)
	}
	if err != nil {
		if now, lerr := p.look(context.WithoutCancel(ctx), name); lerr == nil && now.Generations[len(now.Generations)-1].Number == open {
			_ = table.Delete(context.WithoutCancel(ctx), changeKey(name, open+1), revision) // the next try writes its own
		}
		return nil, err
	}
	m := &message.Message{Subject: operator.RepartitionedSubject(name), ContentType: "application/json", Data: raw}
	if err := p.env.Say(ctx, m); err != nil {
		return nil, fmt.Errorf("log %s has %d partitions now, and is recorded, but it could not be told: %w", name, wish.Partitions, err)
	}
	p.env.Log.Info("a log has other partitions", "log", name, "generation", open+1, "before", l.Partitions, "partitions", wish.Partitions, "by", wish.By)
	return done, nil
}

// warnings are what more partitions do not do here.
func warnings(l *Log, n int) (list []string) {
	if strings.HasPrefix(l.Engine, "nats embedded") && n > l.Partitions {
		list = append(list, "the bus is one embedded server, whose partitions all wait for the same disk: messages are not accepted faster. "+
			"What is gained is that components that spread (rules) handle partitions side by side. For more writing: a NATS cluster (bus.url)")
	}
	var away []string
	for _, c := range l.Consumers {
		if c.Away {
			away = append(away, c.Name)
		}
	}
	if len(away) > 0 {
		list = append(list, strings.Join(away, ", ")+": away, and goes over when it runs again; until then the old partitions are kept for it")
	}
	return list
}

func changeKey(log string, generation uint32) string { return fmt.Sprintf("%s/%d", log, generation) }

// changes are the records of a log, oldest first.
func (p *partition) changes(ctx context.Context, name string) (list []operator.Repartitioned, err error) {
	table, err := p.env.Bus.Table(ctx, changesTable, bus.TableOptions{})
	if err != nil {
		return nil, err
	}
	entries, err := bus.Entries(ctx, table, name+"/")
	for _, e := range entries {
		var c operator.Repartitioned
		if json.Unmarshal(e.Value, &c) == nil {
			list = append(list, c)
		}
	}
	slices.SortFunc(list, func(a, b operator.Repartitioned) int { return cmp.Compare(a.Generation, b.Generation) })
	return list, err
}
