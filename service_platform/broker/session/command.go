package session

import (
	"encoding/json"
	"hash/fnv"
	"strings"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// toSubscribers makes of a message in a log what those get who subscribe: of a command that was released, the command on
// its own topic, and node is where its device is. It gives false for a command as it was said: it reaches nobody before
// its turn has come.
func toSubscribers(m *message.Message) (node string, ok bool) {
	s := string(m.Subject)
	switch {
	case strings.HasPrefix(s, "device."):
		_, rest, _ := strings.Cut(s[len("device."):], ".")
		rest, is := strings.CutPrefix(rest, "command.")
		return "", !is || strings.Count(rest, ".") != 1
	case strings.HasPrefix(s, "service_platform.command.release."):
		if of, topic, is := serviceplatform.CommandRelease(m.Subject); is {
			m.Subject = topic
			return of, true
		}
	}
	return "", true
}

// commandOf is a command's mark in queues: never zero, and mostly its own.
func commandOf(topic message.Subject) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(topic)) // a hash takes everything
	return max(h.Sum64(), 1)
}

// owes says whether the session still has a command for its client, or has had it acknowledged last. Released once more it
// need not be delivered once more. The store's mutex is held.
func (x *Session) owes(command uint64) (owed, done bool) {
	_, owed = x.commands[command]
	return owed, !owed && x.commanded == command
}

// device says whether the session is that device's own.
func (x *Session) device(of string) bool { return x.rec.Who.Mount == "" && x.rec.Who.Identity == of }

// receipt tells how far a command came, in the commit with which that was found out. The store's mutex is held.
func (s *Store) receipt(tx component.Tx, m *message.Message, result, detail string) error {
	r := Receipt(m, result)
	r.Detail, r.Node, r.Version = detail, s.env.Node, s.Version()
	if result == serviceplatform.ReceiptUnsubscribed {
		note(&s.deaf, r.Device, true)
	}
	out, err := ReceiptMessage(&r, m)
	if err != nil {
		return err
	}
	return tx.Say(out)
}

// Deaf says whether it was told of a device that it does not want its commands, and forgets it.
func (s *Store) Deaf(of string) bool {
	s.mu.RLock()
	is := s.deaf[of]
	s.mu.RUnlock()
	if !is {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.deaf, of)
	return true
}

// Receipt begins what is told of a command that is delivered as m.
func Receipt(m *message.Message, result string) serviceplatform.Receipt {
	return serviceplatform.Receipt{Device: strings.Clone(m.Subject.Token(1)), Release: m.ID, Name: strings.Clone(m.Subject.Token(3)), ID: strings.Clone(m.Subject.Token(4)), Result: result, QoS: m.QoS}
}

// ReceiptMessage is the message that tells it, as what follows from m.
func ReceiptMessage(r *serviceplatform.Receipt, m *message.Message) (*message.Message, error) {
	data, err := json.Marshal(r)
	return &message.Message{Subject: serviceplatform.ReceiptSubject(r.Device), Device: r.Device, ContentType: "application/json", Data: data,
		Trace: message.Trace{ID: m.Trace.ID, Flags: m.Trace.Flags}, Cause: m.ID, Depth: min(m.Depth+1, message.DepthMax)}, err
}

// offer takes a released command to the sessions that want it, and tells where none of its device's does. The store's mutex
// is held.
func (s *Store) offer(tx component.Tx, m *message.Message, list []heard, node string) ([]heard, error) {
	mark, of, wanted := commandOf(m.Subject), m.Subject.Token(1), false
	kept := list[:0]
	for _, h := range list {
		if !h.x.device(of) {
			kept = append(kept, h)
			continue
		}
		h.o.Command = mark
		if !h.x.mayHear(m.Subject, h.o.AWS) || h.x.client == nil && (h.o.QoS == 0 || !h.x.Kept()) {
			continue
		}
		wanted = true
		if h.o.QoS > 0 && h.x.Kept() {
			owed, done := h.x.owes(mark)
			if done {
				if err := s.receipt(tx, m, serviceplatform.ReceiptDelivered, ""); err != nil {
					return nil, err
				}
			}
			if owed || done {
				continue
			}
		}
		kept = append(kept, h)
	}
	if wanted || node != s.env.Node {
		return kept, nil
	}
	return kept, s.receipt(tx, m, serviceplatform.ReceiptUnsubscribed, "it has not subscribed to "+m.Subject.Topic()+", or policy keeps it from that")
}
