package packet

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"testing"

	paho5 "github.com/eclipse/paho.golang/packets"
	paho3 "github.com/eclipse/paho.mqtt.golang/packets"
)

// What we write, another codec for MQTT 5 reads as the same packet; what it writes of that, we read as what we wrote.
func TestPahoUnderstandsV5(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	for range 4000 {
		p := random(r, V5)
		wire := write(nil, p, V5)
		theirs, err := paho5.ReadPacket(bytes.NewReader(wire))
		if err != nil {
			t.Fatalf("%+v is written as % x, which paho refuses: %v", p, wire, err)
		}
		compareV5(t, p, theirs)
		var back bytes.Buffer
		if theirs.Type != paho5.PUBLISH {
			_, err = theirs.WriteTo(&back)
		} else {
			_, err = theirs.Content.WriteTo(&back)
		}
		if err != nil {
			t.Fatal(err)
		}
		got, err := parse(back.Bytes(), V5)
		if err != nil {
			t.Fatalf("paho writes %+v as % x, which is refused: %v", p, back.Bytes(), err)
		}
		if c, ok := p.(*Connect); ok && c.Will != nil {
			// paho writes only these two of a will's properties; that it read the others was compared above.
			q := Properties{User: c.Will.Properties.User}
			if c.Will.Properties.Has(WillDelay) {
				q.Set(WillDelay, c.Will.Properties.Num(WillDelay, 0))
			}
			c.Will.Properties = q
		}
		if !reflect.DeepEqual(plain(got), plain(p)) {
			t.Fatalf("paho gives back\n%+v\nof\n%+v", got, p)
		}
	}
}

// compareV5 compares fields, so that two faults that undo each other on the way there and back are seen.
func compareV5(t *testing.T, ours any, cp *paho5.ControlPacket) {
	t.Helper()
	same := func(field string, a, b any) {
		t.Helper()
		if !reflect.DeepEqual(a, b) {
			t.Fatalf("%T: %s is %v; paho reads %v", ours, field, a, b)
		}
	}
	switch p := ours.(type) {
	case *Connect:
		c := cp.Content.(*paho5.Connect)
		same("client id", p.ClientID, c.ClientID)
		same("keep alive", p.KeepAlive, c.KeepAlive)
		same("clean start", p.CleanStart, c.CleanStart)
		same("user name", p.UserName, c.Username)
		same("password", string(p.Password), string(c.Password))
		same("will", p.Will != nil, c.WillFlag)
		if p.Will != nil {
			same("will topic", p.Will.Topic, c.WillTopic)
			same("will payload", string(p.Will.Payload), string(c.WillMessage))
			same("will QoS", p.Will.QoS, c.WillQOS)
			same("will retain", p.Will.Retain, c.WillRetain)
			compareProperties(same, &p.Will.Properties, c.WillProperties)
		}
		compareProperties(same, &p.Properties, c.Properties)
	case *Connack:
		c := cp.Content.(*paho5.Connack)
		same("session present", p.SessionPresent, c.SessionPresent)
		same("code", byte(p.Code), c.ReasonCode)
		compareProperties(same, &p.Properties, c.Properties)
	case *Publish:
		c := cp.Content.(*paho5.Publish)
		same("topic", p.Topic, c.Topic)
		same("id", p.ID, c.PacketID)
		same("payload", string(p.Payload), string(c.Payload))
		same("flags", [3]any{p.Dup, p.QoS, p.Retain}, [3]any{c.Duplicate, c.QoS, c.Retain})
		compareProperties(same, &p.Properties, c.Properties)
	case *Ack:
		same("id", p.ID, cp.PacketID())
		same("type", byte(p.Type), cp.Type)
	case *Subscribe:
		c := cp.Content.(*paho5.Subscribe)
		same("id", p.ID, c.PacketID)
		var subs []Subscription
		for _, s := range c.Subscriptions {
			subs = append(subs, Subscription{s.Topic, s.QoS, s.NoLocal, s.RetainAsPublished, s.RetainHandling})
		}
		same("subscriptions", p.Subscriptions, subs)
		compareProperties(same, &p.Properties, c.Properties)
	case *Unsubscribe:
		c := cp.Content.(*paho5.Unsubscribe)
		same("filters", p.Filters, c.Topics)
		compareProperties(same, &p.Properties, c.Properties)
	case *Disconnect:
		c := cp.Content.(*paho5.Disconnect)
		same("code", byte(p.Code), c.ReasonCode)
		compareProperties(same, &p.Properties, c.Properties)
	case *Auth:
		c := cp.Content.(*paho5.Auth)
		same("code", byte(p.Code), c.ReasonCode)
		compareProperties(same, &p.Properties, c.Properties)
	}
}

