// Package bloom is a blocked Bloom filter over 64-bit hashes: a key lives in one block of 64 bytes, so that a look
// touches one cache line. With the 12 bits a key that [Size] gives, about one key in two hundred that was never added
// seems to be there; one that was added always does.
//
// The bytes are the filter: they can be stored, cut into pages at block borders, and asked again.
package bloom

import "math/bits"

// BlockSize is the size of a block in bytes.
const BlockSize = 64

const (
	bitsPerKey = 12
	probes     = 6
)

// Filter is a filter's bytes: a whole number of blocks, at least one.
type Filter []byte

// Size is how many bytes a filter for n keys wants.
func Size(n int) int {
	blocks := (n*bitsPerKey + BlockSize*8 - 1) / (BlockSize * 8)
	return max(blocks, 1) * BlockSize
}

// New makes an empty filter for n keys.
func New(n int) Filter { return make(Filter, Size(n)) }

// Add adds a key.
func (f Filter) Add(hash uint64) {
	block := f.block(hash)
	for range probes {
		hash = next(hash)
		bit := hash >> 55 // 9 bits: one of 512
		block[bit>>3] |= 1 << (bit & 7)
	}
}

// Has says whether the key may have been added.
func (f Filter) Has(hash uint64) bool {
	block := f.block(hash)
	for range probes {
		hash = next(hash)
		bit := hash >> 55
		if block[bit>>3]&(1<<(bit&7)) == 0 {
			return false
		}
	}
	return true
}

// Block is the number of the block a key lives in, in a filter of n blocks.
func Block(hash uint64, n int) int {
	hi, _ := bits.Mul64(mix(hash), uint64(n))
	return int(hi)
}

func (f Filter) block(hash uint64) []byte {
	at := Block(hash, len(f)/BlockSize) * BlockSize
	return f[at : at+BlockSize : at+BlockSize]
}

func mix(h uint64) uint64 {
	h ^= h >> 32
	h *= 0xd6e8feb86659fd93
	return h ^ h>>32
}

func next(h uint64) uint64 { return h*0x9e3779b97f4a7c15 + 0x7f4a7c15 }
