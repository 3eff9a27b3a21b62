package nats

import "testing"

func TestStoreFaultIsOneWhenItIsFoundTwice(t *testing.T) {
	var o second
	for i, look := range []struct{ found, want string }{
		{"", ""}, {"stream a", ""}, {"", ""}, {"stream a", ""}, {"stream b", ""}, {"stream b", "stream b"}, {"stream b", "stream b"}, {"", ""}, {"stream b", ""},
	} {
		if got := o.opinion(look.found); got != look.want {
			t.Errorf("look %d: %q was found, and %q is told; want %q", i, look.found, got, look.want)
		}
	}
}
