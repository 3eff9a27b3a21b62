package deadletter

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/operator"
)

const (
	listMost   = 1000
	bodyMax    = 1 << 20
	lookedList = 5_000_000 // letters that one answer looks through
)

func (l *Letters) routes() []component.Route {
	return []component.Route{
		{Pattern: "GET /api/v1/dead", Handler: answer.Func(l.serveList)},
		{Pattern: "GET /api/v1/dead/groups", Handler: answer.Func(l.serveGroups)},
		{Pattern: "GET /api/v1/dead/audit", Handler: answer.Func(l.serveAudit)},
		{Pattern: "GET /api/v1/dead/letters/{id}", Handler: answer.Func(l.serveLetter)},
		{Pattern: "PUT /api/v1/dead/letters/{id}/data", Handler: answer.Func(l.serveEdit)},
		{Pattern: "GET /api/v1/dead/jobs", Handler: answer.Func(l.serveJobs)},
		{Pattern: "POST /api/v1/dead/jobs", Handler: answer.Func(l.serveBegin)},
		{Pattern: "GET /api/v1/dead/jobs/{id}", Handler: answer.Func(l.serveJob)},
		{Pattern: "POST /api/v1/dead/jobs/{id}/cancel", Handler: answer.Func(l.serveCancel)},
	}
}

// List is a part of the letters, newest first.
type List struct {
	Letters []Letter `json:"letters"`
	// Next is given as `before` for older ones; empty where there are none.
	Next string `json:"next,omitempty"`
	totals
}

// FilterOf reads a filter from a query.
func FilterOf(q url.Values) (f Filter, err error) {
	f = Filter{Group: q.Get("group"), Component: q.Get("component"), Device: q.Get("device"), Owner: q.Get("owner"), Subject: message.Pattern(q.Get("subject")), Text: q.Get("text")}
	if s := q.Get("reason"); s != "" {
		if f.Reason, err = message.ParseReason(s); err != nil {
			return f, err
		}
	}
	for name, to := range map[string]*time.Time{"since": &f.Since, "until": &f.Until} {
		if s := q.Get(name); s != "" {
			if *to, err = time.Parse(time.RFC3339, s); err != nil {
				return f, fmt.Errorf("%s=%s: want a time as RFC 3339 writes it, such as 2026-11-27T03:00:00Z", name, s)
			}
		}
	}
	for _, s := range q["id"] {
		id, err := message.ParseID(s)
		if err != nil {
			return f, err
		}
		f.IDs = append(f.IDs, id)
	}
	return f, f.check()
}

func limitOf(q url.Values) (int, error) {
	s := q.Get("limit")
	if s == "" {
		return 100, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > listMost {
		return 0, fmt.Errorf("limit=%s: want 1 to %d", s, listMost)
	}
	return n, nil
}

func (l *Letters) serveList(_ http.ResponseWriter, r *http.Request) (any, error) {
	q := r.URL.Query()
	f, err := FilterOf(q)
	limit, lerr := limitOf(q)
	var before message.ID
	if s := q.Get("before"); s != "" && err == nil {
		before, err = message.ParseID(s)
	}
	if err = errors.Join(err, lerr); err != nil {
		return nil, answer.Bad(err)
	}
	out := &List{Letters: []Letter{}}
	return out, l.env.View(func(v component.View) (err error) {
		if out.totals, _, err = read[totals](v, []byte{kindTotals}); err != nil {
			return err
		}
		reached, more, err := walk(v, &f, message.ID{}, beneath(before), true, lookedList, func(x *Letter) bool {
			if len(out.Letters) == limit {
				return false
			}
			out.Letters = append(out.Letters, *x)
			return true
		})
		if more {
			out.Next = reached.String()
		}
		return err
	})
}

// beneath is the id just before; zero stays zero.
func beneath(id message.ID) message.ID {
	for i := len(id) - 1; i >= 0 && !id.IsZero(); i-- {
		id[i]--
		if id[i] != 0xff {
			break
		}
	}
	return id
}

func (l *Letters) serveGroups(_ http.ResponseWriter, _ *http.Request) (any, error) {
	out := struct {
		Groups []Group `json:"groups"` // the largest first
		totals
	}{Groups: []Group{}}
	err := l.env.View(func(v component.View) (err error) {
		if out.totals, _, err = read[totals](v, []byte{kindTotals}); err != nil {
			return err
		}
		var bad error
		err = v.Range([]byte{kindGroup}, []byte{kindGroup + 1}, false, func(_, raw []byte) bool {
			var g Group
			if bad = json.Unmarshal(raw, &g); bad == nil {
				out.Groups = append(out.Groups, g)
			}
			return bad == nil
		})
		return errors.Join(err, bad)
	})
	slices.SortStableFunc(out.Groups, func(a, b Group) int { return int(min(max(b.Count-a.Count, -1), 1)) })
	return out, err
}

// Shown is a letter with all that is known of it.
type Shown struct {
	Letter
	Dead operator.Dead `json:"letter"`
	// Subject and the others are of the message that died; Data is as it came, where it is text.
	Source      string    `json:"source,omitempty"`
	ContentType string    `json:"content_type,omitempty"`
	Recorded    time.Time `json:"recorded,omitzero"`
	Data        string    `json:"data,omitempty"`
	Bytes       []byte    `json:"data_base64,omitempty"` // where it is no text
	EditedData  string    `json:"edited_data,omitempty"` // what its next retry has
}

func idIn(r *http.Request) (message.ID, error) {
	id, err := message.ParseID(r.PathValue("id"))
	if err != nil {
		return id, answer.Bad(err)
	}
	return id, nil
}

func (l *Letters) serveLetter(_ http.ResponseWriter, r *http.Request) (any, error) {
	id, err := idIn(r)
	if err != nil {
		return nil, err
	}
	out := new(Shown)
	return out, l.env.View(func(v component.View) error {
		x, err := summary(v, id)
		if err != nil {
			return err
		}
		if x == nil {
			return answer.Missing("there is no dead letter %s; it may have been handled, discarded or dropped since: `naru dead audit`", id)
		}
		out.Letter = *x
		raw, err := v.Get(key(kindLetter, id))
		if err == nil {
			err = json.Unmarshal(raw, &out.Dead)
		}
		if err != nil {
			return err
		}
		if m, err := out.Dead.Message(); err == nil {
			out.Source, out.ContentType, out.Recorded = m.Source, m.ContentType, m.Recorded().UTC()
			if text := string(m.Data); strings.ToValidUTF8(text, "") == text {
				out.Data = text
			} else {
				out.Bytes = slices.Clone(m.Data)
			}
		}
		if x.Edited {
			raw, err := v.Get(key(kindEdited, id))
			if err != nil {
				return err
			}
			m := new(message.Message)
			if _, err := message.DecodeRecord(raw, m); err != nil {
				return err
			}
			out.EditedData = strings.ToValidUTF8(string(m.Data), "?")
		}
		return nil
	})
}

func (l *Letters) serveEdit(_ http.ResponseWriter, r *http.Request) (any, error) {
	id, err := idIn(r)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, bodyMax))
	if err != nil {
		return nil, answer.Bad(fmt.Errorf("read the data: %w", err))
	}
	if err := l.edit(r.Context(), id, data, r.URL.Query().Get("by")); err != nil {
		return nil, err
	}
	return l.serveLetter(nil, r)
}

