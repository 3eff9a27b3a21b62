package packet

import (
	"encoding/binary"
	"strings"
	"unicode/utf8"
)

// PropertyID names a property of MQTT 5 (§2.2.2.2).
type PropertyID byte

const (
	PayloadFormat          PropertyID = 0x01
	MessageExpiry          PropertyID = 0x02
	ContentType            PropertyID = 0x03
	ResponseTopic          PropertyID = 0x08
	CorrelationData        PropertyID = 0x09
	SubscriptionIdentifier PropertyID = 0x0B
	SessionExpiry          PropertyID = 0x11
	AssignedClientID       PropertyID = 0x12
	ServerKeepAlive        PropertyID = 0x13
	AuthenticationMethod   PropertyID = 0x15
	AuthenticationData     PropertyID = 0x16
	RequestProblemInfo     PropertyID = 0x17
	WillDelay              PropertyID = 0x18
	RequestResponseInfo    PropertyID = 0x19
	ResponseInformation    PropertyID = 0x1A
	ServerReference        PropertyID = 0x1C
	ReasonString           PropertyID = 0x1F
	ReceiveMaximum         PropertyID = 0x21
	TopicAliasMaximum      PropertyID = 0x22
	TopicAlias             PropertyID = 0x23
	MaximumQoS             PropertyID = 0x24
	RetainAvailable        PropertyID = 0x25
	UserPropertyID         PropertyID = 0x26
	MaximumPacketSize      PropertyID = 0x27
	WildcardAvailable      PropertyID = 0x28
	SubIDAvailable         PropertyID = 0x29
	SharedAvailable        PropertyID = 0x2A
)

// UserProperty is a publisher's own pair; order and repetition count (§3.3.2.3.7).
type UserProperty struct{ Key, Value string }

// Properties are those of one packet. A number or flag counts only if [Properties.Has] says that it is there; set it
// with [Properties.Set]. The zero value has none.
type Properties struct {
	present uint64
	nums    [propertyMax + 1]uint32

	ContentType         string
	ResponseTopic       string
	AssignedClientID    string
	AuthMethod          string
	ResponseInformation string
	ServerReference     string
	ReasonString        string
	CorrelationData     []byte
	AuthData            []byte
	SubscriptionIDs     []uint32 // in PUBLISH there may be several (§3.3.2.3.8)
	User                []UserProperty
}

const propertyMax = 0x2A

// Has says whether the property is there.
func (p *Properties) Has(id PropertyID) bool { return p.present&(1<<id) != 0 }

// Num is the value of a number or flag, and otherwise if it is not there.
func (p *Properties) Num(id PropertyID, otherwise uint32) uint32 {
	if !p.Has(id) {
		return otherwise
	}
	return p.nums[id]
}

// Set sets a number or flag. A string, bytes or user properties are marked as there, with whatever value they have; the
// subscription identifier becomes the only one.
func (p *Properties) Set(id PropertyID, v uint32) {
	p.present |= 1 << id
	switch propertyTable[id].kind {
	case kindLength:
		p.SubscriptionIDs = append(p.SubscriptionIDs[:0], v)
	case kindString, kindBinary, kindPair:
	default:
		p.nums[id] = v
	}
}

// SetString sets a string property. A reason string may quote what it refuses, so it is made well-formed and cut to
// 1024 bytes; the others are kept as they are. It panics where the property is not a string.
func (p *Properties) SetString(id PropertyID, s string) {
	if id == ReasonString {
		s = Readable(s)
	}
	p.present |= 1 << id
	*p.stringField(id) = s
}

const (
	reasonStringMax = 1024 // bytes; enough for a sentence and what it quotes
	roomMax         = 64   // user properties; the room for more is given back, so that one packet does not hold it for a connection's life
)

// Readable makes a text one that a packet, a log line or a message may carry: UTF-8 without NUL, at most 1 KiB long.
func Readable(s string) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	if len(s) <= reasonStringMax {
		return s
	}
	n := reasonStringMax
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// Reset empties p and keeps the room of its slices, unless it is large.
func (p *Properties) Reset() {
	p.normalise()
	if p.present == 0 {
		return
	}
	users, ids := p.User[:0], p.SubscriptionIDs[:0]
	if cap(users) > roomMax {
		users = nil
	}
	if cap(ids) > roomMax {
		ids = nil
	}
	*p = Properties{User: users, SubscriptionIDs: ids}
}

type propertyKind byte

const (
	kindNone propertyKind = iota
	kindFlag
	kindByte
	kindUint16
	kindUint32
	kindLength
	kindString
	kindBinary
	kindPair
)

// will stands for the will properties in CONNECT, which have a list of their own.
const will Type = 0

func in(types ...Type) (mask uint16) {
	for _, t := range types {
		mask |= 1 << t
	}
	return mask
}

