// Package session keeps what a broker owes to its clients beyond their connections: sessions with their subscriptions,
// the messages that wait for them, the handshakes of QoS 2, retained messages and wills.
//
// A message's payload is stored once, in the log. A session's queue holds references, with the subscription's options as
// they were when the message came; so what a client is owed is on disk, in the same commit as the position up to which
// the logs were heard, and a client that is slow or away slows nobody. A session pushes back to no door: beyond its
// limits its oldest messages die as session_limit.
//
// A queue's numbers only grow, and a packet identifier is its message's number modulo 65,535, plus one. So the identifiers
// of what is in flight outlive a crash without being written down (MQTT-4.4.0-1).
package session

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/trie"
	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// Never is an expiry that never comes (MQTT 5 §3.1.2.11.2).
const Never = 1<<32 - 1

// Limits bound what clients can make a broker remember.
type Limits struct {
	Expiry        time.Duration // the longest a session outlives its connection; also of MQTT 3.1.1
	Messages      int           // that wait for one session
	Bytes         int64         // of them
	Subscriptions int           // of one session
	Sessions      int           // that outlive their connections
	Retained      int           // messages
}

// Caps are one session's own limits, by the way its client came in; where nothing is said, the store's count.
type Caps struct {
	Expiry        *uint32 `json:"expiry,omitempty"` // seconds
	Messages      int     `json:"messages,omitempty"`
	Bytes         int64   `json:"bytes,omitempty"`
	Subscriptions int     `json:"subscriptions,omitempty"`
}

// Client is a session's connection. Its methods are called by any goroutine; only TakenOver may block.
type Client interface {
	// Deliver hands over a message that is owed to nobody: QoS 0, or of a session that ends with its connection.
	Deliver(m *message.Message, o Options)
	// Wake says that the queue has more.
	Wake()
	// Busy says that the client has enough to do for now: in a shared subscription others are preferred. It is asked under the
	// store's lock.
	Busy() bool
	// TakenOver says that the session has another connection now. It returns when the client handles nothing more of it.
	TakenOver()
	// HungUp says whether the client has closed its connection, though that may not have been read yet. It must not block.
	HungUp() bool
	// Deleted says that the client's device was deleted, and its session with it.
	Deleted()
}

// Hearer decides what a session's client may have, also while it is away. aws is the spelling.
type Hearer interface {
	Hears(s message.Subject, aws bool) bool
}

// Options are how a message goes to a client, from the subscriptions it matched.
type Options struct {
	QoS    byte
	Retain bool
	IDs    []uint32 // subscription identifiers
	AWS    bool     // the subscription spells twins as AWS IoT does, and so is the message's topic spelled
	// Command is the mark of a command to the device whose session it is; zero for another message.
	Command uint64
	// Lasting says that the message is a copy that nobody changes; else it is good for the call only.
	Lasting bool
	// Drawn is where the message lies, of QoS 1 for a member of a shared subscription that keeps no session; else nil. Where the
	// client ends before it has acknowledged it, it goes to another member by [Store.Redraw] (MQTT 5 §4.8.2).
	Drawn *Drawn
}

// Subscription is what a session hears.
type Subscription struct {
	Filter  string            `json:"filter"` // as the client gave it
	Share   string            `json:"share,omitempty"`
	Select  []message.Pattern `json:"select"`
	QoS     byte              `json:"qos"`
	NoLocal bool              `json:"no_local,omitempty"`
	// AsPublished keeps the retain flag (MQTT 5 §3.8.3.1).
	AsPublished bool `json:"retain_as_published,omitempty"`
	// Retained is the retain handling: 0 sends retained messages, 1 only for a new subscription, 2 never.
	Retained byte   `json:"retain_handling,omitempty"`
	ID       uint32 `json:"id,omitempty"` // zero for none
	// AWS says that the filter spells twins as AWS IoT does: it hears what has a topic in that spelling.
	AWS bool `json:"aws,omitempty"`
	// Hidden is how many tokens a mount point puts in front; a `$` behind them is not seen by wildcards.
	Hidden int `json:"hidden,omitempty"`

	of *Session
}

