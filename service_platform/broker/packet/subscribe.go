package packet

// Subscription is one line of a SUBSCRIBE (§3.8.3.1).
type Subscription struct {
	Filter            string
	QoS               byte
	NoLocal           bool // MQTT 5
	RetainAsPublished bool // MQTT 5
	RetainHandling    byte // MQTT 5: 0, 1 or 2
}

// Subscribe asks for subscriptions (§3.8). Whether a filter is valid is told per filter by ValidTopicFilter, since
// SUBACK answers per filter.
type Subscribe struct {
	ID            uint16
	Properties    Properties
	Subscriptions []Subscription
}

// Decode reads the body of a SUBSCRIBE.
func (s *Subscribe) Decode(h Header, body []byte, v Version) error {
	*s = Subscribe{}
	r := reader{b: body, what: SUBSCRIBE}
	s.ID = packetID(&r, SUBSCRIBE)
	if v == V5 {
		s.Properties.decode(&r, SUBSCRIBE)
	}
	if r.err == nil && len(r.b) == 0 {
		return protocol("MQTT-3.8.3-2", "SUBSCRIBE without a topic filter")
	}
	for len(r.b) > 0 && r.err == nil {
		sub := Subscription{Filter: r.string("topic filter")}
		o := r.byte("subscription options")
		if r.err != nil {
			break
		}
		sub.QoS = o & 3
		switch {
		case v != V5 && (sub.QoS == 3 || o&0xFC != 0):
			return malformed("MQTT-3-8.3-4", "subscription options %08b; in 3.1.1 there is only QoS 0 to 2", o) // spelled so in 3.1.1
		case sub.QoS == 3:
			return protocol("", "subscription with QoS 3")
		case o&0xC0 != 0:
			return malformed("MQTT-3.8.3-5", "subscription options with reserved bits: %08b", o)
		}
		sub.NoLocal, sub.RetainAsPublished, sub.RetainHandling = o&4 != 0, o&8 != 0, o>>4&3
		if sub.RetainHandling == 3 {
			return protocol("", "subscription with retain handling 3")
		}
		if _, _, shared := ParseShare(sub.Filter); shared && sub.NoLocal {
			return protocol("MQTT-3.8.3-4", "shared subscription with No Local")
		}
		s.Subscriptions = append(s.Subscriptions, sub)
	}
	return r.end()
}

// Size is the length of the whole packet as Append will write it.
func (s *Subscribe) Size(v Version) int {
	n, _ := s.sizes(v)
	return packetSize(n)
}

func (s *Subscribe) sizes(v Version) (body, props int) {
	body, props = idSize(&s.Properties, v)
	for _, sub := range s.Subscriptions {
		body = min(body+fieldSize(len(sub.Filter))+1, tooMuch)
	}
	return body, props
}

// Append writes the packet.
func (s *Subscribe) Append(dst []byte, v Version) []byte {
	n, props := s.sizes(v)
	if n > LengthMax {
		return dst
	}
	dst = appendUint16(frame(dst, SUBSCRIBE, 2, n), s.ID)
	if v == V5 {
		dst = s.Properties.append(dst, props)
	}
	for _, sub := range s.Subscriptions {
		o := sub.QoS
		if v == V5 {
			if sub.NoLocal {
				o |= 4
			}
			if sub.RetainAsPublished {
				o |= 8
			}
			o |= sub.RetainHandling << 4
		}
		dst = append(appendString(dst, sub.Filter), o)
	}
	return dst
}

// Unsubscribe ends subscriptions (§3.10).
type Unsubscribe struct {
	ID         uint16
	Properties Properties
	Filters    []string
}

// Decode reads the body of an UNSUBSCRIBE.
func (u *Unsubscribe) Decode(h Header, body []byte, v Version) error {
	*u = Unsubscribe{}
	r := reader{b: body, what: UNSUBSCRIBE}
	u.ID = packetID(&r, UNSUBSCRIBE)
	if v == V5 {
		u.Properties.decode(&r, UNSUBSCRIBE)
	}
	if r.err == nil && len(r.b) == 0 {
		return protocol("MQTT-3.10.3-2", "UNSUBSCRIBE without a topic filter")
	}
	for len(r.b) > 0 && r.err == nil {
		u.Filters = append(u.Filters, r.string("topic filter"))
	}
	return r.end()
}

