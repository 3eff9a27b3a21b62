package simulator

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/naru-platform/naru/device/sdk"
)

// obey carries out a command: `ping` answers with the device's time, `interval` {"seconds":5} and, of a thermometer,
// `setpoint` {"celsius":21} change what the twin of the same name does, until the device starts again; `restart` has a pump
// that is stalled start. It knows no other.
func (s *settings) obey(_ context.Context, c sdk.Command) (any, error) {
	switch c.Name {
	case "ping":
		return map[string]any{"time": time.Now().UTC()}, nil
	case "interval":
		return s.change(c, "seconds", intervalLeast, intervalMost, func(v float64) error {
			s.rate = time.Duration(v * float64(time.Second))
			select {
			case s.changed <- struct{}{}:
			default:
			}
			return nil
		})
	case "setpoint":
		return s.change(c, "celsius", setpointLeast, setpointMost, func(v float64) error {
			t, ok := s.model.(*thermometer)
			if !ok {
				return fmt.Errorf("this device is no thermometer")
			}
			t.setpoint = &v
			return nil
		})
	case "restart":
		s.mu.Lock()
		defer s.mu.Unlock()
		p, ok := s.model.(*pump)
		if !ok {
			return nil, fmt.Errorf("this device is no pump")
		}
		p.restart()
		return map[string]any{"state": p.state}, nil
	}
	return nil, fmt.Errorf("the device knows no command %q; it knows ping, interval, setpoint and restart", c.Name)
}

// change reads a number of the command's data and sets it.
func (s *settings) change(c sdk.Command, field string, least, most float64, set func(float64) error) (any, error) {
	var data map[string]json.RawMessage
	var v float64
	if err := json.Unmarshal(c.Data, &data); err != nil || json.Unmarshal(data[field], &v) != nil || v < least || v > most {
		return nil, fmt.Errorf("want {%q: a number from %g to %g}", field, least, most)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := set(v); err != nil {
		return nil, err
	}
	return map[string]any{field: v}, nil
}
