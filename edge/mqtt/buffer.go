package mqtt

import "sync"

// chunkBytes is the size of the pooled buffers: what one read of a busy connection
// takes, and what one write of acknowledgements and deliveries starts with.
const chunkBytes = 16 << 10

// chunk is a pooled buffer. b has length 0 when it comes from the pool.
type chunk struct{ b []byte }

var chunks = sync.Pool{New: func() any { return &chunk{make([]byte, 0, chunkBytes)} }}

func getChunk() *chunk { return chunks.Get().(*chunk) }

// putChunk gives a buffer back; grown ones go to the garbage collector, so the pool
// holds only small ones.
func putChunk(c *chunk) {
	if cap(c.b) > 4*chunkBytes {
		return
	}
	c.b = c.b[:0]
	chunks.Put(c)
}
