package etl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component/past"
	"github.com/naru-platform/naru/data_platform/model"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/message"
)

const (
	bodyMax    = 1 << 20
	trialLimit = 1000     // messages, where nothing else is asked for
	trialMost  = 100_000  // that may be asked for
	trialBytes = 32 << 20 // of messages that are held in memory, and their rows beside them; the first one is tried, however large
	trialFor   = time.Minute
	trialBack  = time.Hour
)

// serveTest tries a pipeline on recorded messages. The documents of the body, if there are any, stand in the place of those in
// force. What of the dataset lies in the log data_platform is tried; of a dataset that is not in force, what it would take.
func (e *etl) serveTest(w http.ResponseWriter, r *http.Request) (any, error) {
	select {
	case <-e.book.Synced():
	default:
		return nil, answer.Unavailable("%s is starting", Name)
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyMax))
	if err != nil {
		return nil, answer.Bad(fmt.Errorf("read the documents: %w; they may have %d bytes", err, bodyMax))
	}
	q, now := r.URL.Query(), e.env.Now()
	d, p, err := e.candidates(q.Get("name"), q.Get("dataset"), raw)
	if err != nil {
		return nil, err
	}
	since := now.Add(-trialBack)
	if s := q.Get("since"); s != "" {
		if since, err = moment(s, now); err != nil {
			return nil, answer.Bad(fmt.Errorf("since=%s: %w", s, err))
		}
	}
	limit := trialLimit
	if s := q.Get("limit"); s != "" {
		if limit, err = strconv.Atoi(s); err != nil || limit < 1 || limit > trialMost {
			return nil, answer.Bad(fmt.Errorf("limit=%s: want a number of messages, from 1 to %d", s, trialMost))
		}
	}
	select {
	case e.testing <- struct{}{}:
	default:
		return nil, answer.Conflict("another test runs in this process; one at a time, so that they take nothing from who is at work")
	}
	defer func() { <-e.testing }()
	ctx, cancel := context.WithTimeout(r.Context(), trialFor)
	defer cancel()
	samples, stopped, err := e.recorded(ctx, d, since, limit)
	if err != nil {
		return nil, err
	}
	pipe := NewPipe(d, p, e.scratches)
	pipe.Twins = e.twins.WaitAll
	t, err := pipe.Try(ctx, samples)
	if err != nil {
		return nil, err
	}
	if t.Stopped == "" {
		t.Stopped = stopped
	}
	return t, nil
}

// candidates finds what is to be tried: a pipeline or dataset by name, among the documents or in force; or the one of the
// documents that fills a dataset.
func (e *etl) candidates(name, dataset string, raw []byte) (*model.Dataset, *model.Pipeline, error) {
	var docs []model.Document
	if len(raw) > 0 {
		var err error
		if docs, err = model.Parse("body", raw); err != nil {
			return nil, nil, answer.Bad(err)
		}
	}
	set := e.book.Set()
	d, p, err := Choose(docs, set.Datasets, set.Pipelines, name, dataset)
	if err != nil {
		return nil, nil, answer.Bad(err)
	}
	return d, p, nil
}

// Choose finds the dataset and the pipeline, if it has one, that are meant: documents come before those in force, a name is a
// pipeline's or a dataset's.
func Choose(docs []model.Document, datasets map[string]*model.Dataset, pipelines map[string]*model.Pipeline, name, dataset string) (*model.Dataset, *model.Pipeline, error) {
	var mine []*model.Pipeline
	sets := map[string]*model.Dataset{}
	for i := range docs {
		if p := docs[i].Pipeline; p != nil && (name == "" || p.Name == name) && (dataset == "" || p.Dataset == dataset) {
			mine = append(mine, p)
		}
		if d := docs[i].Dataset; d != nil {
			sets[d.Name] = d
		}
	}
	find := func(of string) *model.Dataset {
		if d := sets[of]; d != nil {
			return d
		}
		return datasets[of]
	}
	var p *model.Pipeline
	switch {
	case len(mine) > 1:
		return nil, nil, fmt.Errorf("there are %d pipelines in the file; say with --dataset which dataset's is meant", len(mine))
	case len(mine) == 1:
		p, dataset = mine[0], mine[0].Dataset
	case name != "":
		for _, of := range pipelines {
			if of.Name == name {
				p, dataset = of, of.Dataset
			}
		}
		if p == nil {
			if find(name) == nil {
				return nil, nil, fmt.Errorf("there is no pipeline and no dataset %s; `naru data models` shows those there are", name)
			}
			dataset, p = name, pipelines[name]
		}
	case dataset == "" && len(sets) == 1:
		for of := range sets {
			dataset, p = of, pipelines[of]
		}
	case dataset == "":
		return nil, nil, errors.New("say what is to be tried: a file with a pipeline, or the name of one, or --dataset")
	default:
		p = pipelines[dataset]
	}
	d := find(dataset)
	if d == nil {
		return nil, nil, fmt.Errorf("there is no dataset %s; put it into the file before its pipeline, or apply it first", dataset)
	}
	return d, p, nil
}

// recorded are messages for a dataset since a time: those that were led over, or where it is not in force those that it would take.
func (e *etl) recorded(ctx context.Context, d *model.Dataset, since time.Time, limit int) (samples []Sample, stopped string, err error) {
	from, bytes := map[string][]message.Pattern{}, 0
	if e.book.Set().Datasets[d.Name] != nil {
		from[message.DataPlatform] = []message.Pattern{d.Subjects()}
	} else {
		for _, p := range d.From {
			ns := message.Subject(p).Namespace()
			from[ns] = append(from[ns], p)
		}
	}
	for _, name := range message.Namespaces() {
		if len(from[name]) == 0 {
			continue
		}
		l, err := e.env.Bus.Log(ctx, name, bus.LogOptions{})
		if err != nil {
			return nil, "", err
		}
		info, err := l.Info(ctx)
		if err != nil {
			return nil, "", err
		}
		for _, g := range info.Generations {
			for _, p := range g.Partitions {
				at, err := past.Seek(ctx, l, g.Number, p, since)
				if err != nil {
					return nil, "", err
				}
				err = past.Scan(ctx, l, g.Number, p, at, func(s *bus.Stored) bool {
					if s.Err != nil {
						return true
					}
					var m message.Message
					for cursor := s.Batch.Cursor(); cursor.Next(&m); m = (message.Message{}) {
						if m.Recorded().Before(since) || !slices.ContainsFunc(from[name], func(p message.Pattern) bool { return p.Matches(m.Subject) }) {
							continue
						}
						if len(samples) >= limit {
							stopped = fmt.Sprintf("%d messages were tried, the limit; there are more", limit)
							return false
						}
						if bytes += len(m.Data); bytes > trialBytes && len(samples) > 0 {
							stopped = fmt.Sprintf("%d messages were tried, which have as many bytes as are taken at once, %d; there are more", len(samples), trialBytes)
							return false
						}
						c := m.Clone()
						if name != message.DataPlatform {
							c.Subject = d.SubjectOf(c)
						}
						samples = append(samples, Sample{Message: c})
					}
					return true
				})
				if err != nil || stopped != "" {
					return samples, stopped, err
				}
			}
		}
	}
	return samples, "", nil
}

func moment(s string, now time.Time) (time.Time, error) {
	if d, err := model.ParseDuration(s); err == nil {
		return now.Add(-d.Std()), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, errors.New("want a time such as 2026-11-28T03:00:00Z, or how long ago, such as 1h or 30d")
	}
	return t, nil
}
