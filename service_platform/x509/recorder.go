package x509

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// The flight recorder keeps what happened at the doors in a table that forgets within a day: chunks of attempts in a ring
// for each node, so that a flood of attempts overwrites attempts and nothing else. Strangers have a ring of their own, and
// so have the holders of claim certificates: whoever is no device of this platform cannot push a device's attempts out, and
// one device cannot push out the others'.
// What was recorded outlives the process, and a new one goes on behind it.
const (
	admissionsTable  = "naru_admissions"
	attemptPrefix    = "a/"
	attemptsTTL      = 24 * time.Hour
	attemptsPerChunk = 16  // keeps an entry at some kilobytes
	chunks           = 256 // of each ring: 4096 attempts, repeats counted as one
	unwrittenMax     = 32  // chunks of a ring that may wait for the bus; beyond it attempts are dropped
	flushEvery       = 250 * time.Millisecond
	stepsMax         = 16

	// One device, or one certificate, writes so many entries of its own in an hour: whatever it says of itself, which a revoked one
	// may say too, it is a small part of the ring in a day. Beyond them its newest few ride along in whatever chunk is open, and
	// fill none.
	shareMax  = 16
	shareTime = time.Hour
	ridesMax  = 4                // of one device in a chunk
	ridersMax = attemptsPerChunk // of a chunk
)

// admissionsOptions: on disk, since who looks for the reason of a failure may have started the platform anew before.
var admissionsOptions = bus.TableOptions{TTL: attemptsTTL}

// Attempt is what happened when somebody wanted in, step by step. Repeats of the same are one attempt with a count.
type Attempt struct {
	At          time.Time `json:"at"`   // the first time
	Last        time.Time `json:"last"` // and the last
	Count       int       `json:"count"`
	Others      int       `json:"others,omitempty"` // further ones of the same device or certificate, unlike this, that there was no room for
	Node        string    `json:"node"`
	Door        string    `json:"door"` // mqtt, est, claim; jit where the device was to be registered when it came
	Address     string    `json:"address,omitempty"`
	Device      string    `json:"device,omitempty"`  // that its certificate is registered for; else as it called itself, the certificate's common name
	Becomes     string    `json:"becomes,omitempty"` // the device that a template made of it, or would have
	Known       bool      `json:"known"`             // a registered device, or one that was
	ClientID    string    `json:"client_id,omitempty"`
	Fingerprint string    `json:"fingerprint,omitempty"`
	Serial      string    `json:"serial,omitempty"`
	Issuer      string    `json:"issuer,omitempty"` // common name of the certificate's issuer
	CA          string    `json:"ca,omitempty"`     // the issuer's key identifier, hexadecimal
	NotBefore   time.Time `json:"not_before,omitzero"`
	NotAfter    time.Time `json:"not_after,omitzero"`
	TLS         string    `json:"tls,omitempty"` // version, and whether the session was resumed
	Steps       []Step    `json:"steps"`
	Admitted    bool      `json:"admitted"`
	Reason      string    `json:"reason,omitempty"` // the name of a message.Reason, where it was refused
	Detail      string    `json:"detail,omitempty"`
	Claim       bool      `json:"claim,omitempty"` // the holder of a claim certificate
	Ended       bool      `json:"ended,omitempty"` // a connection that was there, and was ended; no attempt to get in

	rides bool // beyond its device's share
}

// whose is who has a share of the ring: a device, else a certificate, else a name from an address.
func (a *Attempt) whose() string {
	switch {
	case a.Known && a.Device != "":
		return "device " + a.Device
	case a.Fingerprint != "":
		return a.Fingerprint
	}
	return a.Address + " " + a.Device
}

// Step is one thing that was looked at.
type Step struct {
	Name   string `json:"name"` // handshake, server_certificate, certificate, signature, usage, time, registration, token, claim, throttle, body, csr, template, hook, client_id, policy, rate_limit, …
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
}

func (a *Attempt) pass(step, format string, args ...any) {
	if len(a.Steps) < stepsMax {
		a.Steps = append(a.Steps, Step{step, true, short(fmt.Sprintf(format, args...))})
	}
}

// fail ends the attempt, and gives err back.
func (a *Attempt) fail(step string, err error) error {
	a.Detail = cut(err.Error(), 2*textMax)
	a.Admitted, a.Reason = false, message.ReasonOf(err, message.HandshakeFailed).String()
	for again := true; again; { // a rejection that was refused for
		a.Detail, again = strings.CutPrefix(a.Detail, a.Reason+": ")
	}
	if len(a.Steps) < stepsMax {
		a.Steps = append(a.Steps, Step{step, false, a.Detail})
	}
	return err
}

// same says whether b is the same again.
func (a *Attempt) same(b *Attempt) bool {
	return a.Door == b.Door && a.Address == b.Address && a.Device == b.Device && a.Becomes == b.Becomes && a.ClientID == b.ClientID &&
		a.Fingerprint == b.Fingerprint && a.Admitted == b.Admitted && a.Reason == b.Reason && a.TLS == b.TLS && a.Ended == b.Ended &&
		len(a.Steps) == len(b.Steps) && (len(a.Steps) == 0 || a.Steps[len(a.Steps)-1].Name == b.Steps[len(b.Steps)-1].Name)
}

