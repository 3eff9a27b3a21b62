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