// propertyTable is table 2-4 of the specification.
var propertyTable = [propertyMax + 1]struct {
	kind propertyKind
	in   uint16
	name string
}{
	PayloadFormat:          {kindFlag, in(PUBLISH, will), "payload format indicator"},
	MessageExpiry:          {kindUint32, in(PUBLISH, will), "message expiry interval"},
	ContentType:            {kindString, in(PUBLISH, will), "content type"},
	ResponseTopic:          {kindString, in(PUBLISH, will), "response topic"},
	CorrelationData:        {kindBinary, in(PUBLISH, will), "correlation data"},
	SubscriptionIdentifier: {kindLength, in(PUBLISH, SUBSCRIBE), "subscription identifier"},
	SessionExpiry:          {kindUint32, in(CONNECT, CONNACK, DISCONNECT), "session expiry interval"},
	AssignedClientID:       {kindString, in(CONNACK), "assigned client identifier"},
	ServerKeepAlive:        {kindUint16, in(CONNACK), "server keep alive"},
	AuthenticationMethod:   {kindString, in(CONNECT, CONNACK, AUTH), "authentication method"},
	AuthenticationData:     {kindBinary, in(CONNECT, CONNACK, AUTH), "authentication data"},
	RequestProblemInfo:     {kindFlag, in(CONNECT), "request problem information"},
	WillDelay:              {kindUint32, in(will), "will delay interval"},
	RequestResponseInfo:    {kindFlag, in(CONNECT), "request response information"},
	ResponseInformation:    {kindString, in(CONNACK), "response information"},
	ServerReference:        {kindString, in(CONNACK, DISCONNECT), "server reference"},
	ReasonString:           {kindString, in(CONNACK, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK, DISCONNECT, AUTH), "reason string"},
	ReceiveMaximum:         {kindUint16, in(CONNECT, CONNACK), "receive maximum"},
	TopicAliasMaximum:      {kindUint16, in(CONNECT, CONNACK), "topic alias maximum"},
	TopicAlias:             {kindUint16, in(PUBLISH), "topic alias"},
	MaximumQoS:             {kindFlag, in(CONNACK), "maximum QoS"},
	RetainAvailable:        {kindFlag, in(CONNACK), "retain available"},
	UserPropertyID:         {kindPair, in(CONNECT, CONNACK, PUBLISH, will, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK, DISCONNECT, AUTH), "user property"},
	MaximumPacketSize:      {kindUint32, in(CONNECT, CONNACK), "maximum packet size"},
	WildcardAvailable:      {kindFlag, in(CONNACK), "wildcard subscription available"},
	SubIDAvailable:         {kindFlag, in(CONNACK), "subscription identifiers available"},
	SharedAvailable:        {kindFlag, in(CONNACK), "shared subscription available"},
}

// decode reads a property block, length and all (§2.2.2). where is the packet, or will.
func (p *Properties) decode(r *reader, where Type) {
	p.Reset()
	n := r.length("property length")
	if r.err != nil {
		return
	}
	if n > len(r.b) {
		r.fail(malformed("", "%s: properties of %d bytes in a packet that has %d left", r.what, n, len(r.b)))
		return
	}
	block := reader{b: r.b[:n], what: r.what}
	for len(block.b) > 0 && block.err == nil {
		p.one(&block, where)
	}
	if block.err != nil {
		r.fail(block.err)
		return
	}
	if p.Has(AuthenticationData) && !p.Has(AuthenticationMethod) && where != CONNACK {
		r.fail(protocol("", "%s: authentication data without a method", r.what))
		return
	}
	r.b = r.b[n:]
}

func (p *Properties) one(r *reader, where Type) {
	raw := r.length("property identifier")
	if r.err != nil {
		return
	}
	if raw > propertyMax || propertyTable[raw].kind == kindNone {
		r.fail(malformed("", "%s: property 0x%02X does not exist", r.what, raw))
		return
	}
	id := PropertyID(raw)
	def := &propertyTable[id]
	if def.in&(1<<where) == 0 {
		r.fail(malformed("", "%s cannot have the property %s", whereName(where), def.name))
		return
	}
	if p.Has(id) && id != UserPropertyID && (id != SubscriptionIdentifier || where != PUBLISH) {
		r.fail(protocol("", "%s has the property %s twice", whereName(where), def.name))
		return
	}
	var v uint32
	switch def.kind {
	case kindFlag:
		if v = uint32(r.byte(def.name)); v > 1 {
			r.fail(protocol("", "%s: %s is %d; there are 0 and 1", r.what, def.name, v))
		}
	case kindByte:
		v = uint32(r.byte(def.name))
	case kindUint16:
		v = uint32(r.uint16(def.name))
	case kindUint32:
		v = r.uint32(def.name)
	case kindLength:
		v = uint32(r.length(def.name))
	case kindString:
		s := r.string(def.name)
		if id == ResponseTopic && r.err == nil {
			if err := validName(s); err != nil {
				r.fail(protocol("MQTT-3.3.2-14", "%s: response topic: %s", r.what, err.(*Error).Detail))
			}
		}
		if r.err == nil {
			*p.stringField(id) = s
		}
	case kindBinary:
		b := r.binary(def.name)
		if id == CorrelationData {
			p.CorrelationData = b
		} else {
			p.AuthData = b
		}
	case kindPair:
		k := r.string("user property's name")
		u := r.string("user property's value")
		if r.err == nil {
			p.User = append(p.User, UserProperty{k, u})
		}
	}
	if r.err != nil {
		return
	}
	switch id {
	case ReceiveMaximum, MaximumPacketSize, SubscriptionIdentifier:
		if v == 0 {
			r.fail(protocol("", "%s: %s is 0", r.what, def.name))
			return
		}
	case TopicAlias:
		if v == 0 {
			r.fail(&Error{TopicAliasInvalid, "topic alias is 0", "MQTT-3.3.2-8"})
			return
		}
	}
	p.present |= 1 << id
	if id == SubscriptionIdentifier {
		p.SubscriptionIDs = append(p.SubscriptionIDs, v)
	} else {
		p.nums[id] = v
	}
}