// stepped is an error that knows the step at which an attempt ended.
type stepped struct {
	step string
	error
}

func (s stepped) Unwrap() error { return s.error }

// inStep says at which step an error came; nil stays nil.
func inStep(step string, err error) error {
	if err == nil {
		return nil
	}
	return stepped{step, err}
}

// stepOf is the step that an error knows, and otherwise where it knows none.
func stepOf(err error, otherwise string) string {
	var s stepped
	if errors.As(err, &s) {
		return s.step
	}
	return otherwise
}

// recorder gathers attempts and writes them in the background; nobody at a door waits for it.
type recorder struct {
	node string

	mu      sync.Mutex
	rings   [3]ring // strangers, devices, claim certificates
	sealed  map[place][]byte
	order   []place // of sealed, oldest first
	dropped int

	writing sync.Mutex // guards what follows, and is held while chunks are written
	resumed bool       // the places behind what an earlier process wrote are known
	begins  [len(rings)]int
}

// rings names the rings, as they stand in keys.
var rings = [3]string{"0", "1", "2"}

// place is that of a chunk: the ring, and how many chunks of this process were before it.
type place struct{ ring, slot int }

// ring is the chunk being filled and its place, and how many entries each has written since a time.
type ring struct {
	open   []*Attempt
	riders int // of open
	slot   int
	dirty  bool
	shares map[string]int
	since  time.Time
}

// full says whether the open chunk is; riders do not count.
func (g *ring) full() bool { return len(g.open)-g.riders >= attemptsPerChunk }

// add takes an attempt that is unlike all in the open chunk, and says how many it drops for it.
func (g *ring) add(a *Attempt) (dropped int) {
	if g.shares == nil || a.At.Sub(g.since).Abs() >= shareTime || len(g.shares) >= chunks*attemptsPerChunk {
		g.shares, g.since = map[string]int{}, a.At
	}
	who := a.whose()
	if a.rides = g.shares[who] >= shareMax; !a.rides {
		g.shares[who]++
		g.open = append(g.open, a)
		return 0
	}
	of, oldest, first := 0, -1, -1 // the same's riders, and the first of all
	for i, b := range g.open {
		if !b.rides {
			continue
		}
		if first < 0 {
			first = i
		}
		if b.whose() == who {
			if of++; oldest < 0 {
				oldest = i
			}
		}
	}
	switch {
	case of >= ridesMax: // the newest of it are worth the most
		a.Others = g.open[oldest].Count + g.open[oldest].Others
		g.open = slices.Delete(g.open, oldest, oldest+1)
	case g.riders >= ridersMax:
		dropped = g.open[first].Count + g.open[first].Others
		g.open = slices.Delete(g.open, first, first+1)
	default:
		g.riders++
	}
	g.open = append(g.open, a)
	return dropped
}

