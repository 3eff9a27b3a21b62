package broker

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// doubtful is a door that takes each message and then has it that it was not stored, as long as there is a reason.
type doubtful struct {
	bus.Appender
	why atomic.Pointer[message.Rejection]
}

func (d *doubtful) Append(ctx context.Context, m *message.Message, to bus.Completion, token uint64) error {
	why := d.why.Load()
	if why == nil || m.Type != "device.telemetry.v1" {
		return d.Appender.Append(ctx, m, to, token)
	}
	go func() {
		to.Appended(token, bus.Position{}, why)
		to.Settled()
	}()
	return nil
}

// A message that was taken and then was not stored is never acknowledged as if it were. An MQTT 5 client is told what no second
// attempt will change; any other one loses its connection, and says the message again: of QoS 2 with the same identifier, which
// means nothing by then.
func TestAMessageThatIsNotStoredAfterAllIsNotAcknowledged(t *testing.T) {
	r := newRig(t, nil)
	door, err := r.b.door(t.Context(), message.Device)
	if err != nil {
		t.Fatal(err)
	}
	late := &doubtful{Appender: door}
	r.b.doors.Store(message.Device, bus.Appender(late))
	for i, x := range []struct {
		v    packet.Version
		why  message.Reason
		qos  byte
		want packet.ReasonCode // zero where the connection ends
	}{
		{packet.V5, message.MessageTooLarge, 1, packet.ImplementationSpecific},
		{packet.V5, message.StorageLow, 1, packet.QuotaExceeded},
		{packet.V5, message.StorageLow, 2, packet.QuotaExceeded},
		{packet.V5, message.BusUnavailable, 1, 0},
		{packet.V5, message.BusUnavailable, 2, 0},
		{packet.V311, message.StorageLow, 1, 0},
		{packet.V311, message.StorageLow, 2, 0},
	} {
		t.Run(fmt.Sprintf("%s, %s, QoS %d", x.v, x.why, x.qos), func(t *testing.T) {
			id := fmt.Sprint("d-", i)
			answer := packet.PUBACK
			if x.qos == 2 {
				answer = packet.PUBREC
			}
			say := func(dup bool) *peer {
				p := r.dial(r.plain)
				c := packet.Connect{Version: x.v, ClientID: id}
				c.Properties.Set(packet.SessionExpiry, 60)
				p.connect(c)
				p.write(publishAs(x.v, packet.Publish{Topic: "device/" + id + "/telemetry", Payload: []byte(id), QoS: x.qos, ID: 7, Dup: dup}))
				return p
			}
			late.why.Store(message.Reject(x.why, errors.New("it is not there")).(*message.Rejection))
			p := say(false)
			if x.want == 0 {
				if b := p.ended(); len(b) > 0 && packet.Type(b[0]>>4) == answer {
					t.Errorf("%s came", answer)
				}
			} else if code := p.answer(answer, 7); code != x.want {
				t.Errorf("it is answered with %s; want %s", code, x.want)
			}
			p.Close()
			r.refusedWith(x.why, "it is not there")
			late.why.Store(nil)
			if code := say(true).answer(answer, 7); code != 0 {
				t.Errorf("said again it is answered with %s", code)
			}
		})
	}
	if got := len(r.stored(7)); got != 7 {
		t.Errorf("%d messages are stored; want 7, each once", got)
	}
}
