// Package columns is a lossless codec for Kafka record batches that carry telemetry:
// JSON of the same shape from the same devices. A value is split into a template (what
// stands between the tokens) and its tokens; numbers are predicted from the device's
// earlier ones, and what remains is coded by an adaptive range coder. Encoder and
// Decoder keep templates, dictionaries, last values and models from frame to frame, in
// step, until a reset. The bytes come back as they were; a checksum proves it.
//
// One pass, bounded: a state of at most the agreed size, then a reset. A batch that is
// not understood travels as it is; whether the whole is worth it is the caller's choice.
//
// A frame is
//
//	crc32c of the batches u32 | literals uvarint | literals | range coder
//
// literals being what was seen for the first time, and batches that are not understood,
// compressed with zstd where that helps (first byte 1, else 0).
package columns

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
)

// ErrCorrupt is wrapped by every error about bytes that no Encoder made.
var ErrCorrupt = errors.New("corrupt telemetry frame")

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// Bounds, the same on both ends.
const (
	MinState    = 64 << 10
	MaxState    = 16 << 20
	maxTokens   = 512     // of one template
	maxKeys     = 4096    // record keys
	maxDict     = 4096    // entries of one dictionary
	maxString   = 1 << 16 // bytes of one entry
	maxScale    = 17      // decimals
	headerBytes = 61
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// state is what both ends know.
type state struct {
	c    coder
	lits []byte // written, or left to read
	size int    // estimate of what is kept
	max  int

	more, batchRaw, batchStd, batchMax bit
	batchBase, batchCount              *number
	batchTime                          *number
	fields                             fixed // of the batch before
	nextBase                           int64
	lastTime                           int64

	keys      dictionary
	heads     dictionary // header blocks
	templates []*template
	byShape   map[string]int
	devices   []*device // by key
	lastKey   int
	hitKey    bit
	anyKey    *number
}

// device is what is known of a record key.
type device struct {
	next           int // the key that followed last
	head, template int
	hitHead        bit
	hitTemplate    bit
	anyHead        *number
	anyTemplate    *number
	t1, t2         int64 // last record times
	time           *number
	timeSign       bit
}

type template struct {
	parts   [][]byte // literals around the tokens: one more than tokens
	columns []*column
	cells   map[int]*cells // by key
}

// column models one token of a template over all devices.
type column struct {
	scale   int // decimals of the numbers as they are kept
	cost    [predictors]int32
	text    [2]bit
	raise   bit
	digits  [2][20]bit // decimals, where the value leaves a choice
	sign    [3]bit
	classes [10]*number
	dict    dictionary
	same    bit
	index   *number
	any     int64 // last number of any device
	seen    bool
}

// cells are a device's last values of a template.
type cells struct {
	t int64 // record time
	v []cell
}

type cell struct {
	p1, p2, slow int64
	r1, r2       uint64 // last residuals
	s            int8   // sign of the last
	n            uint8  // numbers seen, up to 2
	text         int    // last dictionary entry, -1 = none
	wasText      bool
}

type dictionary struct {
	index   map[string]int // encoder
	entries [][]byte
}

func newState(max int) *state {
	s := &state{max: max, more: fresh, batchRaw: fresh, batchStd: fresh, batchMax: fresh, batchBase: newNumber(), batchCount: newNumber(), batchTime: newNumber(),
		byShape: map[string]int{}, hitKey: fresh, anyKey: newNumber(), size: 8 << 10, lastKey: -1}
	return s
}

// full says that the state has reached its bound: the next frame must begin anew.
func (s *state) full() bool { return s.size > s.max }

// literal passes bytes that were not seen before.
func (s *state) literal(b []byte, m *number) ([]byte, error) {
	n := s.c.number(m, uint64(len(b)))
	if !s.c.dec {
		s.lits = append(s.lits, b...)
		return b, nil
	}
	if n > uint64(len(s.lits)) {
		return nil, corrupt("literal of %d bytes, %d are left", n, len(s.lits))
	}
	b = s.lits[:n:n]
	s.lits = s.lits[n:]
	return b, nil
}

// entry codes an entry of d, which may be new: then it is not known by an index. It
// returns its index, -1 where the dictionary has no room.
func (s *state) entry(d *dictionary, m *number, b []byte, limit int) (int, []byte, error) {
	n := len(d.entries)
	i := n
	if !s.c.dec {
		if k, ok := d.index[string(b)]; ok {
			i = k
		}
	}
	// Young entries are likelier: counted from the end, 0 is a new one.
	back := s.c.number(m, uint64(n-i))
	if back > uint64(n) {
		return 0, nil, corrupt("dictionary index")
	}
	if back > 0 {
		i = n - int(back)
		return i, d.entries[i], nil
	}
	b, err := s.literal(b, m)
	if err != nil {
		return 0, nil, err
	}
	if n >= limit || len(b) > maxString {
		return -1, b, nil
	}
	b = bytes.Clone(b)
	if !s.c.dec {
		if d.index == nil {
			d.index = map[string]int{}
		}
		d.index[string(b)] = n
	}
	d.entries = append(d.entries, b)
	s.size += len(b)*2 + 64
	return n, b, nil
}

func zigzag(v int64) uint64   { return uint64(v<<1) ^ uint64(v>>63) }
func unzigzag(v uint64) int64 { return int64(v>>1) ^ -int64(v&1) }

// batchHead is what of a batch's header is not derived from its records.
type batchHead struct {
	base, time int64
	maxIs      bool // max time is that of the records
	count      int
	fixed      fixed
}

// fixed is what seldom changes from batch to batch: leader epoch, magic, attributes,
// producer, and the max time where it is not that of the records.
type fixed [29]byte

// Offsets in a batch's header.
const (
	posLength   = 8
	posEpoch    = 12
	posMagic    = 16
	posCRC      = 17
	posAttr     = 21
	posDelta    = 23
	posTime     = 27
	posMax      = 35
	posProducer = 43
	posCount    = 57
)

// head codes a batch's header.
func (s *state) head(h *batchHead) error {
	c := &s.c
	h.base = s.nextBase + unzigzag(c.number(s.batchBase, zigzag(h.base-s.nextBase)))
	h.count = int(c.number(s.batchCount, uint64(h.count)))
	h.time = s.lastTime + unzigzag(c.number(s.batchTime, zigzag(h.time-s.lastTime)))
	same := 0
	if h.fixed != s.fields {
		same = 1
	}
	if c.bit(&s.batchStd, same) == 1 {
		for i := range h.fixed {
			h.fixed[i] = byte(c.plain(uint64(h.fixed[i]), 8))
		}
	} else {
		h.fixed = s.fields
	}
	s.fields = h.fixed
	m := 0
	if !h.maxIs {
		m = 1
	}
	h.maxIs = c.bit(&s.batchMax, m) == 0
	s.nextBase, s.lastTime = h.base+int64(h.count), h.time
	return nil
}

// rec is one record. key begins with 0 for none, else with 1; head is the header count
// and the headers.
type rec struct {
	time             int64
	key, value, head []byte
	shape            []byte // the value with a zero for each token
	parts            [][]byte
	tokens           []token
}

// deviceOf codes the record's key.
func (s *state) deviceOf(r *rec) (*device, int, error) {
	c := &s.c
	hit, k := 1, -1
	predicted := -1
	if s.lastKey >= 0 {
		predicted = s.devices[s.lastKey].next
	}
	if !c.dec {
		if i, ok := s.keys.index[string(r.key)]; ok {
			k = i
		}
		if k >= 0 && k == predicted {
			hit = 0
		}
	}
	if predicted >= 0 && c.bit(&s.hitKey, hit) == 0 {
		k = predicted
		r.key = s.keys.entries[k]
	} else {
		i, b, err := s.entry(&s.keys, s.anyKey, r.key, maxKeys)
		if err != nil {
			return nil, 0, err
		}
		if i < 0 {
			return nil, 0, errFull
		}
		k, r.key = i, b
	}
	if k == len(s.devices) {
		s.devices = append(s.devices, &device{next: -1, head: -1, template: -1, hitHead: fresh, hitTemplate: fresh, anyHead: newNumber(), anyTemplate: newNumber(), time: newNumber(), timeSign: fresh, t1: s.lastTime, t2: s.lastTime})
		s.size += 2 << 10
	}
	if s.lastKey >= 0 {
		s.devices[s.lastKey].next = k
	}
	s.lastKey = k
	return s.devices[k], k, nil
}

// errFull: an Encoder makes no such frame.
var errFull = fmt.Errorf("%w: more than the state may hold", ErrCorrupt)

func (s *state) record(r *rec) (*template, *cells, error) {
	if s.size > 2*s.max+MinState {
		return nil, nil, errFull
	}
	c := &s.c
	d, key, err := s.deviceOf(r)
	if err != nil {
		return nil, nil, err
	}
	guess := d.t1 + (d.t1 - d.t2)
	r.time = guess + unzigzag(c.number(d.time, zigzag(r.time-guess)))
	d.t2, d.t1 = d.t1, r.time
	hit := 1
	if !c.dec && d.head >= 0 && bytes.Equal(s.heads.entries[d.head], r.head) {
		hit = 0
	}
	if d.head >= 0 && c.bit(&d.hitHead, hit) == 0 {
		r.head = s.heads.entries[d.head]
	} else {
		i, b, err := s.entry(&s.heads, d.anyHead, r.head, maxDict)
		if err != nil {
			return nil, nil, err
		}
		if i >= 0 {
			d.head = i
		}
		r.head = b
	}
	t, ti, err := s.templateOf(d, r)
	if err != nil {
		return nil, nil, err
	}
	d.template = ti
	cl := t.cells[key]
	if cl == nil {
		cl = &cells{v: make([]cell, len(t.columns))}
		for i := range cl.v {
			cl.v[i].text = -1
		}
		t.cells[key] = cl
		s.size += 72*len(cl.v) + 64
	}
	return t, cl, nil
}

func (s *state) templateOf(d *device, r *rec) (*template, int, error) {
	c := &s.c
	n := len(s.templates)
	ti := n
	if !c.dec {
		if i, ok := s.byShape[string(r.shape)]; ok {
			ti = i
		}
	}
	hit := 1
	if ti == d.template {
		hit = 0
	}
	if d.template >= 0 && c.bit(&d.hitTemplate, hit) == 0 {
		return s.templates[d.template], d.template, nil
	}
	back := c.number(d.anyTemplate, uint64(n-ti))
	if back > uint64(n) {
		return nil, 0, corrupt("template index")
	}
	if back > 0 {
		ti = n - int(back)
		return s.templates[ti], ti, nil
	}
	t := &template{cells: map[int]*cells{}}
	parts := c.number(d.anyTemplate, uint64(len(r.parts)))
	if parts == 0 || parts > maxTokens+1 {
		return nil, 0, corrupt("template of %d parts", parts)
	}
	for i := range int(parts) {
		var p []byte
		if !c.dec {
			p = r.parts[i]
		}
		p, err := s.literal(p, d.anyTemplate)
		if err != nil {
			return nil, 0, err
		}
		t.parts = append(t.parts, bytes.Clone(p))
		s.size += 2*len(p) + 32
	}
	for range parts - 1 {
		t.columns = append(t.columns, newColumn())
		s.size += 1 << 10
	}
	s.templates = append(s.templates, t)
	if !c.dec {
		s.byShape[string(r.shape)] = n
	}
	return t, n, nil
}

func newColumn() *column {
	c := &column{text: [2]bit{fresh, fresh}, raise: fresh, same: fresh, sign: [3]bit{fresh, fresh, fresh}}
	for i := range c.digits {
		for j := range c.digits[i] {
			c.digits[i][j] = fresh
		}
	}
	return c
}

// token codes token i of a record.
func (s *state) token(t *template, i int, cl *cells, now int64, k *token) error {
	c, col, x := &s.c, t.columns[i], &cl.v[i]
	isText := 0
	if k.text {
		isText = 1
	}
	if !c.dec && !k.text { // a number that the column cannot hold is text
		if scale := max(col.scale, k.decimals); !fits(k.digits, scale-k.decimals) {
			isText = 1
		}
	}
	was := 0
	if x.wasText {
		was = 1
	}
	x.wasText = c.bit(&col.text[was], isText) == 1
	if x.wasText {
		k.text = true
		return s.textToken(col, x, k)
	}
	k.text = false
	raise := 0
	if k.decimals > col.scale {
		raise = 1
	}
	if c.bit(&col.raise, raise) == 1 {
		scale := int(c.plain(uint64(k.decimals), 5))
		if scale <= col.scale || scale > maxScale {
			return corrupt("scale %d after %d", scale, col.scale)
		}
		t.rescale(i, scale)
	}
	v := int64(0)
	if !c.dec {
		v = k.digits * pow10[col.scale-k.decimals]
	}
	v = s.value(col, x, v, now, cl.t)
	if v > maxValue || v < -maxValue {
		return corrupt("number out of bounds")
	}
	// How many decimals were written: at least as many as the value needs.
	needs, w := col.scale, v
	for needs > 0 && w%10 == 0 {
		needs, w = needs-1, w/10
	}
	zero := 0
	if needs == 0 {
		zero = 1
	}
	d := needs
	for ; d < col.scale; d++ {
		more := 0
		if k.decimals > d {
			more = 1
		}
		if c.bit(&col.digits[zero][d], more) == 0 {
			break
		}
	}
	if c.dec {
		k.decimals, k.digits = d, v/pow10[col.scale-d]
	}
	return nil
}

func (s *state) textToken(col *column, x *cell, k *token) error {
	c := &s.c
	same := 1
	if x.text >= 0 && !c.dec && bytes.Equal(col.dict.entries[x.text], k.raw) {
		same = 0
	}
	if x.text >= 0 && c.bit(&col.same, same) == 0 {
		k.raw = col.dict.entries[x.text]
		return nil
	}
	if col.index == nil {
		col.index = newNumber()
		s.size += 700
	}
	i, b, err := s.entry(&col.dict, col.index, k.raw, maxDict)
	if err != nil {
		return err
	}
	x.text, k.raw = i, b
	return nil
}
