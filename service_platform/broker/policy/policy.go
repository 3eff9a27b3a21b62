// Package policy decides what a client of the broker may publish, subscribe to and be sent: named lists of subjects to
// allow and to deny, as data in the configuration, compiled once and shared by all clients. It does no I/O.
//
// A client gets what any policy that applies to it allows, and no policy that applies to it denies. The order of rules
// and of policies means nothing. What nobody allows is denied.
//
// Subjects are the client's own view: below a listener's mount point they are written, and asked for, without it. A
// policy is held within the mount point whatever it allows.
package policy

// Policy is what some clients may do.
type Policy struct {
	// Doc says to people what it is for.
	Doc string `json:"doc,omitempty"`
	// For says to whom it applies by itself. Without it, the policy applies where it is named only: by a listener, or by
	// a device's registration.
	For *For `json:"for,omitempty"`
	// ClientIDs are MQTT client ids beside the one that a device has anyway, its name; for clients that are no devices,
	// they are all that it may be. In an entry `*` stands for any characters, once, and the variables may be a part:
	// ${device}-* is d-17-phone.
	ClientIDs []string `json:"client_ids,omitempty"`
	// Publish is for what clients say, wills among it.
	Publish Rules `json:"publish,omitzero"`
	// Subscribe is for what clients ask for and for all that is sent to them. A subscription is granted where one entry
	// of Allow, of whatever policy, covers all of it, and none of Deny does; of what it selects, messages that are denied
	// are withheld one by one.
	Subscribe Rules `json:"subscribe,omitzero"`
}

// For selects clients. Of its lists, each that is there has to have the client's; of one list, one entry has to.
type For struct {
	// All is everybody; no list goes with it.
	All bool `json:"all,omitempty"`
	// Listeners are names of listeners.
	Listeners []string `json:"listeners,omitempty"`
	// Groups are groups of devices, as they are registered.
	Groups []string `json:"groups,omitempty"`
	// Users are names that clients log in with.
	Users []string `json:"users,omitempty"`
}

// Rules are lists of subjects, each in naru's grammar (`device.*.telemetry.>`), which is how they are shown, or as MQTT
// topic filters (`device/+/telemetry/#`), which is what a text with `/`, `+` or `#` is taken for. A whole token or level
// may be a variable: ${device}, ${client_id}, ${username}, ${group} (any of the device's groups) or ${attribute.<name>}.
type Rules struct {
	Allow []string `json:"allow,omitempty"`
	Deny  []string `json:"deny,omitempty"` // wins over every Allow
}

// IsZero says that nothing is said.
func (r Rules) IsZero() bool { return r.Allow == nil && r.Deny == nil }

// The most of each: a client's policies are looked through when it connects, and a rule takes some hundred bytes.
const (
	policiesMax = 1000
	rulesMax    = 10_000 // of all policies
	nameMax     = 64     // characters of a policy's name
	textMax     = 1024   // bytes of a rule
	depthMax    = 128    // tokens of a rule, as the broker takes levels of a filter
)

// Action is what a client is asked about.
type Action string

const (
	// Publish is to say something, now or as a will.
	Publish Action = "publish"
	// Subscribe is to ask for all that a filter selects.
	Subscribe Action = "subscribe"
	// Deliver is to be sent one message: live, retained, from a queue, as a member of a shared subscription.
	Deliver Action = "deliver"
)
