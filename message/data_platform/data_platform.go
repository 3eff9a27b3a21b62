// Package dataplatform is what the data platform says, under the namespace `data_platform.`. A dataset's messages are
// contracts of their own, which its model brings.
package dataplatform

import "github.com/naru-platform/naru/message"

// Contracts lists what the data platform says.
func Contracts() []message.Contract {
	return []message.Contract{
		{
			Subjects: "data_platform.*.>", Type: "data_platform.dataset.v1", Owner: "data_platform", Route: message.ByLog,
			Doc:  "A message on its way into a dataset, the second token; the third is its device, or `-`, and what follows tells where it was said. The dataset's model is its schema. Not said: no dataset takes the message, and no rule put it there.",
			Says: []string{"data_platform.bridge"}, Hears: []string{"data_platform.etl"},
		},
	}
}
