package packet

// Connect is the first packet of a client (§3.1).
type Connect struct {
	Version     Version
	CleanStart  bool // Clean Session in 3.1.1
	KeepAlive   uint16
	ClientID    string // may be empty; whether that is allowed is the server's to say
	Properties  Properties
	Will        *Will // nil for none
	HasUserName bool
	UserName    string
	HasPassword bool
	Password    []byte
}

// Will is the message a server publishes for a client that went without a word (§3.1.2.5).
type Will struct {
	QoS        byte
	Retain     bool
	Topic      string
	Payload    []byte
	Properties Properties
}

// Decode reads the body of a CONNECT. For a protocol level that is not 3.1.1's or 5's it gives an
// UnsupportedProtocolVersion error and c.Version; the rest is not read then.
func (c *Connect) Decode(h Header, body []byte) error {
	*c = Connect{}
	r := reader{b: body, what: CONNECT}
	name := r.string("protocol name")
	c.Version = Version(r.byte("protocol level"))
	switch {
	case r.err != nil:
		return r.err
	case name == "MQIsdp" && c.Version == V31, name == "MQTT" && c.Version != V311 && c.Version != V5:
		return &Error{UnsupportedProtocolVersion, "protocol " + c.Version.String() + "; this server speaks 3.1.1 and 5.0", "MQTT-3.1.2-2"}
	case name != "MQTT":
		return &Error{UnsupportedProtocolVersion, "protocol name is not MQTT", "MQTT-3.1.2-1"}
	}
	flags := r.byte("connect flags")
	c.KeepAlive = r.uint16("keep alive")
	if r.err != nil {
		return r.err
	}
	hasWill, qos, retain := flags&4 != 0, flags>>3&3, flags&0x20 != 0
	c.CleanStart, c.HasPassword, c.HasUserName = flags&2 != 0, flags&0x40 != 0, flags&0x80 != 0
	switch {
	case flags&1 != 0:
		return malformed("MQTT-3.1.2-3", "CONNECT with its reserved flag set")
	case qos == 3:
		return malformed("MQTT-3.1.2-12", "will QoS is 3")
	case !hasWill && qos != 0:
		return malformed("MQTT-3.1.2-11", "will QoS without a will")
	case !hasWill && retain:
		return malformed("MQTT-3.1.2-13", "will retain without a will")
	case c.Version == V311 && c.HasPassword && !c.HasUserName:
		return malformed("MQTT-3.1.2-22", "password without a user name, in 3.1.1") // numbered so in 3.1.1
	}
	if c.Version == V5 {
		c.Properties.decode(&r, CONNECT)
	}
	c.ClientID = r.string("client identifier")
	if hasWill && r.err == nil {
		c.Will = &Will{QoS: qos, Retain: retain}
		if c.Version == V5 {
			c.Will.Properties.decode(&r, will)
		}
		c.Will.Topic = r.string("will topic")
		c.Will.Payload = r.binary("will payload")
		if r.err == nil {
			if err := validName(c.Will.Topic); err != nil {
				return err
			}
		}
	}
	if c.HasUserName {
		c.UserName = r.string("user name")
	}
	if c.HasPassword {
		c.Password = r.binary("password")
	}
	return r.end()
}

// Size is the length of the whole packet as Append will write it.
func (c *Connect) Size() int {
	n, _, _ := c.sizes()
	return packetSize(n)
}

func (c *Connect) sizes() (body, props, wprops int) {
	five := c.Version == V5
	body = 10 + fieldSize(len(c.ClientID))
	if five {
		props = c.Properties.size()
		body += lengthSize(props) + props
	}
	if w := c.Will; w != nil {
		if five {
			wprops = w.Properties.size()
			body += lengthSize(wprops) + wprops
		}
		body += fieldSize(len(w.Topic)) + fieldSize(len(w.Payload))
	}
	if c.HasUserName {
		body += fieldSize(len(c.UserName))
	}
	if c.HasPassword {
		body += fieldSize(len(c.Password))
	}
	return body, props, wprops
}

func (c *Connect) flags() (f byte) {
	if c.CleanStart {
		f |= 2
	}
	if w := c.Will; w != nil {
		f |= 4 | w.QoS<<3
		if w.Retain {
			f |= 0x20
		}
	}
	if c.HasPassword {
		f |= 0x40
	}
	if c.HasUserName {
		f |= 0x80
	}
	return f
}

// Append writes the packet in c.Version.
func (c *Connect) Append(dst []byte) []byte {
	five := c.Version == V5
	n, props, wprops := c.sizes()
	if n > LengthMax {
		return dst
	}
	dst = frame(dst, CONNECT, 0, n)
	dst = append(appendString(dst, "MQTT"), byte(c.Version), c.flags())
	dst = appendUint16(dst, c.KeepAlive)
	if five {
		dst = c.Properties.append(dst, props)
	}
	dst = appendString(dst, c.ClientID)
	if w := c.Will; w != nil {
		if five {
			dst = w.Properties.append(dst, wprops)
		}
		dst = appendString(dst, w.Topic)
		dst = appendString(dst, alias(w.Payload))
	}
	if c.HasUserName {
		dst = appendString(dst, c.UserName)
	}
	if c.HasPassword {
		dst = appendString(dst, alias(c.Password))
	}
	return dst
}

