package rule

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
	"github.com/naru-platform/naru/service_platform/rule/sql"
)

// evaluation is a message as SQL sees it. What is random comes from the message's id and the rule's name, and the time is
// when the message was accepted, so that the same rule makes the same of the same message again.
type evaluation struct {
	in   sql.Input
	seed [32]byte
	rand *rand.ChaCha8
}

var evaluations = sync.Pool{New: func() any {
	v := &evaluation{}
	v.in.NewUUID, v.in.Rand = v.newUUID, v.float
	return v
}}

// evaluate gives the message to SQL; release must be called.
func evaluate(m *message.Message) *evaluation {
	v := evaluations.Get().(*evaluation)
	v.in.Topic = m.Subject.Topic()
	v.in.ClientID = message.ClientOf(m.Source)
	v.in.TraceID = m.Trace.ID.String()
	v.in.Payload = m.Data
	v.in.Time = m.Recorded()
	v.in.ContentType, v.in.CorrelationData, v.in.UTF8 = m.ContentType, m.Correlation, m.Text
	if m.ReplyTo != "" {
		v.in.ResponseTopic = m.ReplyTo.Topic()
	}
	if !m.Expires.IsZero() {
		left := uint32(max(0, m.Expires.Sub(m.Recorded())) / time.Second)
		v.in.MessageExpiry = &left
	}
	for name, value := range m.Properties.All() {
		v.in.User = append(v.in.User, sql.UserProperty{Name: name, Value: value})
	}
	copy(v.seed[:], m.ID[:])
	return v
}

func (v *evaluation) release() {
	user := v.in.User[:0]
	clear(v.in.User)
	v.in = sql.Input{NewUUID: v.newUUID, Rand: v.float}
	v.in.User, v.rand = user, nil
	evaluations.Put(v)
}

// of gives the input of one rule; the message's topic is as the rule spells it. ok is false where that spelling has none.
func (v *evaluation) of(r *Rule, m *message.Message) (in *sql.Input, ok bool) {
	v.rand = nil
	h := fnv.New128a()
	_, _ = h.Write([]byte(r.Name)) // never fails
	h.Sum(v.seed[:16])
	if !r.aws {
		return &v.in, true
	}
	spelled := v.in
	spelled.Topic, ok = device.ShadowTopic(m.Subject)
	return &spelled, ok
}

func (v *evaluation) source() *rand.ChaCha8 {
	if v.rand == nil {
		v.rand = rand.NewChaCha8(v.seed)
	}
	return v.rand
}

func (v *evaluation) float() float64 { return float64(v.source().Uint64()>>11) / (1 << 53) }

func (v *evaluation) newUUID() string {
	var u [16]byte
	binary.BigEndian.PutUint64(u[:], v.source().Uint64())
	binary.BigEndian.PutUint64(u[8:], v.source().Uint64())
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}
