package bloom

import (
	"math/rand/v2"
	"testing"
)

func TestFilterNeverForgetsAndSeldomInvents(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{1, 10, 1000, 100_000} {
		f := New(n)
		keys := make([]uint64, n)
		for i := range keys {
			keys[i] = r.Uint64()
			f.Add(keys[i])
		}
		for _, k := range keys {
			if !f.Has(k) {
				t.Fatalf("%d keys: one that was added is not there", n)
			}
		}
		wrong := 0
		const asked = 100_000
		for range asked {
			if f.Has(r.Uint64()) {
				wrong++
			}
		}
		if rate := float64(wrong) / asked; rate > 0.02 {
			t.Errorf("%d keys: %.4f of the others seem to be there; want at most 0.02", n, rate)
		}
	}
}

func BenchmarkAdd(b *testing.B) {
	f := New(3000)
	for i := range b.N {
		f.Add(uint64(i) * 0x9e3779b97f4a7c15)
	}
}