func compareProperties(same func(string, any, any), p *Properties, c *paho5.Properties) {
	same("strings", [7]string{p.ContentType, p.ResponseTopic, p.AssignedClientID, p.AuthMethod, p.ResponseInformation, p.ServerReference, p.ReasonString},
		[7]string{c.ContentType, c.ResponseTopic, c.AssignedClientID, c.AuthMethod, c.ResponseInfo, c.ServerReference, c.ReasonString})
	same("binary", string(p.CorrelationData)+"|"+string(p.AuthData), string(c.CorrelationData)+"|"+string(c.AuthData))
	var user []UserProperty
	for _, u := range c.User {
		user = append(user, UserProperty(u))
	}
	same("user properties", p.User, user)
	for id, theirs := range map[PropertyID]any{PayloadFormat: c.PayloadFormat, MessageExpiry: c.MessageExpiry, SessionExpiry: c.SessionExpiryInterval,
		ServerKeepAlive: c.ServerKeepAlive, RequestProblemInfo: c.RequestProblemInfo, WillDelay: c.WillDelayInterval,
		RequestResponseInfo: c.RequestResponseInfo, ReceiveMaximum: c.ReceiveMaximum, TopicAliasMaximum: c.TopicAliasMaximum,
		TopicAlias: c.TopicAlias, MaximumQoS: c.MaximumQOS, RetainAvailable: c.RetainAvailable, MaximumPacketSize: c.MaximumPacketSize,
		WildcardAvailable: c.WildcardSubAvailable, SubIDAvailable: c.SubIDAvailable, SharedAvailable: c.SharedSubAvailable} {
		name := propertyTable[id].name
		v := reflect.ValueOf(theirs)
		same(name, p.Has(id), !v.IsNil())
		if !v.IsNil() {
			same(name, uint64(p.Num(id, 0)), v.Elem().Uint())
		}
	}
	same("subscription identifier", len(p.SubscriptionIDs) > 0, c.SubscriptionIdentifier != nil)
	if c.SubscriptionIdentifier != nil {
		same("subscription identifier", int(p.SubscriptionIDs[0]), *c.SubscriptionIdentifier)
	}
}

// The same for 3.1.1.
func TestPahoUnderstandsV311(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 11))
	for range 4000 {
		p := random(r, V311)
		wire := write(nil, p, V311)
		theirs, err := paho3.ReadPacket(bytes.NewReader(wire))
		if err != nil {
			t.Fatalf("%+v is written as % x, which paho refuses: %v", p, wire, err)
		}
		compareV311(t, p, theirs)
		var back bytes.Buffer
		if err := theirs.Write(&back); err != nil {
			t.Fatal(err)
		}
		got, err := parse(back.Bytes(), V311)
		if err != nil {
			t.Fatalf("paho writes %+v as % x, which is refused: %v", p, back.Bytes(), err)
		}
		if !reflect.DeepEqual(plain(got), plain(p)) {
			t.Fatalf("paho gives back\n%+v\nof\n%+v", got, p)
		}
	}
}

func compareV311(t *testing.T, ours any, theirs paho3.ControlPacket) {
	t.Helper()
	same := func(field string, a, b any) {
		t.Helper()
		if !reflect.DeepEqual(a, b) {
			t.Fatalf("%T: %s is %v; paho reads %v", ours, field, a, b)
		}
	}
	switch p := ours.(type) {
	case *Connect:
		c := theirs.(*paho3.ConnectPacket)
		same("client id", p.ClientID, c.ClientIdentifier)
		same("keep alive", p.KeepAlive, c.Keepalive)
		same("clean session", p.CleanStart, c.CleanSession)
		same("user name", p.UserName, c.Username)
		same("password", string(p.Password), string(c.Password))
		same("will", p.Will != nil, c.WillFlag)
		if p.Will != nil {
			same("will topic", p.Will.Topic, c.WillTopic)
			same("will payload", string(p.Will.Payload), string(c.WillMessage))
			same("will flags", [2]any{p.Will.QoS, p.Will.Retain}, [2]any{c.WillQos, c.WillRetain})
		}
	case *Connack:
		c := theirs.(*paho3.ConnackPacket)
		same("answer", [2]any{p.SessionPresent, p.Code.ConnackV311()}, [2]any{c.SessionPresent, c.ReturnCode})
	case *Publish:
		c := theirs.(*paho3.PublishPacket)
		same("topic", p.Topic, c.TopicName)
		same("id", p.ID, c.MessageID)
		same("payload", string(p.Payload), string(c.Payload))
		same("flags", [3]any{p.Dup, p.QoS, p.Retain}, [3]any{c.Dup, c.Qos, c.Retain})
	case *Ack:
		same("id", p.ID, theirs.Details().MessageID)
	case *Subscribe:
		c := theirs.(*paho3.SubscribePacket)
		same("id", p.ID, c.MessageID)
		var subs []Subscription
		for i := range c.Topics {
			subs = append(subs, Subscription{Filter: c.Topics[i], QoS: c.Qoss[i]})
		}
		same("subscriptions", p.Subscriptions, subs)
	case *Unsubscribe:
		c := theirs.(*paho3.UnsubscribePacket)
		same("filters", p.Filters, c.Topics)
	case *SubAnswer:
		same("id", p.ID, theirs.Details().MessageID)
	}
}
