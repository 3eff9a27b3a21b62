package main

import (
	"strings"
	"testing"
)

// Connections beyond what a process may hold are spread over as many nodes as that takes, and no fewer are accepted.
func TestIdleConnectionsAreSpreadOverAsManyNodesAsTheyNeed(t *testing.T) {
	for _, c := range []struct {
		connections, nodes, each int
		want                     int
		fault                    string
	}{
		{connections: 19_500, each: 19_500, want: 1},
		{connections: 19_501, each: 19_500, want: 2},
		{connections: 100_000, each: 19_500, want: 6},
		{connections: 60, nodes: 3, each: 19_500, want: 3},
		{connections: 100_000, nodes: 5, each: 19_500, fault: "100000 connections want 6 nodes, since this machine gives a process 20000 open files (ulimit -Hn): take --nodes 6, or --connections 97500"},
		{connections: 2, nodes: 3, each: 19_500, fault: "--nodes 3: want 1 to 2"},
		{connections: 2, nodes: -1, each: 19_500, fault: "--nodes -1: want 1 to 2"},
		{connections: 1_270_001, each: 1 << 30, fault: "1270001 connections want more ports"},
	} {
		b := idle{Connections: c.connections, Nodes: c.nodes}
		switch err := b.spread(c.each); {
		case c.fault == "" && (err != nil || b.Nodes != c.want):
			t.Errorf("%d connections, %d each: %d nodes, %v; want %d", c.connections, c.each, b.Nodes, err, c.want)
		case c.fault != "" && (err == nil || !strings.HasPrefix(err.Error(), c.fault)):
			t.Errorf("%d connections on %d nodes, %d each: %v; want %s", c.connections, c.nodes, c.each, err, c.fault)
		}
	}
}
