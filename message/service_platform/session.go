package serviceplatform

import (
	"encoding/json"

	"github.com/naru-platform/naru/message"
)

// SessionState is what a node's broker tells its neighbours of the sessions that are its own, where several share a bus.
// All of them hear all of it in one order, that of the log, so they agree on whose a client is.
type SessionState struct {
	Node   string     `json:"node"`
	Store  message.ID `json:"store"`  // what the node keeps; one that has lost its disk has another
	Start  message.ID `json:"start"`  // of the broker, since when it speaks so
	Number uint64     `json:"number"` // among those of the start, without a gap
	Clock  uint64     `json:"clock"`  // not below any presence that the node has told
	// Begins says that the start is new: what was connected before it is not any more.
	Begins bool `json:"begins,omitempty"`
	// Lacks goes with Begins: the node has not all that is kept.
	Lacks bool `json:"lacks,omitempty"`
	// Heard is how far the node had heard the logs when it was as it says here. It goes with the last of several parts.
	Heard []Place `json:"heard,omitempty"`
	// More says that the next message is a part of this one.
	More bool `json:"more,omitempty"`
	// Changes are keys and values of what the node keeps of its sessions, in the broker's own form.
	Changes []byte   `json:"changes,omitempty"`
	Claims  []Claim  `json:"claims,omitempty"`
	Yields  []Yield  `json:"yields,omitempty"`
	Adopts  *Adopted `json:"adopts,omitempty"`
	// Asks is of a node that lacks what is kept; each other one says it then, as Changes and Holds, and at the end that all is Given.
	Asks  *Ask       `json:"asks,omitempty"`
	Holds []Hold     `json:"holds,omitempty"`
	Given message.ID `json:"given,omitzero"`
	// Shares are of groups of shared subscriptions: how many members the node has by now whose sessions are not kept. Members
	// whose sessions are kept are told with them.
	Shares []Share `json:"shares,omitempty"`
	// Joins are groups that have new members at the node: whoever draws for them says then how far it has heard.
	Joins []Share `json:"joins,omitempty"`
	// Whole says that the node lacks nothing any more.
	Whole bool `json:"whole,omitempty"`
}

// Place is a place in a log, up to and including.
type Place struct {
	Log        message.ID `json:"log"`
	Generation uint32     `json:"generation"`
	Partition  uint32     `json:"partition"`
	Sequence   uint64     `json:"sequence"`
}

// Client names a session.
type Client struct {
	Mount    string `json:"mount,omitempty"`
	Identity string `json:"identity,omitempty"`
	ClientID string `json:"client_id"`
}

// Claim says that a client is at the node now: it is the node's, as soon as the one that has it yields.
type Claim struct {
	Client
	Clean   bool   `json:"clean,omitempty"` // what is kept of the client is not wanted
	Address string `json:"address,omitempty"`
}

// Yield says that a client is the node's no more, and goes to the last one that has claimed it.
type Yield struct {
	Client
	// Received are messages of QoS 2 that are in the log, and whose PUBREL has not come, by packet identifier.
	Received map[uint16]message.ID `json:"received,omitempty"`
	// Taken says that the client was connected, and had not closed: another connection took its place.
	Taken bool `json:"taken,omitempty"`
}

// Adopted is a start of a node that is gone: all that was its own is the speaker's, and nothing more of it counts.
type Adopted struct {
	Node  string     `json:"node"`
	Start message.ID `json:"start"`
}

// Ask is a question for what others keep: all of it, or what was a node's own when it was gone.
type Ask struct {
	ID message.ID `json:"id"`
	Of string     `json:"of,omitempty"`
}

// Hold says that a client is the speaker's.
type Hold struct {
	Client
	Next  string `json:"next,omitempty"` // the node that has claimed it
	Clean bool   `json:"clean,omitempty"`
	From  string `json:"from,omitempty"` // the node whose it was, when that one was gone
}

// Share is a group of a shared subscription.
type Share struct {
	Mount   string `json:"mount,omitempty"`
	Filter  string `json:"filter"` // with $share and the group's name
	Members int    `json:"members,omitempty"`
}

// SessionStateSubject is where a node's broker tells of its sessions.
func SessionStateSubject(node string) message.Subject {
	return message.NewSubject(message.ServicePlatform, "broker", "session", node)
}

func sessionState() message.Contract {
	return message.Contract{
		Subjects: "service_platform.broker.session.*", Type: "service_platform.broker.session_state.v1", Owner: "service_platform",
		Route: message.ByLog,
		Doc: "What a node's broker keeps of its clients, for its neighbours, who go on with it when the client comes to them or the node is gone. " +
			"Not said where a broker has no neighbours. The last token is the node.",
		Says: []string{"service_platform.broker"}, Hears: []string{"service_platform.broker"},
		ContentType: "application/json",
		Schema: json.RawMessage(`{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object",
"required":["node","store","start","number","clock"],
"properties":{"node":{"type":"string"},"store":{"type":"string"},"start":{"type":"string"},"number":{"type":"integer","minimum":1},"clock":{"type":"integer"},
"begins":{"type":"boolean"},"lacks":{"type":"boolean"},"heard":{"type":"array"},"more":{"type":"boolean"},"changes":{"type":"string"},
"claims":{"type":"array","items":{"type":"object","required":["client_id"]}},
"yields":{"type":"array","items":{"type":"object","required":["client_id"]}},
"adopts":{"type":"object","required":["node","start"]},"asks":{"type":"object","required":["id"]},
"holds":{"type":"array","items":{"type":"object","required":["client_id"]}},"shares":{"type":"array","items":{"type":"object","required":["filter"]}},"joins":{"type":"array","items":{"type":"object","required":["filter"]}},
"given":{"type":"string"},"whole":{"type":"boolean"}}}`),
		Example: json.RawMessage(`{"node":"n1","store":"0193d5a0-7b2c-7e41-9c3f-5d2f8a6b1c4e","start":"0193d5a1-0000-7e41-9c3f-5d2f8a6b1c4e","number":7,
"clock":1763866800000000000,"claims":[{"identity":"d-17","client_id":"d-17","address":"127.0.0.1:51312"}]}`),
	}
}