func whereName(where Type) string {
	if where == will {
		return "will"
	}
	return where.String()
}

func (p *Properties) stringField(id PropertyID) *string {
	switch id {
	case ContentType:
		return &p.ContentType
	case ResponseTopic:
		return &p.ResponseTopic
	case AssignedClientID:
		return &p.AssignedClientID
	case AuthenticationMethod:
		return &p.AuthMethod
	case ResponseInformation:
		return &p.ResponseInformation
	case ServerReference:
		return &p.ServerReference
	case ReasonString:
		return &p.ReasonString
	}
	panic("packet: property is not a string")
}

// normalise marks what is there by its value, so that a struct literal is enough for most.
func (p *Properties) normalise() {
	for _, id := range [...]PropertyID{ContentType, ResponseTopic, AssignedClientID, AuthenticationMethod, ResponseInformation, ServerReference, ReasonString} {
		if *p.stringField(id) != "" {
			p.present |= 1 << id
		}
	}
	if p.CorrelationData != nil {
		p.present |= 1 << CorrelationData
	}
	if p.AuthData != nil {
		p.present |= 1 << AuthenticationData
	}
	if len(p.SubscriptionIDs) > 0 {
		p.present |= 1 << SubscriptionIdentifier
	}
	if len(p.User) > 0 {
		p.present |= 1 << UserPropertyID
	}
}

// size is the length of the block without its own length, and tooMuch for one that cannot be written. It normalises.
func (p *Properties) size() int {
	p.normalise()
	if p.present == 0 {
		return 0
	}
	n := 0
	for id := PropertyID(1); id <= propertyMax; id++ {
		if !p.Has(id) {
			continue
		}
		switch propertyTable[id].kind {
		case kindFlag, kindByte:
			n += 2
		case kindUint16:
			n += 3
		case kindUint32:
			n += 5
		case kindLength:
			for _, s := range p.SubscriptionIDs {
				if s > LengthMax {
					return tooMuch
				}
				n += 1 + lengthSize(int(s))
			}
		case kindString:
			n += 1 + fieldSize(len(*p.stringField(id)))
		case kindBinary:
			n += 1 + fieldSize(len(p.bytes(id)))
		case kindPair:
			for _, u := range p.User {
				if n += 1 + fieldSize(len(u.Key)) + fieldSize(len(u.Value)); n > LengthMax {
					return tooMuch
				}
			}
		}
		if n > LengthMax {
			return tooMuch
		}
	}
	return n
}

// append writes the block behind its length n, as size gave it.
func (p *Properties) append(dst []byte, n int) []byte {
	dst = AppendLength(dst, n)
	if n == 0 {
		return dst
	}
	for id := PropertyID(1); id <= propertyMax; id++ {
		if !p.Has(id) {
			continue
		}
		switch propertyTable[id].kind {
		case kindFlag, kindByte:
			dst = append(dst, byte(id), byte(p.nums[id]))
		case kindUint16:
			dst = appendUint16(append(dst, byte(id)), uint16(p.nums[id]))
		case kindUint32:
			dst = binary.BigEndian.AppendUint32(append(dst, byte(id)), p.nums[id])
		case kindLength:
			for _, s := range p.SubscriptionIDs {
				dst = AppendLength(append(dst, byte(id)), int(s))
			}
		case kindString:
			dst = appendString(append(dst, byte(id)), *p.stringField(id))
		case kindBinary:
			b := p.bytes(id)
			dst = append(appendUint16(append(dst, byte(id)), uint16(len(b))), b...)
		case kindPair:
			for _, u := range p.User {
				dst = appendString(appendString(append(dst, byte(id)), u.Key), u.Value)
			}
		}
	}
	return dst
}

func (p *Properties) bytes(id PropertyID) []byte {
	if id == CorrelationData {
		return p.CorrelationData
	}
	return p.AuthData
}
