package packet

// Publish carries a message (§3.3). Decode reuses the room of Properties.User, so a loop that decodes into one Publish
// does not allocate. What it decoded aliases the buffer until the next Decode.
type Publish struct {
	Dup        bool
	QoS        byte
	Retain     bool
	Topic      string // empty only in MQTT 5, with a topic alias
	ID         uint16 // 0 with QoS 0
	Properties Properties
	Payload    []byte
}

// Decode reads the body of a PUBLISH; flags were checked by Frame.
func (p *Publish) Decode(h Header, body []byte, v Version) error {
	p.Dup, p.QoS, p.Retain = h.Flags&8 != 0, h.Flags>>1&3, h.Flags&1 != 0
	p.Topic, p.ID, p.Payload = "", 0, nil
	p.Properties.Reset()
	r := reader{b: body, what: PUBLISH}
	p.Topic = r.string("topic name")
	if p.QoS > 0 {
		if p.ID = r.uint16("packet identifier"); p.ID == 0 && r.err == nil {
			r.fail(protocol("MQTT-2.2.1-3", "PUBLISH of QoS %d with packet identifier 0", p.QoS))
		}
	}
	if v == V5 {
		p.Properties.decode(&r, PUBLISH)
	}
	if r.err != nil {
		return r.err
	}
	if p.Topic == "" && v == V5 {
		if !p.Properties.Has(TopicAlias) {
			return protocol("MQTT-4.7.3-1", "PUBLISH with neither topic name nor topic alias")
		}
	} else if err := validName(p.Topic); err != nil {
		return err
	}
	p.Payload = r.b
	return nil
}

// Size is the length of the whole packet as Append will write it.
func (p *Publish) Size(v Version) int {
	n, _ := p.sizes(v)
	return packetSize(n)
}

func (p *Publish) sizes(v Version) (body, props int) {
	body = fieldSize(len(p.Topic)) + min(len(p.Payload), tooMuch)
	if p.QoS > 0 {
		body += 2
	}
	if v == V5 {
		props = p.Properties.size()
		body += lengthSize(props) + props
	}
	return body, props
}

// Append writes the packet.
func (p *Publish) Append(dst []byte, v Version) []byte {
	n, props := p.sizes(v)
	if n > LengthMax {
		return dst
	}
	flags := p.QoS << 1
	if p.Dup {
		flags |= 8
	}
	if p.Retain {
		flags |= 1
	}
	dst = appendString(frame(dst, PUBLISH, flags, n), p.Topic)
	if p.QoS > 0 {
		dst = appendUint16(dst, p.ID)
	}
	if v == V5 {
		dst = p.Properties.append(dst, props)
	}
	return append(dst, p.Payload...)
}

// Ack is PUBACK, PUBREC, PUBREL or PUBCOMP (§3.4 to §3.7).
type Ack struct {
	Type       Type
	ID         uint16
	Code       ReasonCode // MQTT 5 only
	Properties Properties
}

// Decode reads the body of one of the four.
func (a *Ack) Decode(h Header, body []byte, v Version) error {
	a.Type, a.ID, a.Code = h.Type, 0, 0
	a.Properties.Reset()
	r := reader{b: body, what: h.Type}
	if a.ID = r.uint16("packet identifier"); r.err == nil && a.ID == 0 {
		r.fail(protocol("MQTT-2.2.1-5", "%s with packet identifier 0", h.Type))
	}
	if v == V5 && r.err == nil && len(r.b) > 0 {
		a.Code = ReasonCode(r.byte("reason code"))
		if err := codeAllowed(h.Type, a.Code); err != nil {
			return err
		}
		if len(r.b) > 0 {
			a.Properties.decode(&r, h.Type)
		}
	}
	return r.end()
}

// Size is the length of the whole packet as Append will write it.
func (a *Ack) Size(v Version) int {
	if v != V5 {
		return 4
	}
	return packetSize(2 + shortSize(a.Code, &a.Properties))
}

// Append writes the packet.
func (a *Ack) Append(dst []byte, v Version) []byte {
	var flags byte
	if a.Type == PUBREL {
		flags = 2
	}
	if v != V5 {
		return appendUint16(frame(dst, a.Type, flags, 2), a.ID)
	}
	n := a.Properties.size()
	switch {
	case 3+lengthSize(n)+n > LengthMax:
		return dst
	case n > 0:
		dst = append(appendUint16(frame(dst, a.Type, flags, 3+lengthSize(n)+n), a.ID), byte(a.Code))
		return a.Properties.append(dst, n)
	case a.Code != 0:
		return append(appendUint16(frame(dst, a.Type, flags, 3), a.ID), byte(a.Code))
	}
	return appendUint16(frame(dst, a.Type, flags, 2), a.ID)
}

// AppendPuback appends the PUBACK of success, the same in both versions.
func AppendPuback(dst []byte, id uint16) []byte {
	return append(dst, byte(PUBACK)<<4, 2, byte(id>>8), byte(id))
}
