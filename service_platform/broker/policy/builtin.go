package policy

import (
	"cmp"
	"slices"
	"strings"

	"github.com/naru-platform/naru/message"
)

// The names of the built-in policies.
const (
	DevicePolicy = "device"
	OpenPolicy   = "open"
)

// Builtin gives the policies that need not be configured, as data; none has a For, so each applies where it is named.
func Builtin(c *message.Catalog) map[string]Policy {
	return map[string]Policy{DevicePolicy: Device(c), OpenPolicy: Open()}
}

// Open lets a client do anything, by any client id, except below $aws and $SYS, of which it hears the latter, the
// broker's own numbers. It is for listeners with a mount point.
func Open() Policy {
	return Policy{
		Doc:       "Anything below the mount point of the listener, and the broker's numbers to hear.",
		ClientIDs: []string{"*"},
		Publish:   Rules{Allow: []string{">"}},
		Subscribe: Rules{Allow: []string{">", "$SYS.>"}},
	}
}

// Device is the policy of a device that nobody thought of: it says what the catalog says that devices say, on its own
// subtree; and it hears its own subtree, but for what the catalog says is neither said nor heard by devices.
//
// What is denied stays denied whatever another policy allows: no device tells what only the platform knows (presence,
// twin answers), of itself or of another, and none wishes from itself what the platform wishes from it (commands). To
// wish something from another device is just not allowed, so that another policy can.
func Device(c *message.Catalog) Policy {
	p := Policy{Doc: "A device speaks as the catalog has it, on its own subtree, and hears its own subtree."}
	p.Subscribe.Allow = []string{own + ".>"}
	said := saidByDevices(c)
	for _, s := range said {
		p.Publish.Allow = append(p.Publish.Allow, s.String())
	}
	for _, k := range c.Contracts() {
		of := below(k.Subjects)
		switch {
		case of == nil || k.Subjects == twins:
		case byDevice(k.Says):
		case slices.ContainsFunc(said, func(s pattern) bool { return of.covers(s) }):
			// Part of it is said by devices, under a contract that is more particular: that one counts.
		case !byDevice(k.Hears): // a fact
			p.Publish.Deny = append(p.Publish.Deny, of.of("*"))
		default: // a wish
			p.Publish.Deny = append(p.Publish.Deny, of.String())
		}
		if of != nil && !byDevice(k.Says) && !byDevice(k.Hears) && !slices.ContainsFunc(said, of.overlaps) {
			p.Subscribe.Deny = append(p.Subscribe.Deny, of.String())
		}
	}
	if slices.ContainsFunc(c.Contracts(), func(k message.Contract) bool { return k.Subjects == twins }) {
		for _, r := range twinRequests() {
			p.Publish.Deny = append(p.Publish.Deny, r.of("*")+".>") // answers
		}
	}
	for _, list := range []*[]string{&p.Publish.Allow, &p.Publish.Deny, &p.Subscribe.Deny} {
		slices.SortFunc(*list, cmp.Compare[string])
		*list = slices.Compact(*list)
	}
	return p
}

const own = message.Device + ".${" + varDevice + "}"

// saidByDevices is what devices say, each on its own subtree.
func saidByDevices(c *message.Catalog) (list []pattern) {
	for _, k := range c.Contracts() {
		of := below(k.Subjects)
		switch {
		case of == nil || !byDevice(k.Says):
		case k.Subjects == twins:
			list = append(list, twinRequests()...)
		default:
			list = append(list, of)
		}
	}
	return list
}

// twins is a contract for both directions: who says what in it is told by the words behind. What begins with a request
// and goes on is its answer (device.TwinRequest, device.ShadowTopic).
const twins message.Pattern = "device.*.twin.>"

func twinRequests() (list []pattern) {
	for _, request := range []string{"get", "update", "delete"} {
		list = append(list, below(message.Pattern("device.*.twin."+request)), below(message.Pattern("device.*.twin.name.*."+request)))
	}
	return list
}

// byDevice says whether devices are among those who say or hear; a star is everybody.
func byDevice(who []string) bool {
	return slices.Contains(who, message.Device) || slices.Contains(who, "*")
}

// below gives the part of a contract's subjects that is a device's own, with the variable in the place of its name; nil
// where there is none. Subjects of one particular device are none: whose they are, only another policy can say.
func below(subjects message.Pattern) pattern {
	name := token{varDevice, true}
	first, rest, more := strings.Cut(string(subjects), ".")
	switch {
	case first == ">":
		return pattern{{text: message.Device}, name, {text: ">"}}
	case first != message.Device && first != "*" || !more:
		return nil
	}
	second, rest, more := strings.Cut(rest, ".")
	p := pattern{{text: message.Device}, name}
	switch {
	case second == ">":
		return append(p, token{text: ">"})
	case second != "*" || !more:
		return nil
	}
	for text := range strings.SplitSeq(rest, ".") {
		p = append(p, token{text: text})
	}
	return p
}

// of is the pattern with another token in the device's place.
func (p pattern) of(device string) string {
	other := slices.Clone(p)
	other[1] = token{text: device}
	return other.String()
}
