package simulator

import (
	"math"
	"math/rand/v2"
	"time"
)

// reading is what a device says at a tick: a measurement, and perhaps something that happened.
type reading struct {
	Seq     uint64    `json:"seq"` // from 1, without gaps: who hears it sees what is missing
	TS      time.Time `json:"ts"`
	Kind    string    `json:"kind"`
	Celsius *float64  `json:"celsius,omitempty"`
	State   string    `json:"state,omitempty"`
	Bar     *float64  `json:"bar,omitempty"`
	Open    *bool     `json:"open,omitempty"`

	event string // its name; empty for none
}

// model is one lifelike device. The same seed and times give the same readings.
type model interface {
	tick(now time.Time) reading
}

// newModel gives the nth device of a fleet: of ten, six thermometers, three pumps and a door.
func newModel(n int, seed uint64) model {
	r := rand.New(rand.NewPCG(seed, uint64(n)))
	switch {
	case n%10 < 6:
		return &thermometer{r: r, mean: 15 + 10*r.Float64(), swing: 2 + 4*r.Float64()}
	case n%10 < 9:
		return &pump{r: r, state: "idle", said: "idle"}
	default:
		return &door{r: r}
	}
}

// thermometer follows the day, warmest at 15:00 UTC, with drift and noise. With a setpoint its room is heated or cooled,
// and comes to it in some dozens of readings.
type thermometer struct {
	r                  *rand.Rand
	mean, swing, drift float64
	setpoint           *float64
}

func (t *thermometer) tick(now time.Time) reading {
	if t.setpoint != nil {
		t.mean += 0.1 * (*t.setpoint - t.mean)
		t.swing *= 0.9
	}
	t.drift = 0.99*t.drift + 0.02*t.r.NormFloat64()
	hour := float64(now.Unix()%86400) / 3600
	c := t.mean + t.swing*math.Cos((hour-15)/24*2*math.Pi) + t.drift + 0.05*t.r.NormFloat64()
	return reading{Kind: "thermometer", Celsius: round(c, 100)}
}

// pump goes from idle over starting to running and back; now and then it stalls, and says so. Told to start again, it does
// so at once; else it finds out by itself after a while.
type pump struct {
	r           *rand.Rand
	state, said string
	bar         float64
}

// restart ends a stall, and changes nothing where there is none: told twice, it has started once.
func (p *pump) restart() {
	if p.state == "stalled" {
		p.state = "starting"
	}
}

func (p *pump) tick(time.Time) reading {
	chance := p.r.Float64()
	switch p.state {
	case "idle":
		p.bar *= 0.7
		if chance < 0.10 {
			p.state = "starting"
		}
	case "starting":
		p.bar += 1.5
		if p.bar > 4 {
			p.state = "running"
		}
	case "running":
		p.bar = 5 + 0.1*p.r.NormFloat64()
		if chance < 0.03 {
			p.state = "stalled"
		} else if chance < 0.08 {
			p.state = "idle"
		}
	case "stalled":
		p.bar *= 0.5
		if chance < 0.2 {
			p.state = "idle"
		}
	}
	out := reading{Kind: "pump", State: p.state, Bar: round(p.bar, 100)}
	if p.state != p.said {
		out.event, p.said = p.state, p.state
	}
	return out
}

// door is quiet for long, then opens and closes in a burst.
type door struct {
	r     *rand.Rand
	open  bool
	burst int
}

func (d *door) tick(time.Time) reading {
	before := d.open
	switch {
	case d.burst > 0:
		d.open = !d.open
		d.burst--
	case d.r.Float64() < 0.05:
		d.burst = 2 * (1 + d.r.IntN(5))
	}
	open := d.open
	out := reading{Kind: "door", Open: &open}
	if d.open != before {
		out.event = map[bool]string{true: "opened", false: "closed"}[d.open]
	}
	return out
}

func round(v, unit float64) *float64 {
	v = math.Round(v*unit) / unit
	return &v
}
