package serviceplatform

import "github.com/naru-platform/naru/message"

// BridgeSubject is where a rule puts its output for a dataset.
func BridgeSubject(dataset string) message.Subject {
	return message.NewSubject(message.ServicePlatform, "bridge", dataset, "put")
}

// bridgeContracts lists what goes over into the data platform.
func bridgeContracts() []message.Contract {
	return []message.Contract{
		{
			Subjects: "service_platform.bridge.*.put", Type: "service_platform.bridge_put.v1", Owner: "service_platform", Route: message.ByLog,
			Doc:  "What a rule puts into a dataset, the third token: the rule's output, of which the dataset's model makes a row. Not said: no rule with such an action took the message.",
			Says: []string{"service_platform.rule"}, Hears: []string{"data_platform.bridge"},
		},
	}
}
