package model

import (
	_ "embed"
	"sync"
)

//go:embed telemetry.yaml
var telemetryYAML []byte

// BuiltIn are the documents in force where the table of datasets says nothing of them: the dataset telemetry. They must not
// be changed.
var BuiltIn = sync.OnceValue(func() []Document {
	docs, err := Parse("built in", telemetryYAML)
	if err != nil {
		panic(err) // a test reads it too
	}
	return docs
})
