package rule

import (
	"context"

	"github.com/naru-platform/naru/component/twins"
	"github.com/naru-platform/naru/message/device"
)

// shadows is what get_thing_shadow() reads while messages are handled; it does not wait.
type shadows struct{ *twins.Twins }

// ThingShadow is of sql.Lookup.
func (s shadows) ThingShadow(thing, name string) ([]byte, error) {
	return s.Document(device.TwinRef{Device: thing, Shadow: name})
}

// patientShadows waits for what is not known yet, for a while; for who asks over HTTP.
type patientShadows struct {
	ctx context.Context // of the one request that it is made for
	*twins.Twins
}

// ThingShadow is of sql.Lookup.
func (p patientShadows) ThingShadow(thing, name string) ([]byte, error) {
	return p.Wait(p.ctx, device.TwinRef{Device: thing, Shadow: name})
}