// Who names a session: nobody takes over another identity's.
type Who struct {
	Mount    string `json:"mount,omitempty"`
	Identity string `json:"identity,omitempty"`
	ClientID string `json:"client_id"`
}

// Key is the name in one word.
func (w Who) Key() string { return w.Mount + "\x00" + w.Identity + "\x00" + w.ClientID }

// record is what the store keeps of a session.
type record struct {
	ID     message.ID               `json:"id"`
	Who    Who                      `json:"who"`
	Expiry uint32                   `json:"expiry"` // seconds
	Gone   time.Time                `json:"gone"`   // when its connection ended; zero while it is there
	Subs   map[string]*Subscription `json:"subscriptions,omitempty"`
	Caps   Caps                     `json:"caps,omitzero"`
	// Skip is how far the node that it comes from had heard logs that are not heard so far here.
	Skip []serviceplatform.Place `json:"skip,omitempty"`
}

// Session is one client's, whether it outlives the connection or not.
type Session struct {
	store *Store
	kept  atomic.Bool // it outlives its connection
	rec   record
	name  string // see Name

	// Guarded by the store's mutex.
	client   Client
	hearer   Hearer // nil where it is not known; then the client is asked
	epoch    uint64 // of the connection
	head     uint64 // the oldest number that may be owed
	next     uint64
	sent     uint64 // up to which number all may have been sent
	noted    uint64 // what of that is on disk
	dropped  uint64 // up to which number all was looked at that was to be given up
	count    int
	bytes    int64
	received map[uint16]message.ID // inbound QoS 2 messages whose PUBREL has not come
	pending  map[uint16]bool       // of them, those that are not known to be in the log
	released map[uint16]message.ID // whose PUBREL came before the log was heard so far
	ended    bool
	moved    bool              // it goes on at another node; set with ended
	shipped  uint64            // up to which number the neighbours have its queue, where there are any
	commands map[uint64]uint64 // those in the queue, by their marks
	// commanded is the mark of the command that was acknowledged last.
	commanded uint64
	settled   chan struct{} // closed when nothing is pending; nil where nobody waits
}

// Store is a broker's sessions. Hear is for the component's handlers; everything else is for any goroutine.
type Store struct {
	env    component.Env
	limits Limits
	tell   func(Who, message.Reason, error)
	taken  func(key string)
	cache  *cache
	clock  atomic.Uint64 // of presence

	cluster *cluster // nil where the node is alone

	tookMu sync.Mutex
	took   []*Drawn // what members have in hand no more, and is to be struck off

	mu       sync.RWMutex
	loaded   bool
	deaf     map[string]bool     // devices that were told not to want their commands
	sessions map[string]*Session // by key
	kept     int                 // of them, those that outlive their connections
	drawn    map[string]*Session // of these, groups of shared subscriptions that this node draws for
	subs     trie.Trie[*Subscription]
	groups   map[string]*group
	retained int
	left     []*Drawn                             // what members had in hand when the process before ended
	standing map[message.Subject]*message.Message // what is in no log; see Stand
	swept    time.Time                            // when those that expired were forgotten
	epochs   uint64
	heard    map[part]uint64 // how far
	awaited  map[part]uint64 // what is in the log, and must be heard before a subscription is answered
	caughtUp chan struct{}   // closed when all of it is; nil where nothing is awaited
}

// New makes a store. tell is told of what died before it could be delivered; it must not block.
func New(env component.Env, l Limits, tell func(Who, message.Reason, error)) *Store {
	return &Store{env: env, limits: l, tell: tell, taken: func(string) {}, cache: newCache(64 << 20), sessions: map[string]*Session{}, drawn: map[string]*Session{}, groups: map[string]*group{}, heard: map[part]uint64{}, awaited: map[part]uint64{}}
}

