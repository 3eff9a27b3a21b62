// Package near finds the word that a wrong one most likely was meant to be.
package near

// Word gives the known word that is nearest by Levenshtein's distance; empty where none is near. Of two that are as near,
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

// Distance is how many bytes have to be changed, put in or taken out.
func Distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