// Connack is the server's answer (§3.2).
type Connack struct {
	SessionPresent bool
	Code           ReasonCode // 3.1.1's return codes are translated, both ways
	Properties     Properties
}

// Decode reads the body of a CONNACK.
func (c *Connack) Decode(h Header, body []byte, v Version) error {
	*c = Connack{}
	r := reader{b: body, what: CONNACK}
	flags := r.byte("acknowledge flags")
	c.Code = ReasonCode(r.byte("reason code"))
	if r.err != nil {
		return r.err
	}
	if flags > 1 {
		return malformed("MQTT-3.2.2-1", "CONNACK with flags %08b", flags)
	}
	c.SessionPresent = flags == 1
	var err error
	if v == V5 {
		if err := codeAllowed(CONNACK, c.Code); err != nil {
			return err
		}
		c.Properties.decode(&r, CONNACK)
	} else if c.Code, err = fromV311(byte(c.Code)); err != nil {
		return err
	}
	if c.SessionPresent && c.Code != 0 {
		return malformed("MQTT-3.2.2-6", "CONNACK that refuses and has a session")
	}
	return r.end()
}

// Size is the length of the whole packet as Append will write it.
func (c *Connack) Size(v Version) int {
	if v != V5 {
		return 4
	}
	n := c.Properties.size()
	return packetSize(2 + lengthSize(n) + n)
}

// Append writes the packet; for 3.1.1 the code is translated with [ReasonCode.ConnackV311].
func (c *Connack) Append(dst []byte, v Version) []byte {
	var flags byte
	if c.SessionPresent {
		flags = 1
	}
	if v != V5 {
		return append(frame(dst, CONNACK, 0, 2), flags, c.Code.ConnackV311())
	}
	n := c.Properties.size()
	if 2+lengthSize(n)+n > LengthMax {
		return dst
	}
	dst = append(frame(dst, CONNACK, 0, 2+lengthSize(n)+n), flags, byte(c.Code))
	return c.Properties.append(dst, n)
}

// Disconnect ends a connection with a word (§3.14). In 3.1.1 only a client says it, and it has no body.
type Disconnect struct {
	Code       ReasonCode
	Properties Properties
}

// Decode reads the body of a DISCONNECT.
func (d *Disconnect) Decode(h Header, body []byte, v Version) error {
	*d = Disconnect{}
	if v != V5 {
		return DecodePing(h, body)
	}
	return decodeShort(DISCONNECT, &d.Code, &d.Properties, body)
}

// Size is the length of the whole packet as Append will write it.
func (d *Disconnect) Size(v Version) int {
	if v != V5 {
		return 2
	}
	return packetSize(shortSize(d.Code, &d.Properties))
}

// Append writes the packet.
func (d *Disconnect) Append(dst []byte, v Version) []byte {
	if v != V5 {
		return frame(dst, DISCONNECT, 0, 0)
	}
	return appendShort(dst, DISCONNECT, d.Code, &d.Properties)
}

// Auth is a step of an enhanced authentication (§3.15), in MQTT 5 only.
type Auth struct {
	Code       ReasonCode
	Properties Properties
}

// Decode reads the body of an AUTH.
func (a *Auth) Decode(h Header, body []byte, v Version) error {
	*a = Auth{}
	if v != V5 {
		return malformed("", "AUTH is not a packet of MQTT %s", v)
	}
	if err := decodeShort(AUTH, &a.Code, &a.Properties, body); err != nil {
		return err
	}
	if len(body) > 0 && !a.Properties.Has(AuthenticationMethod) {
		return protocol("", "AUTH without an authentication method")
	}
	return nil
}

// Size is the length of the whole packet as Append will write it.
func (a *Auth) Size() int { return packetSize(shortSize(a.Code, &a.Properties)) }

// Append writes the packet.
func (a *Auth) Append(dst []byte) []byte { return appendShort(dst, AUTH, a.Code, &a.Properties) }

// decodeShort reads reason code and properties, both of which may be left out (§3.14.2.1, §3.15.2.1).
func decodeShort(t Type, code *ReasonCode, p *Properties, body []byte) error {
	if len(body) == 0 {
		return nil
	}
	r := reader{b: body, what: t}
	*code = ReasonCode(r.byte("reason code"))
	if err := codeAllowed(t, *code); err != nil {
		return err
	}
	if len(r.b) > 0 {
		p.decode(&r, t)
	}
	return r.end()
}

// shortSize is the size of a body with a reason code and properties, both of which are left out where they say nothing.
func shortSize(code ReasonCode, p *Properties) int {
	n := p.size()
	switch {
	case n > 0:
		return 1 + lengthSize(n) + n
	case code != 0:
		return 1
	}
	return 0
}

func appendShort(dst []byte, t Type, code ReasonCode, p *Properties) []byte {
	n := p.size()
	switch {
	case 1+lengthSize(n)+n > LengthMax:
		return dst
	case n > 0:
		return p.append(append(frame(dst, t, 0, 1+lengthSize(n)+n), byte(code)), n)
	case code != 0:
		return append(frame(dst, t, 0, 1), byte(code))
	}
	return frame(dst, t, 0, 0)
}
