// Package near finds the word that a wrong one most likely was meant to be.
package near

// Word gives the known word that is nearest by Distance; empty where none is near. Of two that are as near,
// the first counts.
func Word(word string, known []string) string { return Within(word, known, len(word)/2) }

// Within gives the known word that is nearest, and at most so far away.
func Within(word string, known []string, most int) string {
	best, at := "", most+1
	for _, k := range known {
		if d := Distance(word, k); d < at {
			best, at = k, d
		}
	}
	return best
}

// Distance is how many bytes have to be changed, put in, taken out or swapped with the next one.
func Distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, last, row = last, row, before
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j-1]+cost, last[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(b)]
}
