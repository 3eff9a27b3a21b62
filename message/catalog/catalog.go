// Package catalog joins the contracts of all namespaces, and shows them to people and tools.
package catalog

import (
	"sync"

	"github.com/naru-platform/naru/message"
	thirdparty "github.com/naru-platform/naru/message/3rd_party"
	dataplatform "github.com/naru-platform/naru/message/data_platform"
	"github.com/naru-platform/naru/message/device"
	"github.com/naru-platform/naru/message/operator"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// Default is the catalog of what naru itself says and hears.
var Default = sync.OnceValue(func() *message.Catalog {
	var all []message.Contract
	for _, contracts := range []func() []message.Contract{
		device.Contracts, serviceplatform.Contracts, dataplatform.Contracts, thirdparty.Contracts, operator.Contracts,
	} {
		all = append(all, contracts()...)
	}
	c, err := message.NewCatalog(all...)
	if err != nil {
		panic("the catalog contradicts itself: " + err.Error()) // a test reads it, so this never reaches a user
	}
	return c
})
