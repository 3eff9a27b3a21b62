package packet

// wireCase is a packet as bytes and as a struct, or the fault for which the bytes are refused.
type wireCase struct {
	name string
	v    Version
	wire string // hexadecimal, with blanks

	packet any  // what it means; nil for a refusal
	loose  bool // a legal form that Append does not choose

	code      ReasonCode
	statement string
}

func props(set func(*Properties)) (p Properties) {
	set(&p)
	return p
}

func ok(v Version, name, wire string, p any) wireCase {
	return wireCase{name: name, v: v, wire: wire, packet: p}
}

func loose(v Version, name, wire string, p any) wireCase {
	return wireCase{name: name, v: v, wire: wire, packet: p, loose: true}
}

func bad(v Version, name, wire string, code ReasonCode, statement string) wireCase {
	return wireCase{name: name, v: v, wire: wire, code: code, statement: statement}
}

// ping is PINGREQ or PINGRESP.
type ping struct{ Type Type }

var wireCases = append(acceptedCases, refusedCases...)

var acceptedCases = []wireCase{
	ok(V311, "connect", "10 0d 00044d515454 04 02 003c 0001 61", &Connect{Version: V311, CleanStart: true, KeepAlive: 60, ClientID: "a"}),
	ok(V311, "connect, empty id and kept session, which is the broker's to refuse", "10 0c 00044d515454 04 00 0000 0000", &Connect{Version: V311}),
	ok(V311, "connect with all", "10 1a 00044d515454 04 ee 0001 0001 61 0001 74 0002 0900 0001 75 0001 70",
		&Connect{Version: V311, CleanStart: true, KeepAlive: 1, ClientID: "a", Will: &Will{QoS: 1, Retain: true, Topic: "t", Payload: []byte{9, 0}},
			HasUserName: true, UserName: "u", HasPassword: true, Password: []byte("p")}),
	ok(V5, "connect", "10 0e 00044d515454 05 02 003c 00 0001 61", &Connect{Version: V5, CleanStart: true, KeepAlive: 60, ClientID: "a"}),
	ok(V5, "connect with password only", "10 10 00044d515454 05 40 0000 00 0000 0001 70", &Connect{Version: V5, HasPassword: true, Password: []byte("p")}),
	ok(V5, "connect with all properties and a will", "10 3b 00044d515454 05 04 0000 23 1100000005 150001 6d 160001 64 1701 1900 21000a 220003 2600016b000176 2700001000 0000 05 1800000001 0001 74 0000",
		&Connect{Version: V5, Will: &Will{Topic: "t", Properties: props(func(p *Properties) { p.Set(WillDelay, 1) })}, Properties: props(func(p *Properties) {
			p.Set(SessionExpiry, 5)
			p.AuthMethod, p.AuthData = "m", []byte("d")
			p.Set(RequestProblemInfo, 1)
			p.Set(RequestResponseInfo, 0)
			p.Set(ReceiveMaximum, 10)
			p.Set(TopicAliasMaximum, 3)
			p.Set(MaximumPacketSize, 4096)
			p.User = []UserProperty{{"k", "v"}}
		})}),
	ok(V311, "connack", "20 02 01 00", &Connack{SessionPresent: true}),
	ok(V311, "connack refusing", "20 02 00 05", &Connack{Code: NotAuthorized}),
	ok(V5, "connack", "20 03 00 00 00", &Connack{}),
	ok(V5, "connack refusing", "20 09 00 87 06 1f0003 6e6f70", &Connack{Code: NotAuthorized, Properties: props(func(p *Properties) { p.ReasonString = "nop" })}),
	ok(V5, "connack with what the server has", "20 22 00 00 1f 120001 61 13000a 1a0001 72 1c0001 73 21000a 220000 2400 2501 2801 2900 2a00",
		&Connack{Properties: props(func(p *Properties) {
			p.AssignedClientID, p.ResponseInformation, p.ServerReference = "a", "r", "s"
			p.Set(ServerKeepAlive, 10)
			p.Set(ReceiveMaximum, 10)
			p.Set(TopicAliasMaximum, 0)
			p.Set(MaximumQoS, 0)
			p.Set(RetainAvailable, 1)
			p.Set(WildcardAvailable, 1)
			p.Set(SubIDAvailable, 0)
			p.Set(SharedAvailable, 0)
		})}),
	ok(V311, "publish QoS 0", "30 05 0001 61 6869", &Publish{Topic: "a", Payload: []byte("hi")}),
	ok(V311, "publish QoS 1, dup and retained", "3b 05 0001 61 0007", &Publish{Dup: true, QoS: 1, Retain: true, Topic: "a", ID: 7}),
	ok(V311, "publish QoS 2", "34 06 0001 61 ffff 21", &Publish{QoS: 2, Topic: "a", ID: 65535, Payload: []byte("!")}),
	ok(V5, "publish", "32 07 0001 61 0007 00 21", &Publish{QoS: 1, Topic: "a", ID: 7, Payload: []byte("!")}),
	ok(V5, "publish by alias only", "30 06 0000 03 230001", &Publish{Properties: props(func(p *Properties) { p.Set(TopicAlias, 1) })}),
	ok(V5, "publish with user properties in order, repeated, empty", "30 18 0001 61 14 26000162000131 26000161000132 260001620000",
		&Publish{Topic: "a", Properties: Properties{User: []UserProperty{{"b", "1"}, {"a", "2"}, {"b", ""}}}}),
	ok(V5, "publish with all", "30 22 0001 61 1e 0101 0200000009 030001 63 080001 72 090002 0001 0b01 0bffffff7f 230005",
		&Publish{Topic: "a", Properties: props(func(p *Properties) {
			p.Set(PayloadFormat, 1)
			p.Set(MessageExpiry, 9)
			p.ContentType, p.ResponseTopic, p.CorrelationData = "c", "r", []byte{0, 1}
			p.SubscriptionIDs = []uint32{1, LengthMax}
			p.Set(TopicAlias, 5)
		})}),
	ok(V5, "publish with an empty content type, which is not none", "30 07 0001 61 03 030000", &Publish{Topic: "a", Properties: props(func(p *Properties) { p.SetString(ContentType, "") })}),
	ok(V311, "puback", "40 02 0001", &Ack{Type: PUBACK, ID: 1}),
	ok(V311, "pubrec", "50 02 0001", &Ack{Type: PUBREC, ID: 1}),
	ok(V311, "pubrel", "62 02 0001", &Ack{Type: PUBREL, ID: 1}),
	ok(V311, "pubcomp", "70 02 0001", &Ack{Type: PUBCOMP, ID: 1}),
	ok(V5, "puback", "40 02 0102", &Ack{Type: PUBACK, ID: 258}),
	loose(V5, "puback with a needless code", "40 03 0001 00", &Ack{Type: PUBACK, ID: 1}),
	loose(V5, "puback with a needless code and no properties", "40 04 0001 00 00", &Ack{Type: PUBACK, ID: 1}),
	ok(V5, "pubrec refusing", "50 03 0001 97", &Ack{Type: PUBREC, ID: 1, Code: QuotaExceeded}),
	ok(V5, "pubrel of an unknown id", "62 03 0001 92", &Ack{Type: PUBREL, ID: 1, Code: PacketIDNotFound}),
	ok(V5, "pubcomp with a reason", "70 08 0001 92 04 1f0001 78", &Ack{Type: PUBCOMP, ID: 1, Code: PacketIDNotFound, Properties: props(func(p *Properties) { p.ReasonString = "x" })}),
	ok(V311, "subscribe", "82 0a 0001 0001 61 02 0001 23 00", &Subscribe{ID: 1, Subscriptions: []Subscription{{Filter: "a", QoS: 2}, {Filter: "#"}}}),
	ok(V5, "subscribe", "82 0a 0001 03 0b8001 0001 61 2d", &Subscribe{ID: 1, Properties: Properties{SubscriptionIDs: []uint32{128}},
		Subscriptions: []Subscription{{Filter: "a", QoS: 1, NoLocal: true, RetainAsPublished: true, RetainHandling: 2}}}),
	ok(V311, "suback", "90 05 0001 00 02 80", &SubAnswer{Type: SUBACK, ID: 1, Codes: []ReasonCode{0, 2, 0x80}}),
	ok(V5, "suback", "90 05 0001 00 01 8f", &SubAnswer{Type: SUBACK, ID: 1, Codes: []ReasonCode{GrantedQoS1, TopicFilterInvalid}}),
	ok(V311, "unsubscribe", "a2 05 0001 0001 61", &Unsubscribe{ID: 1, Filters: []string{"a"}}),
	ok(V5, "unsubscribe", "a2 09 0001 00 0001 61 0001 62", &Unsubscribe{ID: 1, Filters: []string{"a", "b"}}),
	ok(V311, "unsuback", "b0 02 0001", &SubAnswer{Type: UNSUBACK, ID: 1}),
	ok(V5, "unsuback", "b0 05 0001 00 00 11", &SubAnswer{Type: UNSUBACK, ID: 1, Codes: []ReasonCode{Success, NoSubscriptionExisted}}),
	ok(V311, "pingreq", "c0 00", &ping{PINGREQ}),
	ok(V5, "pingreq", "c0 00", &ping{PINGREQ}),
	ok(V311, "pingresp", "d0 00", &ping{PINGRESP}),
	ok(V5, "pingresp", "d0 00", &ping{PINGRESP}),
	ok(V311, "disconnect", "e0 00", &Disconnect{}),
	ok(V5, "disconnect", "e0 00", &Disconnect{}),
	ok(V5, "disconnect with the will", "e0 01 04", &Disconnect{Code: DisconnectWithWill}),
	loose(V5, "disconnect with a needless code", "e0 02 00 00", &Disconnect{}),
	ok(V5, "disconnect to another server", "e0 06 9c 04 1c0001 62", &Disconnect{Code: UseAnotherServer, Properties: props(func(p *Properties) { p.ServerReference = "b" })}),
	ok(V5, "auth", "f0 06 18 04 150001 6d", &Auth{Code: ContinueAuthentication, Properties: props(func(p *Properties) { p.AuthMethod = "m" })}),
	ok(V5, "auth of success", "f0 00", &Auth{}),
}

