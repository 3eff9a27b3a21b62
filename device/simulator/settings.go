package simulator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/naru-platform/naru/device/sdk"
)

// settings are what a simulated device's unnamed twin sets: `interval`, in seconds between two readings, of each device,
// and `setpoint`, in °C, of a thermometer. A device that starts says what it is, and is told what it should be: like most
// real ones it remembers nothing.
type settings struct {
	mu      sync.Mutex
	model   model
	rate    time.Duration
	changed chan struct{} // told when rate has changed
}

// The values that a device takes.
const (
	intervalLeast, intervalMost = 0.001, 86400.0
	setpointLeast, setpointMost = -50.0, 100.0
)

func newSettings(m model, rate time.Duration) *settings {
	return &settings{model: m, rate: rate, changed: make(chan struct{}, 1)}
}

// tick is the model's next reading.
func (s *settings) tick(now time.Time) reading {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.model.tick(now)
}

// interval is the time between two readings.
func (s *settings) interval() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rate
}

// follow says what the device is, and has it become what it should be from now on.
func (s *settings) follow(ctx context.Context, t *sdk.Twin) error {
	if err := t.Report(ctx, s.report()); err != nil {
		return err
	}
	return t.OnDelta(ctx, s.take)
}

// report is what the device is.
func (s *settings) report() map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	is := map[string]any{"interval": s.rate.Seconds()}
	if t, ok := s.model.(*thermometer); ok && t.setpoint != nil {
		is["setpoint"] = *t.setpoint
	}
	return is
}

// take takes over what is desired and gives what was taken. A field that the device does not know stays a difference, as
// does a value that it cannot be; what is wrong with it is told where nothing was taken.
func (s *settings) take(_ context.Context, d sdk.Delta) (any, error) {
	var desired map[string]json.RawMessage
	if err := d.Decode(&desired); err != nil {
		return nil, err
	}
	taken, faults := map[string]any{}, []error(nil)
	number := func(name string, least, most float64, set func(float64) bool) {
		raw, ok := desired[name]
		if !ok {
			return
		}
		var v float64
		if err := json.Unmarshal(raw, &v); err != nil || v < least || v > most {
			faults = append(faults, fmt.Errorf("%s is to be %s; want a number from %g to %g", name, raw, least, most))
		} else if set(v) {
			taken[name] = raw
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	number("interval", intervalLeast, intervalMost, func(v float64) bool {
		s.rate = time.Duration(v * float64(time.Second))
		select {
		case s.changed <- struct{}{}:
		default:
		}
		return true
	})
	number("setpoint", setpointLeast, setpointMost, func(v float64) bool {
		t, ok := s.model.(*thermometer)
		if ok {
			t.setpoint = &v
		}
		return ok
	})
	if len(taken) == 0 {
		return nil, errors.Join(faults...)
	}
	return taken, nil
}
