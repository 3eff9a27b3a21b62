package message

import (
	"net/url"
	"strings"
)

// OwnSource begins the sources of what the platform says, and of what the clients of its broker do. Nobody else gives a message
// such a source.
const OwnSource = "//naru/"

const (
	deviceSource = OwnSource + "device/"
	clientSource = OwnSource + "client/"
	asClient     = "?client="
)

// ClientSource is the source of what a client of the broker says: of a device by its name, with the client id where that is
// another one; of a client that is no device, where device is empty, by its client id.
func ClientSource(device, client string) string {
	switch {
	case device == "":
		return clientSource + escape(client)
	case client == device && !strings.Contains(device, asClient):
		return deviceSource + device
	}
	return deviceSource + device + asClient + url.QueryEscape(client)
}

// ClientOf reads the client id from a source as [ClientSource] makes it; empty of another one.
func ClientOf(source string) string {
	if client, ok := strings.CutPrefix(source, clientSource); ok {
		return unescape(client)
	}
	device, ok := strings.CutPrefix(source, deviceSource)
	if !ok {
		return ""
	}
	if at := strings.LastIndex(device, asClient); at >= 0 {
		client, _ := url.QueryUnescape(device[at+len(asClient):]) // empty where it is none of ours
		return client
	}
	return device
}
