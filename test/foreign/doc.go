// Package foreign tries naru with MQTT clients that others wrote for Node. `make test` runs it where they are installed:
// `npm ci` in this folder, which .ci/run does.
package foreign