var (
	connect4 = "00044d515454 04 "
	connect5 = "00044d515454 05 "
)

var refusedCases = []wireCase{
	// Fixed header.
	bad(V5, "type 0", "00 00", MalformedPacket, ""),
	bad(V5, "length of five bytes", "30 ffffffff01", MalformedPacket, "MQTT-1.5.5-1"),
	bad(V5, "length not minimal", "30 8100", MalformedPacket, "MQTT-1.5.5-1"),
	bad(V5, "length 0 not minimal", "c0 8000", MalformedPacket, "MQTT-1.5.5-1"),
	bad(V311, "connect with flags", "11 00", MalformedPacket, "MQTT-2.1.3-1"),
	bad(V311, "puback with flags", "42 02 0001", MalformedPacket, "MQTT-2.1.3-1"),
	bad(V311, "pubrel without its flag", "60 02 0001", MalformedPacket, "MQTT-3.6.1-1"),
	bad(V311, "subscribe without its flag", "80 06 0001 0001 61 00", MalformedPacket, "MQTT-3.8.1-1"),
	bad(V311, "unsubscribe without its flag", "a0 05 0001 0001 61", MalformedPacket, "MQTT-3.10.1-1"),
	bad(V311, "disconnect with flags", "e1 00", MalformedPacket, "MQTT-3.14.1-1"),
	bad(V5, "auth with flags", "f1 00", MalformedPacket, "MQTT-3.15.1-1"),
	bad(V311, "publish QoS 3", "36 05 0001 61 0001", MalformedPacket, "MQTT-3.3.1-4"),
	bad(V311, "publish QoS 0 with dup", "38 03 0001 61", MalformedPacket, "MQTT-3.3.1-2"),
	bad(V311, "pingreq with a body", "c0 01 00", MalformedPacket, ""),
	// CONNECT.
	bad(V311, "connect of 3.1", "10 0f 0006 4d5149736470 03 02 003c 0001 61", UnsupportedProtocolVersion, "MQTT-3.1.2-2"),
	bad(V311, "connect of level 6", "10 0d 00044d515454 06 02 003c 0001 61", UnsupportedProtocolVersion, "MQTT-3.1.2-2"),
	bad(V311, "connect of another protocol", "10 0d 00044d515458 04 02 003c 0001 61", UnsupportedProtocolVersion, "MQTT-3.1.2-1"),
	bad(V311, "connect with the name of 3.1 and the level of 3.1.1", "10 0f 0006 4d5149736470 04 02 003c 0001 61", UnsupportedProtocolVersion, "MQTT-3.1.2-1"),
	bad(V311, "connect with its reserved flag", "10 0d"+connect4+"03 003c 0001 61", MalformedPacket, "MQTT-3.1.2-3"),
	bad(V311, "will QoS 3", "10 12"+connect4+"1e 003c 0001 61 0001 74 0000", MalformedPacket, "MQTT-3.1.2-12"),
	bad(V311, "will QoS without a will", "10 0d"+connect4+"0a 003c 0001 61", MalformedPacket, "MQTT-3.1.2-11"),
	bad(V311, "will retain without a will", "10 0d"+connect4+"22 003c 0001 61", MalformedPacket, "MQTT-3.1.2-13"),
	bad(V311, "password without a user name", "10 10"+connect4+"42 003c 0001 61 0001 70", MalformedPacket, "MQTT-3.1.2-22"),
	bad(V311, "user name flag without a user name", "10 0d"+connect4+"82 003c 0001 61", MalformedPacket, ""),
	bad(V311, "password flag without a password", "10 10"+connect4+"c2 003c 0001 61 0001 75", MalformedPacket, ""),
	bad(V311, "will topic with a wildcard", "10 12"+connect4+"06 003c 0001 61 0001 23 0000", TopicNameInvalid, "MQTT-3.3.2-2"),
	bad(V5, "empty will topic", "10 13"+connect5+"04 003c 00 0000 00 0000 0001 21 ", TopicNameInvalid, "MQTT-4.7.3-1"),
	bad(V311, "connect with bytes behind its end", "10 0e"+connect4+"02 003c 0001 61 00", MalformedPacket, ""),
	bad(V311, "connect cut off", "10 0b"+connect4+"02 003c 00", MalformedPacket, ""),
	bad(V311, "client id with a NUL", "10 0d"+connect4+"02 003c 0001 00", MalformedPacket, "MQTT-1.5.4-2"),
	bad(V5, "will delay among the properties of connect", "10 12"+connect5+"02 003c 05 1800000000 0000", MalformedPacket, ""),
	bad(V5, "receive maximum among the properties of a will", "10 17"+connect5+"04 003c 00 0000 03 210001 0001 74 0001 70", MalformedPacket, ""),
	bad(V5, "receive maximum 0", "10 10"+connect5+"02 003c 03 210000 0000", ProtocolError, ""),
	bad(V5, "maximum packet size 0", "10 12"+connect5+"02 003c 05 2700000000 0000", ProtocolError, ""),
	bad(V5, "request problem information 2", "10 0f"+connect5+"02 003c 02 1702 0000", ProtocolError, ""),
	bad(V5, "request response information 2", "10 0f"+connect5+"02 003c 02 1902 0000", ProtocolError, ""),
	bad(V5, "session expiry twice", "10 17"+connect5+"02 003c 0a 1100000001 1100000001 0000", ProtocolError, ""),
	bad(V5, "authentication data without a method", "10 10"+connect5+"02 003c 03 160000 0000", ProtocolError, ""),
	// CONNACK.
	bad(V311, "connack with reserved flags", "20 02 02 00", MalformedPacket, "MQTT-3.2.2-1"),
	bad(V311, "connack with return code 6", "20 02 00 06", MalformedPacket, ""),
	bad(V311, "connack that refuses with a session", "20 02 01 05", MalformedPacket, "MQTT-3.2.2-6"),
	bad(V5, "connack with a code of others", "20 03 00 92 00", MalformedPacket, "MQTT-3.2.2-8"),
	bad(V5, "maximum QoS 2", "20 05 00 00 02 2402", ProtocolError, ""),
	bad(V5, "retain available 2", "20 05 00 00 02 2502", ProtocolError, ""),
	bad(V5, "wildcards available 2", "20 05 00 00 02 2802", ProtocolError, ""),
	bad(V5, "subscription ids available 2", "20 05 00 00 02 2902", ProtocolError, ""),
	bad(V5, "shared subscriptions available 2", "20 05 00 00 02 2a02", ProtocolError, ""),
	// PUBLISH.
	bad(V311, "publish with id 0", "32 05 0001 61 0000", ProtocolError, "MQTT-2.2.1-3"),
	bad(V311, "publish without an id", "32 03 0001 61", MalformedPacket, ""),
	bad(V311, "publish on an empty topic", "30 02 0000", TopicNameInvalid, "MQTT-4.7.3-1"),
	bad(V5, "publish with neither topic nor alias", "30 03 0000 00", ProtocolError, "MQTT-4.7.3-1"),
	bad(V311, "publish on +", "30 03 0001 2b", TopicNameInvalid, "MQTT-3.3.2-2"),
	bad(V311, "publish on a#", "30 04 0002 6123", TopicNameInvalid, "MQTT-3.3.2-2"),
	bad(V311, "topic with a NUL", "30 04 0002 6100", MalformedPacket, "MQTT-1.5.4-2"),
	bad(V311, "topic with a surrogate", "30 05 0003 eda080", MalformedPacket, "MQTT-1.5.4-1"),
	bad(V311, "topic with an overlong form", "30 04 0002 c0af", MalformedPacket, "MQTT-1.5.4-1"),
	bad(V311, "topic cut off", "30 03 0002 61", MalformedPacket, ""),
	bad(V5, "topic alias 0", "30 06 0000 03 230000", TopicAliasInvalid, "MQTT-3.3.2-8"),
	bad(V5, "topic alias twice", "30 09 0000 06 230001 230001", ProtocolError, ""),
	bad(V5, "payload format 2", "30 06 0001 61 02 0102", ProtocolError, ""),
	bad(V5, "subscription id 0", "30 06 0001 61 02 0b00", ProtocolError, ""),
	bad(V5, "subscription id of five bytes", "30 0a 0001 61 06 0bffffffff01", MalformedPacket, "MQTT-1.5.5-1"),
	bad(V5, "response topic with a wildcard", "30 08 0001 61 04 080001 23", ProtocolError, "MQTT-3.3.2-14"),
	bad(V5, "empty response topic", "30 07 0001 61 03 080000", ProtocolError, "MQTT-3.3.2-14"),
	bad(V5, "property of others", "30 07 0001 61 03 210001", MalformedPacket, ""),
	bad(V5, "property that does not exist", "30 06 0001 61 02 0400", MalformedPacket, ""),
	bad(V5, "property beyond the table", "30 06 0001 61 02 7f00", MalformedPacket, ""),
	bad(V5, "property that reaches beyond its block", "30 09 0001 61 03 030002 6161", MalformedPacket, ""),
	bad(V5, "properties that reach beyond the packet", "30 04 0001 61 05", MalformedPacket, ""),
	bad(V5, "no properties, not even their length", "30 03 0001 61", MalformedPacket, ""),
	bad(V5, "user property with bad UTF-8", "30 0a 0001 61 06 260001 ff 0000", MalformedPacket, "MQTT-1.5.4-1"),
	bad(V5, "user property without a value", "30 08 0001 61 04 260001 61", MalformedPacket, ""),
	// PUBACK and its kin.
	bad(V311, "puback with id 0", "40 02 0000", ProtocolError, "MQTT-2.2.1-5"),
	bad(V311, "puback of one byte", "40 01 00", MalformedPacket, ""),
	bad(V311, "puback of 3.1.1 with a code", "40 03 0001 00", MalformedPacket, ""),
	bad(V5, "puback with a code of others", "40 03 0001 92", MalformedPacket, "MQTT-3.4.2-1"),
	bad(V5, "puback with code 1, which is for SUBACK", "40 03 0001 01", MalformedPacket, "MQTT-3.4.2-1"),
	bad(V5, "pubrec with a code of others", "50 03 0001 01", MalformedPacket, "MQTT-3.5.2-1"),
	bad(V5, "pubrel with a code of others", "62 03 0001 80", MalformedPacket, "MQTT-3.6.2-1"),
	bad(V5, "pubcomp with a code of others", "70 03 0001 80", MalformedPacket, "MQTT-3.7.2-1"),
	bad(V5, "puback with bytes behind its end", "40 05 0001 00 00 00", MalformedPacket, ""),
	bad(V5, "puback with two reason strings", "40 0a 0001 00 06 1f0000 1f0000", ProtocolError, ""),
	// SUBSCRIBE and UNSUBSCRIBE.
	bad(V311, "subscribe to nothing", "82 02 0001", ProtocolError, "MQTT-3.8.3-2"),
	bad(V5, "subscribe to nothing", "82 03 0001 00", ProtocolError, "MQTT-3.8.3-2"),
	bad(V311, "subscribe with id 0", "82 06 0000 0001 61 00", ProtocolError, "MQTT-2.2.1-3"),
	bad(V311, "subscribe with QoS 3", "82 06 0001 0001 61 03", MalformedPacket, "MQTT-3-8.3-4"),
	bad(V311, "subscribe of 3.1.1 with options of 5", "82 06 0001 0001 61 04", MalformedPacket, "MQTT-3-8.3-4"),
	bad(V5, "subscribe with QoS 3", "82 07 0001 00 0001 61 03", ProtocolError, ""),
	bad(V5, "subscribe with reserved options", "82 07 0001 00 0001 61 40", MalformedPacket, "MQTT-3.8.3-5"),
	bad(V5, "subscribe with retain handling 3", "82 07 0001 00 0001 61 30", ProtocolError, ""),
	bad(V5, "shared subscription with no local", "82 10 0001 00 000a 2473686172652f672f61 04", ProtocolError, "MQTT-3.8.3-4"),
	bad(V5, "subscribe with two subscription ids", "82 0b 0001 04 0b01 0b02 0001 61 00", ProtocolError, ""),
	bad(V311, "subscribe without options", "82 05 0001 0001 61", MalformedPacket, ""),
	bad(V311, "filter with a NUL", "82 06 0001 0001 00 00", MalformedPacket, "MQTT-1.5.4-2"),
	bad(V311, "unsubscribe from nothing", "a2 02 0001", ProtocolError, "MQTT-3.10.3-2"),
	bad(V311, "unsubscribe with id 0", "a2 05 0000 0001 61", ProtocolError, "MQTT-2.2.1-3"),
	bad(V311, "unsubscribe cut off", "a2 05 0001 0002 61", MalformedPacket, ""),
	bad(V311, "suback with id 0", "90 03 0000 00", ProtocolError, "MQTT-2.2.1-6"),
	bad(V311, "suback without a code", "90 02 0001", MalformedPacket, ""),
	bad(V311, "suback with a code of 5", "90 03 0001 8f", MalformedPacket, "MQTT-3.9.3-2"),
	bad(V5, "suback with a code of others", "90 04 0001 00 03", MalformedPacket, "MQTT-3.9.3-2"),
	bad(V5, "unsuback with a code of others", "b0 04 0001 00 01", MalformedPacket, "MQTT-3.11.3-2"),
	bad(V311, "unsuback of 3.1.1 with a code", "b0 03 0001 00", MalformedPacket, ""),
	// DISCONNECT and AUTH.
	bad(V311, "disconnect of 3.1.1 with a body", "e0 01 00", MalformedPacket, ""),
	bad(V5, "disconnect with a code of others", "e0 01 01", MalformedPacket, "MQTT-3.14.2-1"),
	bad(V5, "disconnect with bytes behind its end", "e0 03 00 00 00", MalformedPacket, ""),
	bad(V311, "auth in 3.1.1", "f0 00", MalformedPacket, ""),
	bad(V5, "auth with a code of others", "f0 01 80", MalformedPacket, "MQTT-3.15.2-1"),
	bad(V5, "auth without a method", "f0 02 18 00", ProtocolError, ""),
}