func (r *recorder) record(a Attempt) {
	a.Node, a.Count, a.Last = r.node, 1, a.At
	if host, _, err := net.SplitHostPort(a.Address); err == nil {
		a.Address = host
	}
	for _, s := range []*string{&a.Address, &a.Device, &a.Becomes, &a.ClientID, &a.Issuer, &a.Serial} {
		*s = strings.ToValidUTF8(short(*s), "\ufffd")
	}
	class := 0
	switch {
	case a.Claim:
		class = 2
	case a.Known:
		class = 1
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	g := &r.rings[class]
	g.dirty = true
	for _, b := range g.open {
		if b.same(&a) {
			b.Last, b.Detail, b.Steps = a.At, a.Detail, a.Steps
			b.Count++
			return
		}
	}
	r.dropped += g.add(&a)
	if g.full() {
		r.seal(class)
		g.open, g.riders, g.slot = nil, 0, (g.slot+1)%chunks
	}
}

// seal makes the open chunk ready to be written.
func (r *recorder) seal(class int) {
	g := &r.rings[class]
	g.dirty = false
	raw, err := json.Marshal(g.open)
	if err != nil {
		return // plain data: cannot be
	}
	r.keep(place{class, g.slot}, raw, len(g.open))
}

// keep has a chunk wait to be written, in the place of what waits for the same one.
func (r *recorder) keep(p place, raw []byte, attempts int) {
	if _, waits := r.sealed[p]; !waits {
		waiting := 0
		for _, o := range r.order {
			if o.ring == p.ring {
				waiting++
			}
		}
		if waiting >= unwrittenMax { // of its own ring: strangers push nobody else's out here either
			r.dropped += attempts
			return
		}
		r.order = append(r.order, p)
	}
	if r.sealed == nil {
		r.sealed = map[place][]byte{}
	}
	r.sealed[p] = raw
}

// flush writes what is new. What cannot be written waits for the next time.
func (r *recorder) flush(ctx context.Context, t bus.Table) error {
	r.writing.Lock()
	defer r.writing.Unlock()
	if err := r.resume(ctx, t); err != nil {
		return fmt.Errorf("look where the admission attempts of before end: %w", err)
	}
	r.mu.Lock()
	for class := range r.rings {
		if r.rings[class].dirty {
			r.seal(class)
		}
	}
	sealed, order := r.sealed, r.order
	r.sealed, r.order = nil, nil
	r.mu.Unlock()
	for i, p := range order {
		key := fmt.Sprintf("%s%s/%s/%d", attemptPrefix, r.node, rings[p.ring], (r.begins[p.ring]+p.slot)%chunks)
		if _, err := t.Put(ctx, key, sealed[p]); err != nil {
			r.again(sealed, order[i:])
			return fmt.Errorf("keep admission attempts: %w", err)
		}
	}
	return nil
}

// again has chunks wait once more that could not be written, in front of what has come since.
func (r *recorder) again(sealed map[place][]byte, order []place) {
	r.mu.Lock()
	defer r.mu.Unlock()
	newer, since := r.sealed, r.order
	r.sealed, r.order = nil, nil
	for _, p := range order {
		if _, replaced := newer[p]; !replaced {
			r.keep(p, sealed[p], attemptsPerChunk)
		}
	}
	for _, p := range since {
		r.keep(p, newer[p], attemptsPerChunk)
	}
}

// resume looks, once, for the newest chunk of each ring that an earlier process of this node has left, and begins behind it.
func (r *recorder) resume(ctx context.Context, t bus.Table) error {
	if r.resumed {
		return nil
	}
	prefix := attemptPrefix + r.node + "/"
	entries, err := bus.Entries(ctx, t, prefix)
	if err != nil {
		return err
	}
	var newest [len(rings)]uint64 // revisions
	for _, e := range entries {
		class, slot, _ := strings.Cut(strings.TrimPrefix(e.Key, prefix), "/")
		i := slices.Index(rings[:], class)
		n, err := strconv.Atoi(slot)
		if i >= 0 && err == nil && n >= 0 && e.Revision > newest[i] {
			newest[i], r.begins[i] = e.Revision, (n+1)%chunks
		}
	}
	r.resumed = true
	return nil
}

// run flushes until ctx is done, and once more then.
func (r *recorder) run(ctx context.Context, b bus.Bus, warn func(error, int)) {
	var table bus.Table
	failing := false
	flush := func(ctx context.Context) {
		var err error
		if table == nil {
			table, err = b.Table(ctx, admissionsTable, admissionsOptions)
		}
		if err == nil {
			err = r.flush(ctx, table)
		}
		if err != nil {
			if !failing && ctx.Err() == nil { // once, and not four times a second
				failing = true
				warn(err, 0)
			}
			return
		}
		failing = false
		r.mu.Lock()
		dropped := r.dropped
		r.dropped = 0
		r.mu.Unlock()
		if dropped > 0 {
			warn(nil, dropped)
		}
	}
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushEvery)
			flush(last)
			cancel()
			return
		case <-tick.C:
			flush(ctx)
		}
	}
}

// attemptFilter selects attempts; what is empty selects all.
type attemptFilter struct {
	device, address, step string // step is the one that it ended at
	ca                    func(*Attempt) bool
	refused               bool
}

func (f attemptFilter) keeps(a *Attempt) bool {
	return (f.device == "" || a.Device == f.device || a.Becomes == f.device || a.ClientID == f.device || a.Device == hiddenUser(f.device)) &&
		(f.address == "" || a.Address == f.address) &&
		(f.ca == nil || f.ca(a)) &&
		(f.step == "" || len(a.Steps) > 0 && a.Steps[len(a.Steps)-1].Name == f.step) &&
		!(f.refused && a.Admitted)
}

// attempts reads what every node recorded, newest first, at most limit of them.
func attempts(ctx context.Context, b bus.Bus, f attemptFilter, limit int) ([]Attempt, error) {
	list := []Attempt{}
	if err := eachAttempt(ctx, b, func(a *Attempt) {
		if f.keeps(a) {
			list = append(list, *a)
		}
	}); err != nil {
		return nil, err
	}
	slices.SortStableFunc(list, func(a, b Attempt) int { return b.Last.Compare(a.Last) })
	return list[:min(limit, len(list))], nil
}

// eachAttempt reads what every node recorded, in no order.
func eachAttempt(ctx context.Context, b bus.Bus, f func(*Attempt)) error {
	t, err := b.Table(ctx, admissionsTable, admissionsOptions)
	if err != nil {
		return fmt.Errorf("open table %s: %w", admissionsTable, err)
	}
	entries, err := bus.Entries(ctx, t, attemptPrefix)
	if err != nil {
		return fmt.Errorf("read the admission attempts: %w", err)
	}
	for _, e := range entries {
		var chunk []Attempt
		if json.Unmarshal(e.Value, &chunk) != nil {
			continue // another version's; what can be read is shown
		}
		for i := range chunk {
			f(&chunk[i])
		}
	}
	return nil
}
