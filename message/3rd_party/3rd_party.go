// Package thirdparty is what other clouds say, under the namespace `3rd_party.`, as a bridge brings it in.
package thirdparty

import "github.com/naru-platform/naru/message"

// Contracts lists what other clouds say.
func Contracts() []message.Contract {
	return []message.Contract{
		{
			Subjects: "3rd_party.*.*.>", Type: "3rd_party.message.v1", Owner: "3rd_party", Route: message.ByLog,
			Doc:  "What a cloud, the second token, says of one of its devices, the third.",
			Says: []string{"3rd_party.c2c"}, Hears: []string{"service_platform.rule"},
		},
	}
}
