package sql

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"math/big"
	"sync"
)

// Hashes of a String's UTF-8 bytes, in lower case hexadecimal.
var hashFunctions = []function{
	{name: "md2", min: 1, max: 1, call: func(e *env, c *call, a []value) value {
		if e.work(16 * a[0].size()); e.err != nil { // it is as much slower than the others
			return undefined
		}
		return hash(func(b []byte) []byte { h := md2(b); return h[:] })(e, c, a)
	}},
	{name: "md5", min: 1, max: 1, call: hash(func(b []byte) []byte { h := md5.Sum(b); return h[:] })},
	{name: "sha1", min: 1, max: 1, call: hash(func(b []byte) []byte { h := sha1.Sum(b); return h[:] })},
	{name: "sha224", min: 1, max: 1, call: hash(func(b []byte) []byte { h := sha256.Sum224(b); return h[:] })},
	{name: "sha256", min: 1, max: 1, call: hash(func(b []byte) []byte { h := sha256.Sum256(b); return h[:] })},
	{name: "sha384", min: 1, max: 1, call: hash(func(b []byte) []byte { h := sha512.Sum384(b); return h[:] })},
	{name: "sha512", min: 1, max: 1, call: hash(func(b []byte) []byte { h := sha512.Sum512(b); return h[:] })},
}

func hash(f func([]byte) []byte) func(*env, *call, []value) value {
	return change(func(b []byte) []byte { return hex.AppendEncode(nil, f(b)) })
}

// md2Table is the permutation of RFC 1319, which the RFC derives from the digits of pi. Few rules need it.
var md2Table = sync.OnceValue(md2Permutation)

// md2Permutation shuffles 0…255 by the digits of pi, as the design of the hash says (Fisher-Yates, each choice by as many
// digits as it needs; too large ones are passed over).
func md2Permutation() *[256]byte {
	var s [256]byte
	digits := piDigits(722)
	next := func() int {
		d := int(digits[0] - '0')
		digits = digits[1:]
		return d
	}
	choose := func(n int) int {
		for {
			x, span := next(), 10
			if n > 10 {
				x, span = x*10+next(), 100
			}
			if n > 100 {
				x, span = x*10+next(), 1000
			}
			if limit := n * (span / n); x < limit {
				return x % n
			}
		}
	}
	for i := range s {
		s[i] = byte(i)
	}
	for i := 2; i <= 256; i++ {
		j := choose(i)
		s[j], s[i-1] = s[i-1], s[j]
	}
	return &s
}

// piDigits gives the first n digits of pi, by Machin's formula.
func piDigits(n int) string {
	one := tens(n + 10)
	arctan := func(inverse int64) *big.Int {
		sum, square := new(big.Int), big.NewInt(inverse*inverse)
		term := new(big.Int).Quo(one, big.NewInt(inverse))
		for k := int64(1); term.Sign() != 0; k += 2 {
			part := new(big.Int).Quo(term, big.NewInt(k))
			if k%4 == 3 {
				part.Neg(part)
			}
			sum.Add(sum, part)
			term.Quo(term, square)
		}
		return sum
	}
	pi := arctan(5)
	pi.Mul(pi, big.NewInt(4)).Sub(pi, arctan(239)).Mul(pi, big.NewInt(4))
	return pi.String()[:n]
}

// md2 is the message digest of RFC 1319. It protects nothing; old rules name things with it.
func md2(message []byte) (digest [16]byte) {
	table := md2Table()
	n := 16 - len(message)%16
	padded := append([]byte(nil), message...)
	for range n {
		padded = append(padded, byte(n))
	}
	var checksum [16]byte
	last := byte(0)
	for at := 0; at < len(padded); at += 16 {
		for i, c := range padded[at : at+16] {
			checksum[i] ^= table[c^last]
			last = checksum[i]
		}
	}
	padded = append(padded, checksum[:]...)
	var x [48]byte
	for at := 0; at < len(padded); at += 16 {
		for i, c := range padded[at : at+16] {
			x[16+i] = c
			x[32+i] = c ^ x[i]
		}
		t := byte(0)
		for round := range 18 {
			for i := range x {
				x[i] ^= table[t]
				t = x[i]
			}
			t += byte(round)
		}
	}
	copy(digest[:], x[:])
	return digest
}
