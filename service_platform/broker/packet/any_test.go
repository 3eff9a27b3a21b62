package packet

import (
	"fmt"
	"math/rand/v2"
)

// parse reads one whole packet of any type.
func parse(b []byte, v Version) (any, error) {
	h, start, total, _, err := Frame(b, 0)
	if err != nil {
		return nil, err
	}
	if total == 0 {
		return nil, malformed("", "incomplete")
	}
	body := b[start:total]
	switch h.Type {
	case CONNECT:
		p := new(Connect)
		return p, p.Decode(h, body)
	case CONNACK:
		p := new(Connack)
		return p, p.Decode(h, body, v)
	case PUBLISH:
		p := new(Publish)
		return p, p.Decode(h, body, v)
	case PUBACK, PUBREC, PUBREL, PUBCOMP:
		p := new(Ack)
		return p, p.Decode(h, body, v)
	case SUBSCRIBE:
		p := new(Subscribe)
		return p, p.Decode(h, body, v)
	case UNSUBSCRIBE:
		p := new(Unsubscribe)
		return p, p.Decode(h, body, v)
	case SUBACK, UNSUBACK:
		p := new(SubAnswer)
		return p, p.Decode(h, body, v)
	case DISCONNECT:
		p := new(Disconnect)
		return p, p.Decode(h, body, v)
	case AUTH:
		p := new(Auth)
		return p, p.Decode(h, body, v)
	}
	return &ping{h.Type}, DecodePing(h, body)
}

func write(dst []byte, p any, v Version) []byte {
	switch p := p.(type) {
	case *Connect:
		return p.Append(dst)
	case *Auth:
		return p.Append(dst)
	case *ping:
		if p.Type == PINGREQ {
			return AppendPingreq(dst)
		}
		return AppendPingresp(dst)
	case interface{ Append([]byte, Version) []byte }:
		return p.Append(dst, v)
	}
	panic(fmt.Sprintf("%T", p))
}

func size(p any, v Version) int {
	switch p := p.(type) {
	case interface{ Size(Version) int }:
		return p.Size(v)
	case interface{ Size() int }:
		return p.Size()
	}
	return 2
}

// plain is a copy in which what means the same is the same: no bytes and nil bytes, room and no room.
func plain(p any) any {
	tidy := func(p *Properties) {
		p.normalise()
		if len(p.User) == 0 {
			p.User = nil
		}
		if len(p.SubscriptionIDs) == 0 {
			p.SubscriptionIDs = nil
		}
	}
	empty := func(b *[]byte) {
		if len(*b) == 0 {
			*b = nil
		}
	}
	switch p := p.(type) {
	case *Connect:
		c := *p
		tidy(&c.Properties)
		empty(&c.Password)
		if p.Will != nil {
			w := *p.Will
			tidy(&w.Properties)
			empty(&w.Payload)
			c.Will = &w
		}
		return c
	case *Connack:
		c := *p
		tidy(&c.Properties)
		return c
	case *Publish:
		c := *p
		tidy(&c.Properties)
		empty(&c.Payload)
		return c
	case *Ack:
		c := *p
		tidy(&c.Properties)
		return c
	case *Subscribe:
		c := *p
		tidy(&c.Properties)
		return c
	case *Unsubscribe:
		c := *p
		tidy(&c.Properties)
		return c
	case *SubAnswer:
		c := *p
		tidy(&c.Properties)
		return c
	case *Disconnect:
		c := *p
		tidy(&c.Properties)
		return c
	case *Auth:
		c := *p
		tidy(&c.Properties)
		return c
	}
	return p
}

