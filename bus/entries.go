package bus

import (
	"context"
	"slices"
	"strings"
)

// Entries reads what a table holds under a prefix now, by key.
func Entries(ctx context.Context, t Table, prefix string) ([]Entry, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	found := map[string]Entry{}
	synced := false
	err := t.Watch(ctx, prefix, func(e Entry) {
		switch {
		case synced:
		case e.Deleted:
			delete(found, e.Key)
		default:
			found[e.Key] = e
		}
	}, func() { synced = true; cancel() })
	if !synced {
		if err == nil {
			err = ctx.Err()
		}
		return nil, err
	}
	list := make([]Entry, 0, len(found))
	for _, e := range found {
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b Entry) int { return strings.Compare(a.Key, b.Key) })
	return list, nil
}
