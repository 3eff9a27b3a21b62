package broker

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

type metrics struct {
	connections       prometheus.Gauge
	connects          *prometheus.CounterVec
	handshakes        *prometheus.CounterVec
	disconnects       *prometheus.CounterVec
	messages          *prometheus.CounterVec
	bytes             *prometheus.CounterVec
	packetsIn         prometheus.Counter
	packetsOut        prometheus.Counter
	puback            prometheus.Histogram
	refused           *prometheus.CounterVec
	heldBack          *prometheus.CounterVec
	heldBackFor       *prometheus.CounterVec
	badTrace          prometheus.Counter
	from, to          [3]prometheus.Counter // messages, by QoS
	bytesIn, bytesOut prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &metrics{
		connections: prometheus.NewGauge(prometheus.GaugeOpts{Name: "naru_connections", Help: "Clients connected."}),
		connects:    vec("naru_mqtt_connects_total", "Clients let in, by protocol version.", "version"),
		handshakes:  vec("naru_mqtt_handshakes_total", "TLS handshakes with clients: in full, or resumed by a session ticket.", "outcome"),
		disconnects: vec("naru_mqtt_disconnects_total", "Connections ended, by reason; `none` is a client's own DISCONNECT.", "reason"),
		messages:    vec("naru_mqtt_messages_total", "Messages received from and sent to clients.", "direction", "qos"),
		bytes:       vec("naru_mqtt_bytes_total", "Bytes of MQTT received from clients and sent to them, inside TLS.", "direction"),
		packetsIn:   counter("naru_mqtt_packets_received_total", "MQTT packets of any type received from clients."),
		packetsOut:  counter("naru_mqtt_packets_sent_total", "MQTT packets of any type sent to clients."),
		puback:      prometheus.NewHistogram(prometheus.HistogramOpts{Name: "naru_puback_seconds", Help: "From reading a burst with QoS 1 messages to their acknowledgement; one observation per write.", Buckets: prometheus.ExponentialBuckets(50e-6, 2, 16)}),
		refused:     vec("naru_refused_total", "What the door did not let in.", "component", "reason"),
		heldBack:    vec("naru_mqtt_held_back_total", "Messages whose clients were read later for it, by reason.", "reason"),
		heldBackFor: vec("naru_mqtt_held_back_seconds_total", "For how long.", "reason"),
		badTrace:    counter("naru_bad_traceparent_total", "Messages whose traceparent could not be read; they got a new one."),
	}
	for qos := range m.from {
		label := string('0' + byte(qos))
		m.from[qos], m.to[qos] = m.messages.WithLabelValues("in", label), m.messages.WithLabelValues("out", label)
	}
	m.bytesIn, m.bytesOut = m.bytes.WithLabelValues("in"), m.bytes.WithLabelValues("out")
	if r != nil {
		r.MustRegister(m.connections, m.connects, m.handshakes, m.disconnects, m.messages, m.bytes, m.packetsIn, m.packetsOut, m.puback, m.refused, m.heldBack, m.heldBackFor, m.badTrace)
	}
	return m
}

// watch shows how many wait to be let in.
func (m *metrics) watch(r prometheus.Registerer, g *turnstile) {
	if r != nil {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "naru_mqtt_connects_waiting",
			Help: "Connections that wait for their TLS handshake or password to be looked at."}, func() float64 { return float64(g.waiting()) }))
	}
}

// out counts what is sent to a client: whole packets.
func (m *metrics) out(b []byte) {
	m.bytesOut.Add(float64(len(b)))
	packets := 0
	for len(b) > 0 {
		_, _, total, _, err := packet.Frame(b, 0)
		if err != nil || total == 0 {
			break
		}
		b = b[total:]
		packets++
	}
	m.packetsOut.Add(float64(packets))
}

// in counts a burst that was read.
func (m *metrics) in(bytes, packets int) {
	m.bytesIn.Add(float64(bytes))
	m.packetsIn.Add(float64(packets))
}

// left counts the end of a connection.
func (m *metrics) left(why message.Reason) {
	reason := "none"
	if why != 0 {
		reason = why.String()
	}
	m.disconnects.WithLabelValues(reason).Inc()
}
