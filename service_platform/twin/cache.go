package twin

import "github.com/naru-platform/naru/service_platform/twin/shadow"

// cacheMax is how many bytes of documents are at hand. A fleet that fits into it is answered without reading the store.
const cacheMax = 32 << 20

// entryBytes is what a map takes for an entry beside its bytes, about.
const entryBytes = 128

// cache keeps documents as they are stored. It belongs to the handlers' goroutine, and never knows more than the store:
// what a handler writes is dropped at once, and put when the handler has come to its end.
type cache struct {
	young, old map[string][]byte
	bytes      int // of young
	fresh      map[string][]byte
}

func newCache() *cache {
	return &cache{young: map[string][]byte{}, fresh: map[string][]byte{}}
}

// get gives a document's bytes, by its key.
func (c *cache) get(key []byte) ([]byte, bool) {
	if v, ok := c.young[string(key)]; ok {
		return v, true
	}
	v, ok := c.old[string(key)]
	if ok {
		c.put(string(key), v)
	}
	return v, ok
}

// put adds a document. When half of the room is taken, what was not asked for since it was last so goes.
func (c *cache) put(key string, v []byte) {
	c.forget(key)
	c.young[key] = v
	if c.bytes += len(key) + len(v) + entryBytes; c.bytes > cacheMax/2 {
		c.old, c.young, c.bytes = c.young, make(map[string][]byte, len(c.young)), 0
	}
}

func (c *cache) forget(key string) {
	if was, ok := c.young[key]; ok {
		c.bytes -= len(key) + len(was) + entryBytes
		delete(c.young, key)
	}
}

// drop forgets a document that is about to be another one.
func (c *cache) drop(key string) {
	c.forget(key)
	delete(c.old, key)
}

// wrote notes what a handler that is still at work stores.
func (c *cache) wrote(key string, v []byte) {
	c.drop(key)
	c.fresh[key] = v
}

// ended takes over what a handler wrote, if what it did counts.
func (c *cache) ended(counts bool) {
	if counts {
		for k, v := range c.fresh {
			c.put(k, v)
		}
	}
	clear(c.fresh)
}

// load reads a document in a handler.
func (t *Twins) load(g getter, r ref) (*shadow.Doc, error) {
	k := twinKey(r)
	v, ok := t.cache.get(k)
	if !ok {
		var err error
		if v, err = g.Get(k); err != nil {
			return nil, err
		}
		if v != nil {
			t.cache.put(string(k), v)
		}
	}
	return decode(r, v)
}
