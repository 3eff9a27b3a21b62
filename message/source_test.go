package message

import "testing"

func TestASourceTellsItsClient(t *testing.T) {
	for _, x := range []struct{ device, client, source string }{
		{"d-17", "d-17", "//naru/device/d-17"},
		{"d 17", "d 17", "//naru/device/d 17"},
		{"d-17", "phone.of d-17", "//naru/device/d-17?client=phone.of+d-17"},
		{"", "a/b.c", "//naru/client/a/b%2Ec"},
		{"d?client=e", "d?client=e", "//naru/device/d?client=e?client=d%3Fclient%3De"},
	} {
		source := ClientSource(x.device, x.client)
		if x.source != source {
			t.Errorf("%q as %q: the source is %s; want %s", x.device, x.client, source, x.source)
		}
		if got := ClientOf(source); got != x.client {
			t.Errorf("%s: the client is %q; want %q", source, got, x.client)
		}
	}
	for _, other := range []string{"", "//naru/n1/service_platform.rule?rule=hot@1", "https://example.com/device/d-17"} {
		if got := ClientOf(other); got != "" {
			t.Errorf("%s: the client is %q; want none", other, got)
		}
	}
}
