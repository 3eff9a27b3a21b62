package message

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

func free(p Pattern) Contract {
	return Contract{Subjects: p, Type: "t." + string(p), Doc: "d", Owner: "o", Route: ByLog}
}

// TestCatalogFindsAsAPlainReadingWould holds the tree to a walk over all contracts: of those that match, one that begins
// with a word, and of them the most particular.
func TestCatalogFindsAsAPlainReadingWould(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 11))
	tokens := func(words string, last string) string {
		var list []string
		w := strings.Fields(words)
		for range 1 + random.IntN(5) {
			list = append(list, w[random.IntN(len(w))])
		}
		if last != "" && random.IntN(4) == 0 {
			list = append(list, last)
		}
		return strings.Join(list, ".")
	}
	found := 0
	for range 300 {
		var all []Contract
		seen := map[Pattern]bool{}
		for range random.IntN(30) {
			if p := Pattern(tokens("a b c * $x", ">")); !seen[p] {
				seen[p] = true
				all = append(all, free(p))
			}
		}
		c, err := NewCatalog(all...)
		if err != nil {
			t.Fatal(err)
		}
		for range 50 {
			s := Subject(tokens("a b c d $x", ""))
			var want *Contract
			for _, k := range c.Contracts() {
				if k.Subjects.Matches(s) && (want == nil || wildFirst(k.Subjects) < wildFirst(want.Subjects) ||
					wildFirst(k.Subjects) == wildFirst(want.Subjects) && specificity(k.Subjects) > specificity(want.Subjects)) {
					want = &k
				}
			}
			got := c.Find(s)
			if (got == nil) != (want == nil) || got != nil && got.Type != want.Type {
				t.Fatalf("%s is found as %+v; want %+v", s, got, want)
			}
			if got != nil {
				found++
			}
		}
	}
	if found < 1000 {
		t.Errorf("only %d subjects had a contract: the test has lost its worth", found)
	}
}

func BenchmarkCatalogFind(b *testing.B) {
	for _, n := range []int{10, 1000} {
		all := []Contract{free("device.*.telemetry"), free("device.*.telemetry.>"), free("device.*.event.*")}
		for i := range n {
			all = append(all, free(Pattern(fmt.Sprintf("device.*.telemetry.x%d", i))))
		}
		c, err := NewCatalog(all...)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if c.Find("device.d-17.telemetry") == nil {
					b.Fatal("not found")
				}
			}
		})
	}
}

func TestCatalogsFingerprintSeesEveryWord(t *testing.T) {
	print := func(k Contract) string {
		c, err := NewCatalog(free("a.b"), k)
		if err != nil {
			t.Fatal(err)
		}
		return c.Fingerprint()
	}
	seen := map[string]int{}
	for i, change := range []func(*Contract){
		func(*Contract) {}, func(k *Contract) { k.Subjects = "a.*" }, func(k *Contract) { k.Type = "x" }, func(k *Contract) { k.Doc = "x" },
		func(k *Contract) { k.Owner = "x" }, func(k *Contract) { k.Route = ByQueue }, func(k *Contract) { k.Says = []string{"x"} },
		func(k *Contract) { k.Hears = []string{"x"} }, func(k *Contract) { k.Says = []string{"x y"} }, func(k *Contract) { k.Says = []string{"x", "y"} },
		func(k *Contract) { k.ContentType = "x" }, func(k *Contract) { k.Schema = []byte("{}") }, func(k *Contract) { k.Example = []byte("{}") },
	} {
		k := free("c.d")
		change(&k)
		first, again := print(k), print(k)
		if first != again {
			t.Errorf("change %d is not the same twice", i)
		}
		if j, there := seen[first]; there {
			t.Errorf("change %d looks like change %d", i, j)
		}
		seen[first] = i
	}
}
