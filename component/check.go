package component

import (
	"fmt"

	"github.com/naru-platform/naru/internal/schema"
	"github.com/naru-platform/naru/message"
)

// Checker holds messages to the schemas of their contracts. It does not change once made; any number of goroutines may
// check with it.
type Checker struct {
	catalog *message.Catalog
	schemas map[string]*schema.Schema // by type
}

// NewChecker compiles the schemas of a catalog. The error names the contract, the place in its schema and the fault.
func NewChecker(c *message.Catalog) (*Checker, error) {
	k := &Checker{catalog: c, schemas: map[string]*schema.Schema{}}
	for _, contract := range c.Contracts() {
		if contract.Schema == nil {
			continue
		}
		s, err := schema.Compile(contract.Schema)
		if err != nil {
			return nil, fmt.Errorf("schema of %s: %w", contract.Type, err)
		}
		k.schemas[contract.Type] = s
	}
	return k, nil
}

// Check says whether a message keeps its contract, the most particular one for its subject: nil, or a
// *message.Rejection of reason schema_mismatch whose particulars begin with the JSON pointer of the field. A message
// without a contract, or whose contract has no schema, is free, and costs no more than to look its contract up.
func (k *Checker) Check(m *message.Message) error {
	contract := k.catalog.Find(m.Subject)
	if contract == nil || contract.Schema == nil {
		return nil
	}
	if err := k.schemas[contract.Type].Check(m.Data); err != nil {
		return message.Rejectf(message.SchemaMismatch, "%w (contract %s)", err, contract.Type)
	}
	return nil
}