// WhenTaken has f told of each connection whose place another one has taken, here or between any two nodes, by the session's
// key. It comes before everything else; f must not block.
func (s *Store) WhenTaken(f func(key string)) { s.taken = f }

// takenFrom tells of it, unless the client had left by itself: then nobody fights for its place.
func (s *Store) takenFrom(c Client, key string) (told bool) {
	if c.HungUp() {
		return false
	}
	s.taken(key)
	return true
}

// The keys of the store; those of one with neighbours are in cluster.go.
const (
	kindSession  = 's' // session id
	kindQueue    = 'q' // session id, number
	kindSent     = 'n' // session id: sent, and where there is one, commanded
	kindReceived = 'r' // session id, packet id
	kindReleased = 'd' // session id, packet id
	kindRetained = 'R' // subject
	kindWill     = 'w' // will id
	kindOnline   = 'o' // device
)

func key(kind byte, id message.ID, rest ...byte) []byte {
	return append(append(append(make([]byte, 0, 1+16+len(rest)), kind), id[:]...), rest...)
}

func queueKey(id message.ID, n uint64) []byte {
	return binary.BigEndian.AppendUint64(key(kindQueue, id), n)
}

func packetKey(kind byte, id message.ID, packet uint16) []byte {
	return binary.BigEndian.AppendUint16(key(kind, id), packet)
}