func (l *Letters) serveJobs(_ http.ResponseWriter, _ *http.Request) (any, error) {
	list := []Job{}
	err := l.env.View(func(v component.View) error {
		return eachJob(v, func(j *Job) { list = append(list, *j) })
	})
	slices.Reverse(list)
	return list, err
}

func (l *Letters) serveBegin(_ http.ResponseWriter, r *http.Request) (any, error) {
	j := Job{Canary: canaryDefault}
	d := json.NewDecoder(http.MaxBytesReader(nil, r.Body, bodyMax))
	d.DisallowUnknownFields()
	if err := d.Decode(&j); err != nil {
		return nil, answer.Bad(fmt.Errorf("the request: %w; want {\"kind\":\"retry\",\"by\":…,\"filter\":{…}}", err))
	}
	if j.Filter.empty() && r.URL.Query().Get("all") != "true" {
		return nil, answer.Bad(errors.New("the filter selects every letter there is; say all=true if that is meant"))
	}
	return l.begin(r.Context(), j)
}

// JobShown is a job with what became of its letters.
type JobShown struct {
	Job
	Results []Result `json:"results"`
	// Next is given as `after` for those that follow; empty where there are none.
	Next string `json:"next,omitempty"`
}

func (l *Letters) serveJob(_ http.ResponseWriter, r *http.Request) (any, error) {
	id, err := idIn(r)
	if err != nil {
		return nil, err
	}
	q := r.URL.Query()
	limit, err := limitOf(q)
	var after message.ID
	if s := q.Get("after"); s != "" && err == nil {
		after, err = message.ParseID(s)
	}
	if err != nil {
		return nil, answer.Bad(err)
	}
	only := q.Get("result")
	out := &JobShown{Results: []Result{}}
	return out, l.env.View(func(v component.View) error {
		j, there, err := read[Job](v, key(kindJob, id))
		if err != nil {
			return err
		}
		if !there {
			return answer.Missing("there is no job %s; `naru dead jobs` lists them", id)
		}
		out.Job = j
		var bad error
		last := message.ID{}
		err = v.Range(append(resultKey(id, after), 0), append(key(kindResult, id), slices.Repeat([]byte{0xff}, 17)...), false, func(k, raw []byte) bool {
			if len(out.Results) == limit {
				out.Next = last.String()
				return false
			}
			var x Result
			if bad = json.Unmarshal(raw, &x); bad != nil {
				return false
			}
			last = x.Letter
			if only == "" || only == x.Result {
				out.Results = append(out.Results, x)
			}
			return true
		})
		return errors.Join(err, bad)
	})
}

func (l *Letters) serveCancel(_ http.ResponseWriter, r *http.Request) (any, error) {
	id, err := idIn(r)
	if err != nil {
		return nil, err
	}
	by := r.URL.Query().Get("by")
	if by == "" {
		return nil, answer.Bad(errors.New("by: want the name of who does this, for the record"))
	}
	return l.cancel(r.Context(), id, by)
}

func (l *Letters) serveAudit(_ http.ResponseWriter, r *http.Request) (any, error) {
	limit, err := limitOf(r.URL.Query())
	if err != nil {
		return nil, answer.Bad(err)
	}
	list := []Entry{}
	var bad error
	err = l.env.View(func(v component.View) error {
		return v.Range([]byte{kindAudit}, []byte{kindAudit + 1}, true, func(_, raw []byte) bool {
			var e Entry
			if bad = json.Unmarshal(raw, &e); bad == nil {
				list = append(list, e)
			}
			return bad == nil && len(list) < limit
		})
	})
	return list, errors.Join(err, bad)
}
