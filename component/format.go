package component

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/naru-platform/naru/internal/whole"
)

// formatVersion is that of all that lies in a data directory. It is raised with every change that an older naru would misread without a
// word; what a newer one cannot read of an older one has to be converted by it.
const formatVersion = 1

const formatFile = "format"

// CheckFormat gives an error where a newer naru has written what is in a data directory, and else notes there what this one writes. It
// comes before everything that opens a store.
func CheckFormat(dir string) error {
	file := filepath.Join(dir, formatFile)
	raw, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		raw, err = []byte("0"), nil // of before there was this file: its stores are as the first version's
	}
	if err != nil {
		return fmt.Errorf("look what wrote the data directory: %w", err)
	}
	has, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	switch {
	case err != nil:
		return fmt.Errorf("%s is damaged, it says %.20q: where no newer naru was ever started here, remove it, and it is made anew", file, raw)
	case has > formatVersion:
		return fmt.Errorf("a newer naru has written %s: its format is %d, and this naru knows up to %d and would lose some of it; start the newer one, or give this one another directory with --data", dir, has, formatVersion)
	case has < formatVersion:
		return whole.Write(file, fmt.Appendf(nil, "%d\n", formatVersion), 0o600)
	}
	return nil
}