// load reads the store, once, in the handlers' goroutine.
func (s *Store) load(tx component.Tx) error {
	if s.loaded {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// It begins anew where an earlier attempt failed midway.
	s.sessions, s.kept, s.subs, s.groups, s.retained = map[string]*Session{}, 0, trie.Trie[*Subscription]{}, map[string]*group{}, 0
	s.drawn = map[string]*Session{}
	if s.cluster != nil {
		if err := s.cluster.load(tx); err != nil {
			return fmt.Errorf("read what the neighbours said: %w", err)
		}
		for _, p := range tx.Heard() {
			s.heard[part{p.Log, p.Generation, p.Partition}] = p.Sequence
		}
	}
	tx = s.writing(tx)
	byID := map[message.ID]*Session{}
	var bad error
	err := tx.Scan([]byte{kindSession}, func(_, v []byte) bool {
		x := &Session{store: s, head: 1, next: 1}
		if bad = json.Unmarshal(v, &x.rec); bad != nil {
			return false
		}
		if c := s.cluster; c != nil {
			k := x.rec.Who.Key()
			c.shares.kinship(x.rec.ID, x.rec.Who, x.rec.Gone.IsZero(), x.rec.shared())
			if of := c.claims[k]; of == nil {
				c.alone = append(c.alone, x)
			} else if of.Owner != c.node {
				return true
			}
		}
		x.named()
		x.kept.Store(true)
		byID[x.rec.ID] = x
		s.sessions[x.rec.Who.Key()] = x
		s.count(x, 1)
		for _, sub := range x.rec.Subs {
			sub.of = x
			s.insert(sub)
		}
		return true
	})
	if err = errors.Join(err, bad); err != nil {
		return fmt.Errorf("read the sessions: %w", err)
	}
	err = tx.Scan([]byte{kindQueue}, func(k, v []byte) bool {
		if x := byID[message.ID(k[1:17])]; x != nil {
			x.readQueue(k, v)
		}
		return true
	})
	err = errors.Join(err, tx.Scan([]byte{kindSent}, func(k, v []byte) bool {
		if x := byID[message.ID(k[1:17])]; x != nil {
			x.readSent(v)
		}
		return true
	}))
	for kind, to := range map[byte]func(*Session) *map[uint16]message.ID{
		kindReceived: func(x *Session) *map[uint16]message.ID { return &x.received },
		kindReleased: func(x *Session) *map[uint16]message.ID { return &x.released },
	} {
		err = errors.Join(err, tx.Scan([]byte{kind}, func(k, v []byte) bool {
			if x := byID[message.ID(k[1:17])]; x != nil {
				readPacket(to(x), k, v)
			}
			return true
		}))
	}
	err = errors.Join(err, tx.Scan([]byte{kindRetained}, func(_, _ []byte) bool { s.retained++; return true }))
	if err != nil {
		return fmt.Errorf("read the sessions: %w", err)
	}
	for _, x := range byID {
		if err := x.rest(tx); err != nil {
			return err
		}
	}
	if err := s.readHands(tx); err != nil {
		return err
	}
	if s.cluster != nil {
		if err := s.foundLeft(tx); err != nil {
			return err
		}
		s.resume(tx)
	}
	s.loaded = true
	return s.ship(tx)
}

// note writes into a map that may not be there yet.
func note[K comparable, V any](m *map[K]V, k K, v V) {
	if *m == nil {
		*m = map[K]V{}
	}
	(*m)[k] = v
}

// changeSoon changes the store, when it has been read. It does not end before f has, or the component: f gives results to
// its caller, and what it did would not be taken back. The neighbours hear of it soon.
func (s *Store) changeSoon(ctx context.Context, f func(tx component.Tx) error) error {
	return s.env.Change(context.WithoutCancel(ctx), func(tx component.Tx) error {
		if err := s.load(tx); err != nil {
			return err
		}
		return s.told(tx, f)
	})
}

// told has the neighbours told of what f does, if it succeeds.
func (s *Store) told(tx component.Tx, f func(tx component.Tx) error) error {
	if s.cluster == nil {
		return f(tx)
	}
	start, number := s.cluster.start, s.cluster.number
	tx = s.writing(tx)
	err := f(tx)
	if err == nil {
		s.tellCasual(tx.(*writing))
		err = s.ship(tx)
	}
	if err != nil {
		s.mu.Lock()
		s.cluster.start, s.cluster.number = start, number // nobody hears of it
		for _, key := range tx.(*writing).unsaid {
			s.cluster.shares.said[key] = -1
			s.cluster.shares.shifted[key] = struct{}{}
		}
		s.mu.Unlock()
	}
	return err
}

// change changes the store for what is said to a client: where there are neighbours, it is theirs to go on with when it
// returns. Where ctx ends before that, it is on disk here, and may be there.
func (s *Store) change(ctx context.Context, f func(tx component.Tx) error) error {
	if s.cluster == nil {
		return s.changeSoon(ctx, f)
	}
	told := make(chan error, 1)
	err := s.changeSoon(ctx, func(tx component.Tx) error {
		w := tx.(*writing)
		w.then = append(w.then, func(err error) { told <- err })
		return f(tx)
	})
	if err != nil {
		return err
	}
	select {
	case err := <-told:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Load reads what is kept. Until then, or until something is heard, a store knows of no session.
func (s *Store) Load(ctx context.Context) error {
	return s.changeSoon(ctx, func(component.Tx) error { return nil })
}

// save writes the session down. The store's mutex is held.
func (x *Session) save(tx component.Tx) error {
	x.rec.Skip = slices.DeleteFunc(x.rec.Skip, func(p serviceplatform.Place) bool { return x.store.heard[partOf(p)] >= p.Sequence })
	v, err := json.Marshal(&x.rec)
	if err == nil {
		tx.Set(key(kindSession, x.rec.ID), v)
	}
	return err
}

// Kept says whether the session outlives its connection.
func (x *Session) Kept() bool { return x.kept.Load() }

// Judged sets what the session's client may have from now on. What it may not is not chosen for it in a shared
// subscription, and does not wait for it; whoever sends has to ask all the same, since that may change while it waits.
func (x *Session) Judged(h Hearer) {
	x.store.mu.Lock()
	defer x.store.mu.Unlock()
	x.hearer = h
}

func (x *Session) mayHear(s message.Subject, aws bool) bool {
	return x.hearer == nil || x.hearer.Hears(s, aws)
}

// Name is what its messages carry, so that they are known again: the key, and the ID, since a message of the session that
// had the key before says nothing of this one.
func (x *Session) Name() string { return x.name }

func (x *Session) named() { x.name = x.rec.Who.Key() + "\x00" + x.rec.ID.String() }

// Who is whose it is.
func (x *Session) Who() Who { return x.rec.Who }

// Key is who it belongs to, in one word.
func (x *Session) Key() string { return x.rec.Who.Key() }

// ID is the session's own, which one that follows under the same name does not share.
func (x *Session) ID() message.ID { return x.rec.ID }

// Ended says that the session is over, and another one may have its name.
func (x *Session) Ended() bool {
	x.store.mu.RLock()
	defer x.store.mu.RUnlock()
	of := x.store.claimedOf(x)
	return x.ended && !x.moved || of != nil && of.Next != "" && of.Clean
}

// claimedOf is the claim of the session's client, where another node has the client or wants it; else nil. The store's
// mutex is held.
func (s *Store) claimedOf(x *Session) *claim {
	if s.cluster == nil {
		return nil
	}
	of := s.cluster.claims[x.rec.Who.Key()]
	if of == nil || of.Owner == s.cluster.node && (of.Next == "" || of.Next == s.cluster.node) {
		return nil
	}
	return of
}

// Resumed says whether the session goes on with another connection than the one of the epoch, here or elsewhere.
func (x *Session) Resumed(epoch uint64) bool {
	x.store.mu.RLock()
	defer x.store.mu.RUnlock()
	if of := x.store.claimedOf(x); x.moved || of != nil && of.Owner == x.store.cluster.node && !of.Clean {
		return true
	}
	return !x.ended && x.client != nil && x.epoch != epoch
}

// Expiry is for how many seconds it does.
func (x *Session) Expiry() uint32 {
	x.store.mu.RLock()
	defer x.store.mu.RUnlock()
	return x.rec.Expiry
}

// Connect gives a client its session: the one it had, or a new one where clean is set or it had none. The connection it
// had is told, wherever it is. expiry is in seconds; the limit cuts it.
func (s *Store) Connect(ctx context.Context, who Who, caps Caps, clean bool, expiry uint32, c Client) (x *Session, epoch uint64, present bool, err error) {
	for {
		if s.cluster != nil {
			if err := s.hold(ctx, who, clean, c); err != nil {
				return nil, 0, false, err
			}
		}
		x, epoch, present, err = s.connect(ctx, who, caps, clean, expiry, c)
		if errors.Is(err, errGiving) {
			continue
		}
		if err != nil {
			s.mu.Lock()
			s.release(who.Key())
			s.mu.Unlock()
		}
		return x, epoch, present, err
	}
}

// yet says that a client is still this node's, after hold. The store's mutex is held.
func (s *Store) yet(key string) error {
	switch c := s.cluster; {
	case c == nil || c.mine(key):
		return nil
	case c.giving[key] && c.claims[key].Next == "":
		return errGiving
	}
	return errFormer
}

func (s *Store) connect(ctx context.Context, who Who, caps Caps, clean bool, expiry uint32, c Client) (x *Session, epoch uint64, present bool, err error) {
	expiry = min(expiry, s.expiryMax(caps))
	k := who.Key()
	s.mu.Lock()
	if err := s.yet(k); err != nil && s.loaded {
		s.mu.Unlock()
		return nil, 0, false, err
	}
	old := s.sessions[k]
	if s.loaded && expiry == 0 && (old == nil || !old.Kept()) { // nothing is written
		x = s.begin(who, caps, 0)
		epoch = s.attach(x, c)
		former := s.replace(old, x)
		s.mu.Unlock()
		former()
		return x, epoch, false, nil
	}
	s.mu.Unlock()
	former := func() {}
	err = s.change(ctx, func(tx component.Tx) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if err := s.yet(k); err != nil {
			return err
		}
		old := s.sessions[k]
		if old != nil && old.Kept() && !clean && !s.expired(old) {
			x, present = old, true
			x.rec.Expiry, x.rec.Caps, x.rec.Gone = expiry, caps, time.Time{}
			client := x.client
			epoch = s.attach(x, c)
			if client != nil {
				former = client.TakenOver
				s.takenFrom(client, k)
			}
			return x.save(tx) // with expiry 0 it lives as long as this connection, and its debts with it
		}
		if expiry > 0 && s.kept-len(s.drawn) >= s.limits.Sessions && (old == nil || !old.Kept()) {
			return message.Rejectf(message.SessionLimit, "%d sessions are kept, which is the limit; this one would outlive its connection", s.kept-len(s.drawn))
		}
		if old != nil && old.Kept() {
			s.unheard(old)
			if err := s.erase(tx, old); err != nil {
				return err
			}
		}
		x = s.begin(who, caps, expiry)
		epoch = s.attach(x, c)
		former = s.replace(old, x)
		if expiry == 0 {
			return nil
		}
		s.count(x, 1)
		return x.save(tx)
	})
	if err != nil {
		if x != nil { // it is on disk, and the client cannot be told so
			former()
			_, derr := x.Disconnect(context.WithoutCancel(ctx), epoch, nil)
			err = errors.Join(err, derr)
		}
		return nil, 0, false, err
	}
	former()
	return x, epoch, present, nil
}

// expiryMax is for how many seconds a session may outlive its connection.
func (s *Store) expiryMax(caps Caps) uint32 {
	if caps.Expiry != nil {
		return *caps.Expiry
	}
	return uint32(s.limits.Expiry / time.Second)
}

func (s *Store) begin(who Who, caps Caps, expiry uint32) *Session {
	// Its maps are made when they are written to: most clients never need them.
	x := &Session{store: s, head: 1, next: 1, rec: record{ID: message.NewID(s.env.Now()), Who: who, Expiry: expiry, Caps: caps}}
	x.named()
	x.kept.Store(expiry > 0)
	return x
}

func (s *Store) attach(x *Session, c Client) uint64 {
	s.epochs++
	x.client, x.epoch = c, s.epochs
	return x.epoch
}

// replace puts a new session in the place of the old one, which ends; its connection is to be told.
func (s *Store) replace(old, x *Session) (former func()) {
	former = func() {}
	if old != nil {
		if old.client != nil {
			former = old.client.TakenOver
			s.takenFrom(old.client, x.rec.Who.Key())
		}
		s.forget(old)
	}
	s.sessions[x.rec.Who.Key()] = x
	return former
}

// forget takes a session out of memory.
func (s *Store) forget(x *Session) {
	for _, sub := range x.rec.Subs {
		s.withdraw(sub)
	}
	x.client, x.ended = nil, true
	if s.sessions[x.rec.Who.Key()] == x {
		delete(s.sessions, x.rec.Who.Key())
		s.release(x.rec.Who.Key())
	}
}

// count notes that a session is kept here, or is not any more. The store's mutex is held.
func (s *Store) count(x *Session, n int) {
	s.kept += n
	switch k := x.rec.Who.Key(); {
	case !x.group():
	case n > 0:
		s.drawn[k] = x
	case s.drawn[k] == x:
		delete(s.drawn, k)
	}
}

// erase deletes all that is stored of a session.
func (s *Store) erase(tx component.Tx, x *Session) error {
	if !x.Kept() {
		return nil
	}
	s.count(x, -1)
	return wipe(tx, x.rec.ID)
}

func (s *Store) expired(x *Session) bool {
	return x.client == nil && x.rec.Expiry != Never && !x.rec.Gone.IsZero() &&
		s.env.Now().Sub(x.rec.Gone) >= time.Duration(x.rec.Expiry)*time.Second
}

// unheard tells of what still waits in a session that ends: because its time has passed, or its client begins anew. The store's mutex is held.
func (s *Store) unheard(x *Session) {
	switch {
	case x.count == 0:
	case s.expired(x):
		s.tell(x.rec.Who, message.SessionExpired, fmt.Errorf("its session ended %d s after its connection, with %d messages waiting", x.rec.Expiry, x.count))
	default:
		s.tell(x.rec.Who, message.SessionExpired, fmt.Errorf("its client began a new session, with %d messages waiting in the one before", x.count))
	}
}

// Disconnect says that a connection has ended. epoch is the connection's: where the session has another one by now,
// nothing happens. expiry, where not nil, is what the client said last (MQTT 5 §3.14.2.2.2). ends says that the
// session is over.
func (x *Session) Disconnect(ctx context.Context, epoch uint64, expiry *uint32) (ends bool, err error) {
	s := x.store
	s.mu.Lock()
	if x.epoch != epoch || x.ended {
		s.mu.Unlock()
		return false, nil
	}
	x.client, x.dropped = nil, 0 // handshakes that had begun may be given up from now on
	if !x.Kept() {
		s.forget(x)
		s.mu.Unlock()
		return true, nil
	}
	x.rec.Gone = s.env.Now()
	s.mu.Unlock()
	err = s.changeSoon(ctx, func(tx component.Tx) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if x.epoch != epoch || x.ended || x.client != nil {
			return nil
		}
		if expiry != nil {
			x.rec.Expiry = min(*expiry, s.expiryMax(x.rec.Caps))
		}
		x.keepSent(tx)
		if x.rec.Expiry == 0 {
			ends = true
			err := s.erase(tx, x)
			s.forget(x)
			return err
		}
		return x.save(tx)
	})
	return ends, err
}

// Succeeded says whether the session's name has a connection other than the one of the epoch.
func (x *Session) Succeeded(epoch uint64) bool {
	x.store.mu.RLock()
	defer x.store.mu.RUnlock()
	if x.moved || x.store.claimedOf(x) != nil {
		return true
	}
	now := x.store.sessions[x.rec.Who.Key()]
	return now != nil && now.client != nil && (now != x || now.epoch != epoch)
}

// Expire ends the sessions whose time has passed, and gives their names.
func (s *Store) Expire(ctx context.Context) (gone []Who, err error) {
	s.mu.RLock()
	any := false
	for _, x := range s.sessions {
		any = any || x.Kept() && s.expired(x)
	}
	s.mu.RUnlock()
	if !any {
		return nil, nil
	}
	err = s.changeSoon(ctx, func(tx component.Tx) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		gone = nil
		for _, x := range slices.Collect(maps.Values(s.sessions)) {
			if x.Kept() && s.expired(x) {
				s.unheard(x)
				if err := s.erase(tx, x); err != nil {
					return err
				}
				s.forget(x)
				gone = append(gone, x.rec.Who)
			}
		}
		return nil
	})
	return gone, err
}

// Show is a session as operators see it.
type Show struct {
	Who
	ID            message.ID      `json:"id"`
	Connected     bool            `json:"connected"`
	ExpirySeconds uint32          `json:"expiry_seconds"`
	Gone          *time.Time      `json:"disconnected_at,omitempty"`
	Waiting       int             `json:"waiting"`
	Bytes         int64           `json:"bytes"`
	Subscriptions []*Subscription `json:"subscriptions"`
}

// List shows all sessions, by name.
func (s *Store) List() []Show {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := make([]Show, 0, len(s.sessions))
	for _, k := range slices.Sorted(maps.Keys(s.sessions)) {
		x := s.sessions[k]
		if x.group() {
			continue
		}
		show := Show{Who: x.rec.Who, ID: x.rec.ID, Connected: x.client != nil, ExpirySeconds: x.rec.Expiry, Waiting: x.count, Bytes: x.bytes}
		if !x.rec.Gone.IsZero() {
			gone := x.rec.Gone
			show.Gone = &gone
		}
		for _, f := range slices.Sorted(maps.Keys(x.rec.Subs)) {
			sub := *x.rec.Subs[f]
			show.Subscriptions = append(show.Subscriptions, &sub)
		}
		list = append(list, show)
	}
	return list
}
