// Package naru is the root of the house. It has no code: `ls` is the diagram, ARCHITECTURE.md says why, and the tests
// beside this file keep it so.
package naru
