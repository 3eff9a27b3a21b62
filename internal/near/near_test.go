package near

import "testing"

func TestWordIsFoundThatWasMeant(t *testing.T) {
	known := []string{"groups", "attributes", "policy"}
	for word, want := range map[string]string{"group": "groups", "Policy": "policy", "atributes": "attributes", "colour": "", "": "", "groups": "groups"} {
		if got := Word(word, known); got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "ab", 2}, {"ab", "", 2}, {"pmup", "pump", 1}, {"nope", "open", 2}, {"abc", "axc", 1}, {"abc", "ac", 1}, {"ac", "abc", 1}, {"kitten", "sitting", 3}, {"abcd", "badc", 2}} {
		if got := Distance(c.a, c.b); got != c.want {
			t.Errorf("%q, %q: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
