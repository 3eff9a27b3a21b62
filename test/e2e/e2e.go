// Package e2e holds the tests that run the real binary in processes of its own, kill them, and look at what is left.
// The long ones are behind the build tag `long`; `make long` runs them.
package e2e