// Size is the length of the whole packet as Append will write it.
func (u *Unsubscribe) Size(v Version) int {
	n, _ := u.sizes(v)
	return packetSize(n)
}

func (u *Unsubscribe) sizes(v Version) (body, props int) {
	body, props = idSize(&u.Properties, v)
	for _, f := range u.Filters {
		body = min(body+fieldSize(len(f)), tooMuch)
	}
	return body, props
}

// Append writes the packet.
func (u *Unsubscribe) Append(dst []byte, v Version) []byte {
	n, props := u.sizes(v)
	if n > LengthMax {
		return dst
	}
	dst = appendUint16(frame(dst, UNSUBSCRIBE, 2, n), u.ID)
	if v == V5 {
		dst = u.Properties.append(dst, props)
	}
	for _, f := range u.Filters {
		dst = appendString(dst, f)
	}
	return dst
}

// SubAnswer is SUBACK or UNSUBACK (§3.9, §3.11): a code per filter. The UNSUBACK of 3.1.1 has none.
type SubAnswer struct {
	Type       Type
	ID         uint16
	Properties Properties
	Codes      []ReasonCode
}

// Decode reads the body of one of the two.
func (s *SubAnswer) Decode(h Header, body []byte, v Version) error {
	*s = SubAnswer{Type: h.Type}
	r := reader{b: body, what: h.Type}
	s.ID = packetID(&r, h.Type)
	if v == V5 {
		s.Properties.decode(&r, h.Type)
	}
	if r.err != nil {
		return r.err
	}
	if v != V5 && h.Type == UNSUBACK {
		return r.end()
	}
	if len(r.b) == 0 {
		return malformed("", "%s without a reason code", h.Type)
	}
	for len(r.b) > 0 {
		c := ReasonCode(r.byte("reason code"))
		if v == V5 {
			if err := codeAllowed(h.Type, c); err != nil {
				return err
			}
		} else if c > 2 && c != 0x80 {
			return malformed("MQTT-3.9.3-2", "SUBACK with return code 0x%02X", byte(c))
		}
		s.Codes = append(s.Codes, c)
	}
	return nil
}

// Size is the length of the whole packet as Append will write it.
func (s *SubAnswer) Size(v Version) int {
	n, _ := s.sizes(v)
	return packetSize(n)
}

func (s *SubAnswer) sizes(v Version) (body, props int) {
	body, props = idSize(&s.Properties, v)
	if v == V5 || s.Type != UNSUBACK {
		body += min(len(s.Codes), tooMuch)
	}
	return body, props
}

// Append writes the packet; for 3.1.1 every failure is 0x80.
func (s *SubAnswer) Append(dst []byte, v Version) []byte {
	n, props := s.sizes(v)
	if n > LengthMax {
		return dst
	}
	dst = appendUint16(frame(dst, s.Type, 0, n), s.ID)
	if v == V5 {
		dst = s.Properties.append(dst, props)
	}
	if v != V5 && s.Type == UNSUBACK {
		return dst
	}
	for _, c := range s.Codes {
		if v != V5 && c.Failed() {
			c = UnspecifiedError
		}
		dst = append(dst, byte(c))
	}
	return dst
}

// idSize is the size of a packet identifier, and in MQTT 5 of the properties behind it.
func idSize(p *Properties, v Version) (body, props int) {
	if v != V5 {
		return 2, 0
	}
	props = p.size()
	return 2 + lengthSize(props) + props, props
}

func packetID(r *reader, t Type) uint16 {
	id := r.uint16("packet identifier")
	if id == 0 && r.err == nil {
		statement := "MQTT-2.2.1-3"
		if t == SUBACK || t == UNSUBACK {
			statement = "MQTT-2.2.1-6"
		}
		r.fail(protocol(statement, "%s with packet identifier 0", t))
	}
	return id
}