// random makes any packet that v has.
func random(r *rand.Rand, v Version) any {
	types := 14
	if v == V5 {
		types = 15
	}
	switch t := Type(1 + r.IntN(types)); t {
	case CONNECT:
		c := &Connect{Version: v, CleanStart: flip(r), KeepAlive: uint16(r.Uint32()), ClientID: text(r), Properties: randomProperties(r, v, CONNECT)}
		if flip(r) {
			c.Will = &Will{QoS: byte(r.IntN(3)), Retain: flip(r), Topic: "w" + text(r), Payload: blob(r), Properties: randomProperties(r, v, will)}
		}
		if flip(r) {
			c.HasUserName, c.UserName = true, text(r)
		}
		if flip(r) && (c.HasUserName || v == V5) {
			c.HasPassword, c.Password = true, blob(r)
		}
		return c
	case CONNACK:
		c := &Connack{SessionPresent: flip(r), Properties: randomProperties(r, v, CONNACK)}
		if flip(r) && v == V5 {
			c.SessionPresent, c.Code = false, code(r, t)
		}
		if v != V5 && !c.SessionPresent {
			c.Code = []ReasonCode{Success, UnsupportedProtocolVersion, ClientIDNotValid, ServerUnavailable, BadUserNameOrPassword, NotAuthorized}[r.IntN(6)]
		}
		return c
	case PUBLISH:
		p := &Publish{QoS: byte(r.IntN(3)), Retain: flip(r), Topic: "t" + text(r), Payload: blob(r), Properties: randomProperties(r, v, PUBLISH)}
		if p.QoS > 0 {
			p.ID, p.Dup = packetIDOf(r), flip(r)
		}
		return p
	case PUBACK, PUBREC, PUBREL, PUBCOMP:
		a := &Ack{Type: t, ID: packetIDOf(r), Properties: randomProperties(r, v, t)}
		if v == V5 {
			a.Code = code(r, t)
		}
		return a
	case SUBSCRIBE:
		s := &Subscribe{ID: packetIDOf(r), Properties: randomProperties(r, v, t)}
		for range 1 + r.IntN(4) {
			sub := Subscription{Filter: "f" + text(r), QoS: byte(r.IntN(3))}
			if v == V5 {
				sub.NoLocal, sub.RetainAsPublished, sub.RetainHandling = flip(r), flip(r), byte(r.IntN(3))
			}
			s.Subscriptions = append(s.Subscriptions, sub)
		}
		return s
	case UNSUBSCRIBE:
		u := &Unsubscribe{ID: packetIDOf(r), Properties: randomProperties(r, v, t)}
		for range 1 + r.IntN(4) {
			u.Filters = append(u.Filters, "f"+text(r))
		}
		return u
	case SUBACK, UNSUBACK:
		s := &SubAnswer{Type: t, ID: packetIDOf(r), Properties: randomProperties(r, v, t)}
		for range 1 + r.IntN(4) {
			switch {
			case v == V5:
				s.Codes = append(s.Codes, code(r, t))
			case t == SUBACK:
				s.Codes = append(s.Codes, []ReasonCode{0, 1, 2, 0x80}[r.IntN(4)])
			}
		}
		return s
	case DISCONNECT:
		d := &Disconnect{Properties: randomProperties(r, v, t)}
		if v == V5 {
			d.Code = code(r, t)
		}
		return d
	case AUTH:
		a := &Auth{Code: code(r, t), Properties: randomProperties(r, v, t)}
		a.Properties.SetString(AuthenticationMethod, "m"+text(r))
		return a
	default:
		return &ping{t}
	}
}

// randomProperties has values that are not empty, since the other codecs cannot tell empty from none, and one
// subscription identifier at most, since one of them keeps no more.
func randomProperties(r *rand.Rand, v Version, where Type) (p Properties) {
	if v != V5 {
		return p
	}
	for id := PropertyID(1); id <= propertyMax; id++ {
		def := propertyTable[id]
		if def.kind == kindNone || def.in&(1<<where) == 0 || r.IntN(3) > 0 {
			continue
		}
		switch def.kind {
		case kindFlag:
			p.Set(id, uint32(r.IntN(2)))
		case kindUint16:
			p.Set(id, 1+uint32(r.IntN(65535)))
		case kindUint32:
			p.Set(id, 1+r.Uint32N(1<<31))
		case kindLength:
			p.Set(id, 1+r.Uint32N(LengthMax))
		case kindString:
			p.SetString(id, "s"+text(r))
		case kindBinary:
			if id == CorrelationData {
				p.CorrelationData = append(blob(r), 1)
			} else {
				p.AuthData = append(blob(r), 1)
				p.SetString(AuthenticationMethod, "m")
			}
		case kindPair:
			for range 1 + r.IntN(3) {
				p.User = append(p.User, UserProperty{text(r), text(r)})
			}
		}
	}
	return p
}

func flip(r *rand.Rand) bool               { return r.IntN(2) == 0 }
func packetIDOf(r *rand.Rand) uint16       { return uint16(1 + r.IntN(65535)) }
func code(r *rand.Rand, t Type) ReasonCode { return ReasonCode(allowed[t][r.IntN(len(allowed[t]))]) }

func text(r *rand.Rand) string {
	letters := []rune("ab/ zäß東\U0001F680-0")
	s := make([]rune, r.IntN(40))
	for i := range s {
		s[i] = letters[r.IntN(len(letters))]
	}
	return string(s)
}

func blob(r *rand.Rand) []byte {
	b := make([]byte, r.IntN(300))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}
